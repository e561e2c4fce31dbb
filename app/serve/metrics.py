"""For Prometheus and for supervisors: /metrics, /healthz, /readyz."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse

from vstream.app.serve import records
from vstream.app.serve.hub import Hub

router = APIRouter()


@router.get("/healthz", tags=["server"])
async def healthz() -> records.Health:
    """The process lives."""
    return records.Health(status="ok")


@router.get("/readyz", tags=["server"], responses={503: {"model": records.Health}})
async def readyz(request: Request) -> JSONResponse:
    """The default model is loaded, and questions are taken."""
    hub: Hub = request.app.state.hub
    status = "ok" if hub.ready else "stopping" if hub.stopping else "loading"
    return JSONResponse({"status": status}, 200 if hub.ready else 503)


def install(app: FastAPI, hub: Hub) -> None:
    """Nothing yet."""
