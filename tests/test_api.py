"""The API over a real server: streams, questions as JSON and events, memories, pictures, what is refused, who goes."""

from __future__ import annotations

import errno
import io
import json
import socket
import time
from itertools import pairwise
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image
from serving import LONG, QUESTION, Served, make_hub, serve, slow_down, wait_for, write_video
from serving import opener as open_anything

from vstream.app.serve.allowed import SourcePolicy
from vstream.app.serve.frames import frame_at
from vstream.app.serve.library import Library
from vstream.app.serve.server import build_app
from vstream.app.serve.stream import Span
from vstream.app.serve.telling import binned
from vstream.app.serve.uploads import Uploads
from vstream.sources import FileSource


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    uploads, policy = Uploads(folder / "uploads", max_mib=1), SourcePolicy([], folder / "uploads")

    def opener(given: str, max_side: int) -> object:
        return policy.open(given, max_side=max_side) if given.startswith("upload:") else open_anything(given, max_side)

    with serve(make_hub(folder / "memories", opener=opener), uploads=uploads) as served:
        yield served


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4")


@pytest.fixture
def stream_id(served: Served, video: Path):
    yield served.open(video)
    served.close_all()


@pytest.fixture
def pushed_id(served: Served):
    yield served.open("push")
    served.close_all()


def events(response: httpx.Response) -> list[tuple[str, dict]]:
    """A body of server-sent events."""
    found = []
    for block in response.read().decode().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines())
        if lines:
            found.append((lines["event"], json.loads(lines["data"])))
    return found


def error_of(response: httpx.Response) -> dict:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "code", "param"}
    assert "\n" not in error["message"]
    return error


# Streams


def test_a_stream_is_opened_listed_changed_and_closed(served: Served, video: Path) -> None:
    reply = served.http.post("/v1/streams", json={"source": str(video), "title": "Door", "keep": False})
    assert reply.status_code == 201
    stream = reply.json()
    where = reply.headers["location"]
    assert where == f"/v1/streams/{stream['id']}"
    assert (stream["title"], stream["model"], stream["has_file"], stream["is_live"]) == ("Door", "tiny", True, False)
    served.http.post(f"{where}/ask", json=QUESTION)
    listed = served.http.get("/v1/streams").json()["data"]
    assert [one["id"] for one in listed] == [stream["id"]]
    time.sleep(0.6)  # a look may be half a second old
    now = served.http.get(where).json()
    assert now["state"] == "over"
    assert now["clock_seconds"] == pytest.approx(11.8)
    assert now["blocks"]["detail"] == 3
    assert now["bytes"]["disk"] > 0
    assert now["questions"] == 1
    changed = served.http.patch(where, json={"title": "Front", "kept": True}).json()
    assert (changed["title"], changed["kept"]) == ("Front", True)
    assert served.http.patch(where, json={"kept": False}).json()["title"] == "Front"
    assert served.http.delete(where).json() == {"id": stream["id"], "deleted": True}
    assert served.http.get(where).status_code == 404
    assert served.http.get("/v1/streams").json()["data"] == []


def test_all_streams_are_closed_at_once(served: Served, video: Path) -> None:
    ids = [served.open(video) for _ in range(2)]
    assert [gone["id"] for gone in served.http.delete("/v1/streams").json()] == ids
    assert served.http.get("/v1/streams").json()["data"] == []


# Questions


