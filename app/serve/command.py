"""`vstream serve`: puts the parts together, and runs them. Each part is told what it needs, and knows no other."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from vstream.app.serve.options import ServeOptions

if TYPE_CHECKING:
    from fastapi import FastAPI

    from vstream.app.serve.hub import Hub

NEEDED = ("fastapi", "fastapi_offline", "uvicorn", "websockets", "gradio", "prometheus_client", "multipart")
DEFAULT_MODEL = "embedded"
NO_CHOICE = ("random",)
"""Models that say nothing anybody wants to hear: on the page only where they are asked for."""
MAX_STREAMS = 64
UPLOAD_HOURS, UPLOADS_AT_ONCE = 12.0, 4


def serve(options: ServeOptions) -> int:
    """Serves until it is stopped; the exit code.

    Raises:
        ValueError: for an option that will not do, or a model that cannot be served.
        RuntimeError: if the port is taken, or packages of the extra `app` are missing.
    """
    _check_packages()
    if options.memories is not None and options.memories == Path():
        raise ValueError("--memories is empty; give a folder, or leave it out")
    _tell("starting (some seconds, the first time more)")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported; nothing is sent anywhere
    from vstream.app.serve.listening import listen
    from vstream.app.serve.serving import run
    from vstream.app.watching import quieten

    quieten()
    options.loading()  # refuses what will not do before anything slow
    options.check_delivery()
    hub_options = options.settings(_memories(options))
    listener = listen(options)
    try:
        hub, app = _build(options, hub_options)
        _tell("loading the model")
        hub.engine()
        _tell(f"memories are kept in {_memories(options)}")
        app.state.stopping.when_set(hub.stop)
        run(app, listener, hub.close)
        _tell(f"stopped; memories stay in {_memories(options)}")
    finally:
        listener.socket.close()
    return 0


def _build(options: ServeOptions, settings: dict[str, object]) -> tuple[Hub, FastAPI]:
    """The hub, and the app around it."""
    import torch

    from vstream.app.output import PictureFolder
    from vstream.app.serve.allowed import SourcePolicy
    from vstream.app.serve.hub import Hub
    from vstream.app.serve.library import Library
    from vstream.app.serve.page.page import mount_page
    from vstream.app.serve.server import build_app
    from vstream.app.serve.stopping import Stopping
    from vstream.app.serve.uploads import Uploads

    if not 1 <= options.max_streams <= MAX_STREAMS:
        raise ValueError(f"--max-streams must be a whole number from 1 to {MAX_STREAMS}, got {options.max_streams}")
    torch.set_num_threads(options.threads or os.cpu_count() or 1)
    root = _memories(options)
    library = Library(root / "streams")

    def in_use() -> Collection[Path]:
        kept = [Path(one.card.source) for one in library.memories()]
        return [*kept, *(stream.file for stream in hub.streams() if stream.file)]

    uploads = Uploads(
        root / "uploads",
        max_mib=options.max_upload_mib,
        max_hours=UPLOAD_HOURS,
        budget_mib=UPLOADS_AT_ONCE * options.max_upload_mib,
        in_use=in_use,
    )
    policy = SourcePolicy(options.allow or (), uploads.folder)
    hub = Hub(
        lambda source, max_side: policy.open(source, max_side=max_side),
        library,
        models=_models(options.model or DEFAULT_MODEL),
        loading=options.loading(),
        settings=settings,
        preset=options.preset,
        max_streams=options.max_streams,
        delivery=options.delivery(PictureFolder(None), root, told=_tell),
    )
    app = build_app(hub, policy=policy, uploads=uploads, stopping=Stopping())
    mount_page(app, hub, policy, uploads)
    return hub, app


def _models(first: str) -> tuple[str, ...]:
    """What may be chosen on the page: what was asked for, and whatever is installed."""
    from vstream.app.info import models_info

    others = [one["name"] for one in models_info() if one["installed"] and one["name"] not in (first, *NO_CHOICE)]
    return (first, *others)


def _memories(options: ServeOptions) -> Path:
    from platformdirs import user_data_path

    return options.memories or user_data_path("vstream", appauthor=False)


def _check_packages() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise RuntimeError(
            f"vstream serve needs the extra `app`, of which {', '.join(missing)} is missing: "
            "pip install 'vstream[app]' (in a checkout: pip install -e '.[app]')"
        )


def _tell(line: str) -> None:
    print(f"vstream: {line}", file=sys.stderr, flush=True)
