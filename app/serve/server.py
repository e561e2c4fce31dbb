"""The app: every route on one port, put together. Knows nothing of what the routes do, nor of who may use them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI

from vstream.app.serve import alerts_api, api, docs, errors, metrics, openai_api, push, uploading
from vstream.app.serve.stopping import Stopping

if TYPE_CHECKING:
    from vstream.app.serve.allowed import SourcePolicy
    from vstream.app.serve.hub import Hub
    from vstream.app.serve.uploads import Uploads

DESCRIPTION = """Watches video and answers questions about it. Open a stream, ask it, close it:

    POST /v1/streams {"source": "sample"}
    POST /v1/streams/ID/ask {"question": "What happens?"}

Or with any OpenAI client: model `stream:ID`, the last user message is the question."""


def build_app(
    hub: Hub, *, policy: SourcePolicy | None = None, uploads: Uploads | None = None, stopping: Stopping | None = None
) -> FastAPI:
    """The API and its documentation: what the gate stands before, and the page is mounted on.

    Args:
        hub: what is served; closing it is the caller's business.
        policy: says which sources are allowed; the hub asks it, here it is only told of.
        uploads: takes files in; None takes none.
        stopping: tells endless responses to end; one of its own unless given.
    """
    app = FastAPI(title="vstream", description=DESCRIPTION, docs_url=None, redoc_url=None, version="1")
    app.state.hub, app.state.policy, app.state.uploads, app.state.stopping = (
        hub,
        policy,
        uploads,
        stopping or Stopping(),
    )
    errors.install(app)
    app.include_router(api.router)
    app.include_router(alerts_api.router)
    app.include_router(push.router)
    app.include_router(uploading.router)
    app.include_router(openai_api.router)
    app.include_router(metrics.router)
    docs.install(app)
    metrics.install(app, hub)
    return app