def test_an_answer_as_json_has_evidence_with_pictures_and_real_counts(served: Served, stream_id: str) -> None:
    reply = served.http.post(f"/v1/streams/{stream_id}/ask", json=QUESTION)
    assert reply.status_code == 200
    turn = reply.json()
    answer = served.hub.stream(stream_id).turns[0].answer
    assert turn["answer"] == answer.text()
    assert (turn["state"], turn["finish_reason"]) == ("done", "stop")
    usage = turn["usage"]
    assert usage["completion_tokens"] == answer.num_tokens >= 1
    window = served.hub.stream(stream_id).session.memory.cache
    assert usage["prompt_tokens"] > window.sink_tokens + 3 * 24  # sink, three blocks, and the question
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    for evidence in turn["evidence"]:
        picture = served.http.get(evidence["picture_url"])
        assert picture.status_code == 200
        assert float(picture.headers["x-frame-seconds"]) == pytest.approx(evidence["picture_seconds"], abs=1e-3)
        assert evidence["start_seconds"] <= evidence["picture_seconds"] <= evidence["end_seconds"]
    assert served.http.get(f"/v1/streams/{stream_id}/turns").json()["data"] == [turn]


@pytest.mark.parametrize("way", ["field", "header"])
def test_an_answer_as_events_has_evidence_first_and_the_whole_turn_last(
    served: Served, stream_id: str, way: str
) -> None:
    body, headers = (QUESTION | {"stream": True}, {}) if way == "field" else (QUESTION, {"accept": "text/event-stream"})
    with served.http.stream("POST", f"/v1/streams/{stream_id}/ask", json=body, headers=headers) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        came = events(reply)
    names = [name for name, _ in came]
    assert names[0] == "evidence"
    assert names[-1] == "done"
    assert set(names[1:-1]) == {"token"}
    done = came[-1][1]
    assert "".join(data["text"] for name, data in came if name == "token") == done["answer"]
    assert came[0][1]["evidence"] == done["evidence"] != []
    assert done["usage"]["completion_tokens"] >= 1


def test_events_come_while_the_answer_is_being_made(served: Served, stream_id: str, slow_tokens) -> None:
    body = LONG | {"stream": True, "max_tokens": 12}
    times = []
    with served.http.stream("POST", f"/v1/streams/{stream_id}/ask", json=body) as reply:
        for line in reply.iter_lines():
            if line == "event: token":
                times.append(time.monotonic())
    assert len(times) >= 4
    assert max(b - a for a, b in pairwise(times)) >= slow_tokens / 2  # not all at the end
    assert times[-1] - times[0] >= slow_tokens


def test_a_question_at_a_time_sees_nothing_later(served: Served, stream_id: str) -> None:
    for at, seconds in ((6, 6.0), ("00:06", 6.0), ("6.5", 6.5)):
        turn = served.http.post(f"/v1/streams/{stream_id}/ask", json=QUESTION | {"at": at}).json()
        assert turn["asked_at_seconds"] == seconds
        assert turn["snapshot_seconds"] == 6.0
        assert all(evidence["end_seconds"] <= seconds for evidence in turn["evidence"])


def test_options_are_passed_on(served: Served, stream_id: str) -> None:
    def ask(**options) -> dict:
        reply = served.http.post(f"/v1/streams/{stream_id}/ask", json=QUESTION | options)
        assert reply.status_code == 200, reply.text
        return reply.json()

    plain = ask()
    short = ask(max_tokens=1)
    assert (short["finish_reason"], short["usage"]["completion_tokens"]) == ("length", 1)
    assert ask(stop=plain["answer"][:2])["answer"] == ""
    wild = {"temperature": 5.0, "top_p": 1.0, "max_tokens": 8}
    assert ask(seed=3, **wild)["answer"] == ask(seed=3, **wild)["answer"]
    assert len({ask(seed=seed, **wild)["answer"] for seed in range(4)}) > 1
    choices = ask(choices=["a red heart", plain["answer"]])
    assert choices["choices"][1] == plain["answer"]
    assert choices["choice"] in (None, 0, 1)


def test_an_answer_before_the_first_frame_says_so(served: Served, pushed_id: str) -> None:
    turn = served.http.post(f"/v1/streams/{pushed_id}/ask", json=QUESTION).json()
    assert turn["finish_reason"] == "nothing-seen"
    assert turn["evidence"] == []
    with served.http.stream("POST", f"/v1/streams/{pushed_id}/ask", json=QUESTION | {"stream": True}) as reply:
        assert [name for name, _ in events(reply)] == ["evidence", "token", "done"]


