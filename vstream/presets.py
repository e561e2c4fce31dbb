"""Presets: published rules of streaming memory by name, as settings of `Config`: one model runs them side by side.

Each reproduces its rule within vstream's own machine (clips become blocks, positions are contiguous, retrieval has a
token budget), not its authors' code, nor that code's mistakes. What differs is said with each. This module knows
nothing of models beyond a few sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vstream.models.base import Adapter

LAST_FRAMES = 4
EVERYTHING = 1 << 40  # bytes


@dataclass(frozen=True)
class Sizes:
    """What presets need to know.

    Attributes:
        last_tokens: of the last `LAST_FRAMES` frames, at most.
        max_positions: of the model.
        window_tokens, retrieve_tokens, gist_tokens: as the model's own settings or the defaults have them.
    """

    last_tokens: int
    max_positions: int
    window_tokens: int
    retrieve_tokens: int
    gist_tokens: int

    @property
    def past_tokens(self) -> int:
        """All that may be brought back."""
        return self.retrieve_tokens + self.gist_tokens


Settings = dict[str, Any]


def _default(sizes: Sizes) -> Settings:
    """Ours: detail, digests and gists of four bits a number, the best of the shares tried in the lab."""
    codecs = dict.fromkeys(("detail_codec", "digest_codec", "gist_codec"), "int4")
    return {"digest_share": 0.8, "gist_share": 0.05, **codecs, **_one_shelf(sizes)}


def _full(sizes: Sizes) -> Settings:
    """Everything stays: as much of the stream as the model has positions for is shown, most recent first.

    The upper bound for what memory can know, and what 100% of the bytes means.
    """
    rest = sizes.max_positions - 2 * sizes.window_tokens - 1024
    return {"consolidation": "recent", "policy": "recent", "retrieve_tokens": max(sizes.past_tokens, rest)}


def _oracle(sizes: Sizes) -> Settings:
    """Everything is kept, and the truth chooses what is shown. Who asks sets the evidence."""
    return {"consolidation": "recent", "policy": "oracle", **_one_shelf(sizes)}


def _last_frames(sizes: Sizes) -> Settings:
    """The last four frames, no memory (SimpleStream, arXiv 2604.02317)."""
    return {**_no_past(), "window_tokens": sizes.last_tokens, "clip_frames": LAST_FRAMES}


def _sink_window(sizes: Sizes) -> Settings:
    """Sink and recent window, no memory (StreamingLLM, arXiv 2309.17453; StreamingVLM, 2510.09608)."""
    return _no_past()


def _uniform(sizes: Sizes) -> Settings:
    """Frames spread evenly over the past.

    Published baselines encode those frames anew at each question; here they stay as they were encoded.
    """
    return {"consolidation": "uniform", "policy": "uniform", **_one_shelf(sizes)}


def _rekv(sizes: Sizes) -> Settings:
    """Each layer brings back what its own query scores highest, and sees no recent window (ReKV, arXiv 2503.00540).

    There a block is one frame and nothing ever leaves; here a block is a clip, and the oldest leave first.
    """
    return {**_rekv_window(sizes), "answer_window": False}


def _rekv_window(sizes: Sizes) -> Settings:
    """ReKV, with the recent window always in the answer."""
    return {"consolidation": "recent", "policy": "rekv", "selection": "per-layer", **_one_shelf(sizes)}


def _pmb(sizes: Sizes) -> Settings:
    """Three tiers of frames of ever fewer tokens (VideoChat-Online, arXiv 2501.00584): see `levels.py`.

    There all of memory is shown; here what is asked for, within the budget of all others.
    """
    return {"consolidation": "pmb", **_one_shelf(sizes)}


def _star(sizes: Sizes) -> Settings:
    """Weighted clusters behind the window (Flash-VStream, arXiv 2406.08085): see `levels.py`."""
    return {"consolidation": "star", **_one_shelf(sizes)}


def _carrier(sizes: Sizes) -> Settings:
    """One token a frame behind the window (VideoScan, arXiv 2503.09387): see `levels.py`."""
    return {"consolidation": "carrier", **_one_shelf(sizes)}


def _infinipot(sizes: Sizes) -> Settings:
    """Half of the tokens, again and again (InfiniPot-V, arXiv 2506.15745): see `levels.py`."""
    return {"consolidation": "infinipot", **_one_shelf(sizes)}


def _no_past() -> Settings:
    return {"consolidation": "recent", "retrieve_tokens": 0, "gist_tokens": 0}


def _one_shelf(sizes: Sizes) -> Settings:
    return {"retrieve_tokens": sizes.past_tokens, "gist_tokens": 0}


PRESETS: dict[str, Callable[[Sizes], Settings]] = {
    "default": _default, "full": _full, "oracle": _oracle, "last-frames": _last_frames, "uniform": _uniform,
    "sink-window": _sink_window, "rekv": _rekv, "rekv+window": _rekv_window, "pmb": _pmb, "star": _star,
    "carrier": _carrier, "infinipot": _infinipot,
}  # fmt: skip
"""Settings by name, given a model's sizes."""

SESSION_PRESETS = tuple(name for name in PRESETS if name != "oracle")
"""Those that need not know the truth."""


def check_preset(name: str) -> None:
    """Raises `ValueError` for a name that is no preset, or one that only who knows the truth can use."""
    if name not in SESSION_PRESETS:
        raise ValueError(f"a preset must be one of {', '.join(SESSION_PRESETS)}, got {name!r}")


def preset_settings(name: str, adapter: Adapter, settings: Mapping[str, Any] | None = None) -> Settings:
    """All settings of a session: the model's own, then the preset's, then those given.

    Raises:
        ValueError: for a name that is none.
    """
    from vstream.config import Config

    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
    own = {**adapter.settings, **(settings or {})}
    config = Config(**own)
    sizes = Sizes(
        adapter.most_tokens(LAST_FRAMES), adapter.max_positions, config.window_tokens, config.retrieve_tokens,
        config.gist_tokens,
    )  # fmt: skip
    return {**adapter.settings, **PRESETS[name](sizes), **(settings or {})}
