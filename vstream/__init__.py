"""vstream: watches video for hours within a fixed memory budget and answers questions about it at any moment.

    from vstream import Engine
    engine = Engine.load("embedded")
    session = engine.open("clip.mp4")
    print(session.ask("What is shown?").text())

The public names are resolved on first use, so that `vstream.kernels` and `vstream.memory` import with torch alone.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vstream.answer import Answer, Evidence
    from vstream.config import Config, DecodeOptions
    from vstream.engine import Engine
    from vstream.session import Session
    from vstream.sources import PushSource
    from vstream.standing import Alert, AlertOptions, Event
    from vstream.types import Frame

__version__ = "0.1.0"
__all__ = [
    "Alert",
    "AlertOptions",
    "Answer",
    "Config",
    "DecodeOptions",
    "Engine",
    "Event",
    "Evidence",
    "Frame",
    "PushSource",
    "Session",
]

_OWNER = {
    "Alert": "standing",
    "AlertOptions": "standing",
    "Answer": "answer",
    "Config": "config",
    "DecodeOptions": "config",
    "Engine": "engine",
    "Event": "standing",
    "Evidence": "answer",
    "Frame": "types",
    "PushSource": "sources",
    "Session": "session",
}


def __getattr__(name: str) -> Any:
    if name not in _OWNER:
        raise AttributeError(f"module 'vstream' has no attribute {name!r}")
    return getattr(importlib.import_module(f"vstream.{_OWNER[name]}"), name)