def test_what_is_wrong_with_a_question_comes_as_an_event_too(served: Served, stream_id: str) -> None:
    late = QUESTION | {"at": 99}
    refused = served.http.post(f"/v1/streams/{stream_id}/ask", json=late)
    assert refused.status_code == 400
    assert "ends at 00:12" in error_of(refused)["message"]
    with served.http.stream("POST", f"/v1/streams/{stream_id}/ask", json=late | {"stream": True}) as reply:
        came = events(reply)
    assert came == [("error", refused.json())]


def test_a_stream_that_is_closed_ends_its_questions(served: Served, pushed_id: str) -> None:
    url = f"{served.url}/v1/streams/{pushed_id}/ask"
    with httpx.stream("POST", url, json=QUESTION | {"at": "end", "stream": True}, timeout=30) as reply:
        wait_for(lambda: len(served.hub.stream(pushed_id).turns) == 1)
        served.http.delete(f"/v1/streams/{pushed_id}")
        came = events(reply)
    assert [name for name, _ in came] == ["error"]
    assert "closed before the answer" in came[0][1]["error"]["message"]


# Clients that go away


@pytest.fixture
def slow_tokens(monkeypatch: pytest.MonkeyPatch) -> float:
    return slow_down(monkeypatch)


def raw_ask(served: Served, stream_id: str, body: dict) -> socket.socket:
    """Asks on a connection of its own, which the test may cut."""
    host, port = served.url.removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    head = f"POST /v1/streams/{stream_id}/ask HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    connection = socket.create_connection((host, int(port)))
    connection.sendall(head.encode() + f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return connection


@pytest.mark.parametrize("as_events", [True, False])
def test_a_client_that_goes_frees_the_work_within_one_token(
    served: Served, stream_id: str, slow_tokens: float, as_events: bool
) -> None:
    stream = served.hub.stream(stream_id)
    connection = raw_ask(served, stream_id, LONG | {"stream": as_events})
    wait_for(lambda: stream.turns and stream.turns[-1].answer.num_tokens >= 3)
    answer = stream.turns[-1].answer
    connection.close()
    said = answer.num_tokens
    wait_for(lambda: answer.done, 2 * slow_tokens + 1.0)
    assert answer.finish_reason == "cancelled"
    assert answer.num_tokens <= said + 1
    assert stream.session.status().running == 0


def test_an_answer_whose_client_stays_goes_on_as_long(served: Served, stream_id: str, slow_tokens: float) -> None:
    """The negative control: the same question is not over by then."""
    turn = served.http.post(f"/v1/streams/{stream_id}/ask", json=LONG | {"max_tokens": 12}).json()
    assert turn["finish_reason"] == "length"


@pytest.mark.parametrize("as_events", [True, False])
def test_a_client_that_goes_while_its_question_waits_is_forgotten(
    served: Served, pushed_id: str, as_events: bool
) -> None:
    stream = served.hub.stream(pushed_id)
    connection = raw_ask(served, pushed_id, QUESTION | {"at": "end", "stream": as_events})
    wait_for(lambda: len(stream.turns) == 1)
    connection.close()
    wait_for(lambda: stream.turns[0].answer.done)
    assert stream.turns[0].answer.finish_reason == "cancelled"
    assert stream.session.status().waiting == 0


def test_so_many_questions_may_wait_and_no_more(served: Served, pushed_id: str) -> None:
    held = [raw_ask(served, pushed_id, QUESTION | {"at": "end"}) for _ in range(16)]
    stream = served.hub.stream(pushed_id)
    wait_for(lambda: len(stream.turns) == 16)
    refused = served.http.post(f"/v1/streams/{pushed_id}/ask", json=QUESTION)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert error_of(refused)["type"] == "rate_limit_error"
    for connection in held:
        connection.close()
    wait_for(lambda: all(turn.answer.done for turn in stream.turns))
    assert served.http.post(f"/v1/streams/{pushed_id}/ask", json=QUESTION).status_code == 200


# Memory and pictures


def test_memory_in_parts_and_block_by_block(served: Served, stream_id: str) -> None:
    turn = served.http.post(f"/v1/streams/{stream_id}/ask", json=QUESTION).json()
    memory = served.http.get(f"/v1/streams/{stream_id}/memory", params={"bins": 11, "limit": 2}).json()
    assert memory["levels"] == {"detail": {"blocks": 3, "tokens": 72}}
    assert [block["start_seconds"] for block in memory["blocks"]] == [0.0, 4.0]
    assert memory["next_offset"] == 2
    rest = served.http.get(f"/v1/streams/{stream_id}/memory", params={"bins": 0, "limit": 2, "offset": 2}).json()
    assert [block["start_seconds"] for block in rest["blocks"]] == [8.0]
    assert rest["next_offset"] is None
    assert rest["bins"] == []
    assert len(memory["bins"]) == 11
    assert memory["bins"][-1]["end_seconds"] == pytest.approx(11.0)
    assert sum(part["tokens"].get("detail", 0) for part in memory["bins"]) >= 72
    assert memory["used"]["number"] == turn["number"]
    assert memory["used"]["evidence"] == turn["evidence"]


def test_bins_hold_all_tokens_whatever_the_blocks() -> None:
    spans = [Span("gist", 0.0, 100.0, 10), Span("detail", 50.0, 50.0, 4), Span("detail", 100.0, 100.0, 6)]
    bins = binned(spans, 4)
    assert [part.tokens.get("detail", 0) for part in bins] == [0, 0, 4, 6]
    assert [part.tokens["gist"] for part in bins] == [3, 3, 3, 3]  # 2.5 each, rounded up: nothing is hidden
    assert binned([], 4) == []
    assert sum(binned([Span("detail", 0.0, 0.0, 5)], 3)[0].tokens.values()) == 5


def bar_of(jpeg: bytes) -> float:
    """Where the bar of `write_video` is: the middle of what is bright."""
    image = np.asarray(Image.open(io.BytesIO(jpeg)).convert("L")).mean(axis=0)
    return float(np.flatnonzero(image > 140).mean())


@pytest.mark.parametrize(("gop", "frames"), [(1, 0), (12, 0), (30, 2)])
def test_a_files_frame_is_the_very_one_of_its_time(tmp_path: Path, gop: int, frames: int) -> None:
    path = write_video(tmp_path / "clip.mp4", seconds=6, g=gop, bf=frames)
    times = [frame.pts_seconds for frame in FileSource(path, max_side=96).frames(lambda seconds: True)]
    assert len(times) == 30
    for number in (0, 1, 7, 13, 29, 14, 2):  # in no order
        for later in (0.0, 0.15, -0.0005):
            jpeg, seconds = frame_at(path, max(0.0, times[number] + later), max_side=96)
            assert seconds == pytest.approx(times[number], abs=1e-6)
            assert bar_of(jpeg) == pytest.approx((number * 2) % 90 + 2.5, abs=1.0)
    assert frame_at(path, 1e6, max_side=96)[1] == pytest.approx(times[-1])  # the last stands for all later ones


def test_a_stream_that_does_not_begin_at_zero_tells_the_same_times(tmp_path: Path) -> None:
    late = write_video(tmp_path / "late.ts", seconds=2, rate=25, codec="mpeg2video", start_seconds=100)
    times = [frame.pts_seconds for frame in FileSource(late, max_side=96).frames(lambda seconds: True)]
    assert times[0] == 0.0
    assert len(times) == 50
    for number in (0, 1, 9, 31, 49):
        jpeg, seconds = frame_at(late, times[number], max_side=96)
        assert seconds == pytest.approx(times[number], abs=1e-4)
        assert bar_of(jpeg) == pytest.approx((number * 2) % 90 + 2.5, abs=1.5)


def test_pictures_are_of_the_file_else_of_memory(served: Served, stream_id: str, pushed_id: str) -> None:
    reply = served.http.get(f"/v1/streams/{stream_id}/frames/5.3.jpg", params={"side": 48})
    assert reply.headers["content-type"] == "image/jpeg"
    assert reply.headers["x-frame-from"] == "file"
    assert float(reply.headers["x-frame-seconds"]) == pytest.approx(5.2)
    assert "max-age" in reply.headers["cache-control"]
    assert "private" in reply.headers["cache-control"]
    assert max(Image.open(io.BytesIO(reply.content)).size) == 48
    none = served.http.get(f"/v1/streams/{pushed_id}/frames/5.jpg")
    assert none.status_code == 404
    assert "no picture yet" in error_of(none)["message"]
    source = served.hub.stream(pushed_id).source
    for second in range(8):
        source.push(np.full((64, 96, 3), 20 * second, np.uint8), float(second))
    served.http.post(f"/v1/streams/{pushed_id}/ask", json=QUESTION)
    reply = served.http.get(f"/v1/streams/{pushed_id}/frames/5.jpg")
    assert reply.headers["x-frame-from"] == "memory"
    assert abs(float(reply.headers["x-frame-seconds"]) - 5) <= 3


def test_a_file_that_is_gone_leaves_what_memory_has(served: Served, tmp_path: Path) -> None:
    path = write_video(tmp_path / "gone.mp4")
    stream_id = served.open(path)
    served.http.post(f"/v1/streams/{stream_id}/ask", json=QUESTION)
    path.unlink()
    assert served.http.get(f"/v1/streams/{stream_id}/frames/5.jpg").headers["x-frame-from"] == "memory"
    served.close_all()


# Memories


def test_a_memory_is_kept_listed_renamed_resumed_and_deleted(served: Served, video: Path) -> None:
    stream_id = served.open(video, keep=True, title="Hall")
    said = served.http.post(f"/v1/streams/{stream_id}/ask", json=QUESTION).json()["answer"]
    served.http.delete(f"/v1/streams/{stream_id}")
    [kept] = served.http.get("/v1/memories").json()["data"]
    assert (kept["id"], kept["title"], kept["is_open"], kept["questions"]) == (stream_id, "Hall", False, 1)
    assert kept["seconds"] == 11.0
    assert served.http.patch(f"/v1/memories/{stream_id}", json={"title": "Cellar"}).status_code == 204
    reply = served.http.post(f"/v1/memories/{stream_id}/resume")
    assert reply.status_code == 201
    assert (reply.json()["id"], reply.json()["title"], reply.json()["questions"]) == (stream_id, "Cellar", 1)
    [old] = served.http.get(f"/v1/streams/{stream_id}/turns").json()["data"]
    assert (old["answer"], old["asked_at"]) == (said, None)
    assert all(evidence["score"] is None for evidence in old["evidence"])
    again = served.http.post(f"/v1/memories/{stream_id}/resume")
    assert again.status_code == 409
    assert served.http.get("/v1/memories").json()["data"][0]["is_open"] is True
    assert served.http.delete(f"/v1/memories/{stream_id}").json()["deleted"] is True
    assert served.http.get("/v1/memories").json()["data"] == []
    assert served.http.get(f"/v1/streams/{stream_id}").status_code == 404


def test_a_memory_may_be_asked_alone(served: Served, video: Path) -> None:
    stream_id = served.open(video, keep=True)
    said = served.http.post(f"/v1/streams/{stream_id}/ask", json=QUESTION).json()["answer"]
    served.http.delete(f"/v1/streams/{stream_id}")
    reply = served.http.post(f"/v1/memories/{stream_id}/resume", json={"source": ""}).json()
    assert (reply["state"], reply["has_file"]) == ("memory", False)
    assert served.http.post(f"/v1/streams/{stream_id}/ask", json=QUESTION).json()["answer"] == said
    assert served.http.get(f"/v1/streams/{stream_id}/frames/5.jpg").headers["x-frame-from"] == "memory"
    served.http.delete(f"/v1/memories/{stream_id}")


# Uploads


@pytest.mark.parametrize("way", ["form", "raw"])
def test_a_video_is_uploaded_and_watched(served: Served, video: Path, way: str) -> None:
    data = video.read_bytes()
    if way == "form":
        reply = served.http.post("/v1/uploads", files={"file": ("my clip.mp4", data, "video/mp4")})
    else:
        headers = {"content-type": "video/mp4"}
        reply = served.http.post("/v1/uploads", params={"name": "my clip.mp4"}, content=data, headers=headers)
    assert reply.status_code == 201, reply.text
    assert reply.json()["bytes"] == len(data)
    stream_id = served.open(reply.json()["source"])
    assert served.http.post(f"/v1/streams/{stream_id}/ask", json=QUESTION).json()["snapshot_seconds"] == 11.0
    served.close_all()


def test_uploads_that_will_not_do_are_refused(served: Served) -> None:
    large = served.http.post("/v1/uploads", content=b"x" * (3 << 20))
    assert large.status_code == 413
    assert "1 MiB" in error_of(large)["message"]
    assert served.http.post("/v1/uploads", content=b"no video at all").status_code == 415
    form = served.http.post("/v1/uploads", files={"other": ("a.mp4", b"x")})
    assert form.status_code == 400
    assert error_of(form)["param"] == "file"


# What is refused


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "param", "words"),
    [
        ("POST", "/v1/streams", {"source": 3}, 422, "source", "valid string, got 3"),
        ("POST", "/v1/streams", {}, 422, "source", "source is missing"),
        ("POST", "/v1/streams", {"source": "a", "sauce": 1}, 422, "sauce", "not known here"),
        ("POST", "/v1/streams", {"source": "no such file"}, 404, None, "no file no such file"),
        ("POST", "/v1/streams", {"source": "http:" + "//a/b"}, 400, None, "not supported"),
        ("POST", "/v1/streams", {"source": "{video}", "model": "x"}, 400, None, "model must be one of tiny"),
        ("POST", "/v1/streams", {"source": "{video}", "preset": "x"}, 400, None, "a preset must be one of"),
        ("POST", "/v1/streams", {"source": "{video}", "title": " "}, 400, None, "a title has 1 to 100"),
        ("POST", "/v1/streams", {"source": "{video}", "fps": 0}, 422, "fps", "greater than 0"),
        ("PATCH", "/v1/streams/{id}", {}, 400, None, "nothing to change"),
        ("GET", "/v1/streams/zz", None, 404, None, "no open stream 'zz'"),
        ("DELETE", "/v1/memories/zz", None, 404, None, "no stream or memory 'zz'"),
        ("POST", "/v1/streams/{id}/ask", {"question": ""}, 422, "question", "at least 1 character"),
        ("POST", "/v1/streams/{id}/ask", {"question": "  "}, 400, None, "the question is empty"),
        ("POST", "/v1/streams/{id}/ask", QUESTION | {"at": "99:99"}, 422, "at", "not a time"),
        ("POST", "/v1/streams/{id}/ask", QUESTION | {"at": "soon"}, 422, "at", "at"),
        ("POST", "/v1/streams/{id}/ask", QUESTION | {"at": -1}, 422, "at", "greater than or equal to 0"),
        ("POST", "/v1/streams/{id}/ask", QUESTION | {"max_tokens": 100_000}, 400, None, "at most 256"),
        ("POST", "/v1/streams/{id}/ask", QUESTION | {"choices": ["one"]}, 400, None, "2 to 26 options"),
        ("POST", "/v1/streams/{id}/ask", QUESTION | {"temperature": "hot"}, 422, "temperature", "valid number"),
        ("GET", "/v1/streams/{id}/frames/nan.jpg", None, 422, "seconds", "finite"),
        ("GET", "/v1/streams/{id}/frames/-1.jpg", None, 422, "seconds", "greater than or equal to 0"),
        ("GET", "/v1/streams/{id}/memory?bins=1000000", None, 422, "bins", "less than or equal to 2000"),
        ("GET", "/v1/nothing", None, 404, None, "nothing at /v1/nothing"),
        ("PUT", "/v1/streams", {}, 405, None, "only DELETE, GET, POST"),
    ],
)
def test_what_is_refused_is_refused_in_one_sentence(
    served: Served, stream_id: str, video: Path, method, path, body, status, param, words
) -> None:
    text = json.dumps(body).replace("{video}", str(video)) if body is not None else None
    headers = {"content-type": "application/json"}
    reply = served.http.request(method, path.replace("{id}", stream_id), content=text, headers=headers)
    assert reply.status_code == status, reply.text
    error = error_of(reply)
    assert error["param"] == param
    assert words in error["message"]
    assert len(served.hub.streams()) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b'{"question": NaN}', b'{"question": "a", "at": NaN}', b'{"question": "a", "at": 1e999}',
        b'{"question": "\\ud800"}', b'"question"', b"\xff\xfe", b'{"question": "a", "seed": 1e30}', b"[" * 100_000,
    ],
)  # fmt: skip
def test_bodies_that_are_no_question_are_refused(served: Served, stream_id: str, content: bytes) -> None:
    headers = {"content-type": "application/json"}
    reply = served.http.post(f"/v1/streams/{stream_id}/ask", content=content, headers=headers)
    assert reply.status_code in (400, 422), reply.text
    assert error_of(reply)["type"] == "invalid_request_error"


