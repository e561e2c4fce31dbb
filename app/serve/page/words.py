"""What the page's words mean, in a few more words. Knows nothing of HTML, streams or Gradio."""

from __future__ import annotations

from functools import cache

from vstream.app.info import models_info

LEVELS = {
    "window": "the newest frames, always seen",
    "detail": "every token kept",
    "digest": "condensed",
    "gist": "a frame for many",
    "open": "frames so new that they were not in memory yet",
}
TIERS = {
    "device": "memory of the device that the model runs on",
    "host": "main memory of the server",
    "disk": "the memory's folder on the server's disk",
}
OWN_PRESET = "the model's own"
PRESETS = {
    "": "what the model was tuned with",
    "default": "four bits, fades slowly: 23 % of the bytes",
    "full": "everything stays, for comparison",
    "last-frames": "the last four frames and no memory, for comparison",
}
OTHER_PRESETS = "a published rule, for comparison"


def preset_about(name: str) -> str:
    """What a way to remember is; "" is the model's own."""
    return PRESETS.get(name, OTHER_PRESETS)


@cache
def model_about(name: str) -> str:
    """What a model is and can do; "" for one that is not known by its name, such as a checkpoint."""
    found = next((str(model["description"]) for model in models_info() if model["name"] == name), "")
    return f"{found[:1].upper()}{found[1:].removesuffix('.')}." if found else ""
