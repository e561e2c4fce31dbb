"""The OpenAPI tried in every corner: whatever is sent, nothing fails, and what comes back is as documented."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from pathlib import Path

import pytest
import schemathesis
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from serving import QUESTION, Served, make_hub, serve, write_video

from vstream.app.serve import records
from vstream.app.serve.allowed import SourcePolicy
from vstream.app.serve.hub import Hub
from vstream.app.serve.library import Library
from vstream.app.serve.server import build_app
from vstream.app.serve.uploads import Uploads

CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
)
EXAMPLES = 15


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server as `vstream serve` has it, but without the gate."""
    folder = tmp_path_factory.mktemp("schema")
    write_video(folder / "clip.mp4", seconds=6)
    uploads = Uploads(folder / "uploads", max_mib=1)
    policy = SourcePolicy((str(folder),), uploads.folder)
    hub = Hub(
        lambda source, max_side: policy.open(source, max_side=max_side),
        Library(folder / "memories"),
        models=("tiny",),
        settings={"disk_bytes": 64 << 20},
    )
    with serve(hub, policy=policy, uploads=uploads) as served:
        yield served


@pytest.fixture(scope="module")
def api_schema(served: Served):
    return schemathesis.openapi.from_url(f"{served.url}/openapi.json")


def operations() -> list[tuple[str, str]]:
    """Every (method, path) of the OpenAPI, without a server."""
    with tempfile.TemporaryDirectory() as folder:
        app = build_app(make_hub(Path(folder)))
    return [(method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods]


def open_id(served: Served, pushed: bool) -> str:
    """A stream that is there: what was closed or ended is opened anew."""
    for stream in served.hub.streams():
        if (stream.source is not None) == pushed and (stream.state == "watching" or not pushed):
            return stream.id
        if stream.source is not None or len(served.hub.streams()) > 4:
            served.hub.close_stream(stream.id)
    stream_id = served.open("push" if pushed else "clip.mp4")
    if not pushed:
        served.http.post(f"/v1/streams/{stream_id}/ask", json=QUESTION)
    return stream_id


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["good", "bad"])
@pytest.mark.parametrize(("method", "path"), operations())
def test_everything_is_as_documented(served: Served, api_schema, method: str, path: str, mode: GenerationMode) -> None:
    @given(case=api_schema[path][method].as_strategy(generation_mode=mode))
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    def try_it(case) -> None:
        if mode == GenerationMode.POSITIVE:
            aim(case, served)
        case.call_and_validate(checks=CHECKS, timeout=30)

    try:
        try_it()
    except Unsatisfiable:
        assert mode == GenerationMode.NEGATIVE  # nothing can be wrong with what takes nothing


def aim(case, served: Served) -> None:
    """At a stream that is there, where a made-up one would only be unknown."""
    path, parameters = case.operation.path, case.path_parameters or {}
    if "stream_id" in parameters and case.method != "DELETE":
        parameters["stream_id"] = open_id(served, pushed=path.endswith(("/frames", "/end")))
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str) and "openai" in case.operation.tags:
        case.body["model"] = f"stream:{open_id(served, pushed=False)}"
        case.body.pop("stream_id", None)


def test_the_corners_are_those_of_every_route(served: Served) -> None:
    """What is not in the OpenAPI would not be tried."""
    paths = served.http.get("/openapi.json").json()["paths"]
    assert {"/v1/streams", "/v1/streams/{stream_id}/ask", "/v1/responses", "/v1/uploads", "/metrics"} <= set(paths)


@pytest.mark.parametrize(
    ("status", "code", "problem"), [("ok", 200, None), ("well", 200, "violates schema"), ("ok", 500, "Server error")]
)
def test_what_is_not_as_documented_is_noticed(status: str, code: int, problem: str | None) -> None:
    """The negative control: a route that says something else, or fails, is found out."""
    app = FastAPI()
    app.get("/look", response_model=records.Health)(lambda: JSONResponse({"status": status}, code))
    case = schemathesis.openapi.from_asgi("/openapi.json", app)["/look"]["GET"].Case()
    expected = pytest.raises(FailureGroup, match=problem) if problem else nullcontext()
    with expected:
        case.validate_response(case.call(), checks=CHECKS[:5])