def test_addresses_show_no_password(served: Served) -> None:
    stream_id = served.open("rtsp://me:hunter2@127.0.0.1:9/door")
    for path in ("/v1/streams", f"/v1/streams/{stream_id}", "/metrics", "/v1/models"):
        assert "hunter2" not in served.http.get(path).text
    served.close_all()


# The server itself


def test_health_and_readiness(tmp_path: Path, video: Path) -> None:
    with serve(make_hub(tmp_path / "memories")) as served:
        assert served.http.get("/healthz").json() == {"status": "ok"}
        loading = served.http.get("/readyz")
        assert (loading.status_code, loading.json()) == (503, {"status": "loading"})
        stream_id = served.open(video)
        assert served.http.get("/readyz").status_code == 200
        served.hub.stop()
        assert served.http.get("/readyz").json() == {"status": "stopping"}
        assert served.http.get("/healthz").status_code == 200
        for path, body in ((f"/v1/streams/{stream_id}/ask", QUESTION), ("/v1/streams", {"source": str(video)})):
            refused = served.http.post(path, json=body)
            assert refused.status_code == 503
            assert "retry-after" in refused.headers
            assert "stopping" in error_of(refused)["message"]


def metric(text: str, name: str, **labels: str) -> float | None:
    """The value of a sample."""
    for line in text.splitlines():
        head, _, value = line.rpartition(" ")
        if head.split("{")[0] == name and all(f'{key}="{given}"' in head for key, given in labels.items()):
            return float(value)
    return None


def test_metrics_count_questions_wherever_they_are_asked(served: Served, stream_id: str) -> None:
    before = metric(served.http.get("/metrics").text, "vstream_questions_total", outcome="stop") or 0.0
    served.http.post(f"/v1/streams/{stream_id}/ask", json=QUESTION)
    served.hub.stream(stream_id).ask("and now?").answer.wait(60)  # as the page does
    served.http.get("/v1/streams/made-up-by-a-client")
    time.sleep(0.6)
    text = served.http.get("/metrics").text
    assert metric(text, "vstream_questions_total", outcome="stop") == before + 2
    assert metric(text, "vstream_ttft_seconds_count") >= before + 2
    assert metric(text, "vstream_tokens_total", kind="prompt") > 100
    assert metric(text, "vstream_stream_frames_total", stream=stream_id, fate="encoded") == 12
    assert metric(text, "vstream_stream_blocks", stream=stream_id, level="detail") == 3
    assert metric(text, "vstream_stream_bytes", stream=stream_id, tier="disk") > 0
    assert metric(text, "vstream_requests_total", route="/v1/streams/{stream_id}", status="404") >= 1
    assert "made-up-by-a-client" not in text
    assert metric(text, "vstream_stream_lag_seconds", stream=stream_id) is not None
    served.close_all()
    assert stream_id not in served.http.get("/metrics").text


def test_the_documentation_loads_nothing_from_elsewhere(served: Served) -> None:
    page = served.http.get("/docs")
    assert page.status_code == 200
    assert "//" not in page.text.replace("<!DOCTYPE html>", "")
    for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"):
        assert served.http.get(f"/docs/assets/{name}").status_code == 200
        assert name in page.text
    schema = served.http.get("/openapi.json").json()
    for path, routes in schema["paths"].items():
        for method, route in routes.items():
            for status, response in route["responses"].items():
                if path.startswith("/v1") and status[0] in "45":
                    model = response["content"]["application/json"]["schema"]["$ref"]
                    assert model.endswith("/Refusal"), f"{method} {path} {status}"


def test_a_page_on_all_paths_leaves_the_api_its_own(tmp_path: Path) -> None:
    app = build_app(make_hub(tmp_path / "memories"))
    app.get("/v1/later")(lambda: {"said": "later"})  # routes of the page's come after the app is built
    page = FastAPI()
    page.get("/{rest:path}")(lambda rest: {"page": rest})
    app.mount("/", page)
    with TestClient(app) as http:
        assert http.get("/").json() == {"page": ""}
        assert http.get("/v1/later").json() == {"said": "later"}
        assert http.get("/v1/streams").json()["data"] == []
        assert "nothing at /v1/streams/a/b" in error_of(http.get("/v1/streams/a/b"))["message"]
        refused = http.put("/v1/streams")
        assert (refused.status_code, refused.headers["allow"]) == (405, "DELETE, GET, POST")
        assert "only DELETE, GET, POST" in error_of(refused)["message"]


@pytest.mark.parametrize(
    ("content", "kind", "sentence"),
    [
        ("[" * 100_000, "application/json", "the body is not JSON that can be read; send UTF-8"),
        (b'{"source": "\xff"}', "application/json", "the body is not JSON that can be read; send UTF-8"),
        (b"{}", "text/plain", "the body must be JSON, sent with content-type: application/json"),
    ],
)
def test_bodies_that_cannot_be_read_are_told_in_words(served: Served, content, kind: str, sentence: str) -> None:
    reply = served.http.post("/v1/streams", content=content, headers={"content-type": kind})
    assert reply.status_code in (400, 422)
    assert sentence in reply.json()["error"]["message"]


def test_a_full_disk_is_told_without_the_servers_folders(
    served: Served, video: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path))

    monkeypatch.setattr(Library, "write", full)
    reply = served.http.post("/v1/streams", json={"source": str(video)})
    assert reply.status_code == 507
    assert reply.json()["error"]["message"] == "the server's disk is full; delete memories that are not needed"


def test_a_memory_of_another_server_is_told_as_that(served: Served, video: Path, tmp_path: Path) -> None:
    stream_id = served.open(video, keep=True)
    served.http.post(f"/v1/streams/{stream_id}/ask", json=QUESTION)
    other = make_hub(served.hub._library._root)
    with serve(other) as second:
        for reply in (
            second.http.post(f"/v1/memories/{stream_id}/resume", json={"source": str(video)}),
            second.http.delete(f"/v1/memories/{stream_id}"),
        ):
            assert reply.status_code == 409
            assert reply.json()["error"]["message"] == "another server has this memory open; close it there first"
    served.http.delete(f"/v1/memories/{stream_id}")
