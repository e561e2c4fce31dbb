"""Every setting of a session, with its default, in one place. Only the session unpacks it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

MIB = 1 << 20
DEFAULT_DISK_BYTES = 4096 * MIB  # of a memory that is kept, unless said otherwise
MAX_FPS = 1000.0
CodecName = Literal["none", "int8", "int4"]


@dataclass(frozen=True, kw_only=True)
class DecodeOptions:
    """How an answer is generated.

    Attributes:
        max_tokens: at most so many tokens.
        temperature: 0 is greedy.
        top_p: nucleus sampling keeps the likeliest tokens that make up this probability.
        seed: of the sampling.
        stop: the answer ends before any of these strings.
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check(_is_whole(self.max_tokens, 1), "max_tokens", self.max_tokens, "a whole number >= 1")
        _check(0 <= self.temperature < float("inf"), "temperature", self.temperature, "a number >= 0")
        _check(0 < self.top_p <= 1, "top_p", self.top_p, "a number in (0, 1]")
        _check(_is_whole(self.seed, 0) and self.seed < 2**63, "seed", self.seed, "a whole number from 0 to 2**63 - 1")
        several = isinstance(self.stop, tuple) and all(isinstance(stop, str) and stop for stop in self.stop)
        _check(several, "stop", self.stop, "a tuple of strings that are not empty")


@dataclass(frozen=True, kw_only=True)
class Config:
    """How a stream is watched, remembered and asked.

    Attributes:
        fps: frames sampled per second of stream, None for every frame.
        clip_frames: frames encoded together; one clip becomes one block.
        window_tokens: the most recent tokens, kept hot and always seen by answers.
        retrieve_tokens: tokens of the past brought back for a question.
        gist_tokens: tokens of the condensed past shown to a question; with 0, it competes with detail.
        policy: how blocks are scored, see `vstream.memory.policies`.
        retrieve_neighbours: so many blocks before and after a chosen one are brought back with it, within the budget.
        selection: one choice of blocks for all layers, or each layer's own.
        positions: blocks placed right before the window, or where they were when encoded (of use only while the stream
            is shorter than the model's trained length).
        device_bytes, host_bytes, disk_bytes: budgets of the blocks kept on each tier. The hot window is bounded by
            `window_tokens`, and running answers by `answer_bytes`; reports of device bytes include both.
        answer_window: whether answers see the recent window. Without it they see sink and memory alone, as ReKV's do.
        consolidation: how memory fades, see `vstream.memory.levels`.
        alert_share: of the time that a live or paced stream takes, what standing questions may take together.
        decode_steps: tokens of every running answer before a waiting clip is served.
        answer_bytes: budget of running answers' own keys and values; more questions than fit wait.
        digest_share: part of the memory kept for the middle level, where a block keeps a third of its tokens,
            or as many as take no more room.
        gist_share: part of the memory kept for the last level, blocks of one short frame that merge for ever.
        gist_vision_tokens: vision tokens of a condensed block.
        detail_codec, digest_codec, gist_codec: how keys and values of a level are stored, see `vstream.memory.codec`.
        max_queue_frames: frames that may wait to be encoded.
        queue_policy: what happens when they are more: the reader waits, or the oldest are dropped.
        realtime: files are paced by their own clock.
        skip_duplicates: a frame in which no part changed by more than this, of 255, since the last one encoded of its
            clip is not encoded; None encodes all.
        drop_similarity: a vision token whose features have a cosine above this to the same patch of its clip, when that
            last was new, is left out; None leaves none out.
        scene_cut: a clip ends where the picture changes on average by so much more, of 255, than it has changed since
            the clip began; None looks for no cuts.
        max_question_tokens: longer questions are refused.
        max_answer_tokens: the most an answer may ask for.
        dialogue: whether a question is asked with earlier ones and their answers before it, as a conversation. It then
            waits for the answers before it.
        dialogue_tokens: the most that these may take; the oldest are left out first.
    """

    fps: float | None = 1.0
    clip_frames: int = 4
    window_tokens: int = 256
    retrieve_tokens: int = 256
    gist_tokens: int = 64
    policy: str = "maxsim"
    retrieve_neighbours: int = 0
    selection: Literal["shared", "per-layer"] = "shared"
    positions: Literal["contiguous", "original"] = "contiguous"
    device_bytes: int = 64 * MIB
    host_bytes: int = 512 * MIB
    disk_bytes: int = 0
    answer_bytes: int = 1024 * MIB
    answer_window: bool = True
    consolidation: str = "pyramid"
    digest_share: float = 0.0
    gist_share: float = 0.125
    gist_vision_tokens: int = 4
    detail_codec: CodecName = "none"
    digest_codec: CodecName = "none"
    gist_codec: CodecName = "none"
    max_queue_frames: int = 64
    queue_policy: Literal["block", "drop-oldest"] = "block"
    realtime: bool = False
    skip_duplicates: float | None = None
    drop_similarity: float | None = None
    scene_cut: float | None = None
    alert_share: float = 0.25
    decode_steps: int = 8
    max_question_tokens: int = 512
    max_answer_tokens: int = 256
    dialogue: bool = False
    dialogue_tokens: int = 256
    decode: DecodeOptions = field(default_factory=DecodeOptions)

    @property
    def earlier_tokens(self) -> int:
        """What earlier turns may take before a question; none without a dialogue."""
        return self.dialogue_tokens if self.dialogue else 0

    def __post_init__(self) -> None:
        if self.fps is not None:
            _check(0 < self.fps <= MAX_FPS, "fps", self.fps, f"a number > 0 and <= {MAX_FPS:g}")
        for name in _POSITIVE:
            _check(_is_whole(getattr(self, name), 1), name, getattr(self, name), "a whole number >= 1")
        for name in _NOT_NEGATIVE:
            _check(_is_whole(getattr(self, name), 0), name, getattr(self, name), "a whole number >= 0")
        _check(0 < self.gist_share < 1, "gist_share", self.gist_share, "a number in (0, 1)")
        fits = 0 <= self.digest_share < 1 - self.gist_share
        _check(fits, "digest_share", self.digest_share, "a number >= 0 and less than 1 - gist_share")
        _check(0 < self.alert_share <= 1, "alert_share", self.alert_share, "a number > 0 and <= 1")
        few = _is_whole(self.gist_vision_tokens, 1) and self.gist_vision_tokens <= 64
        _check(few, "gist_vision_tokens", self.gist_vision_tokens, "a whole number from 1 to 64")
        _check(
            self.max_queue_frames >= self.clip_frames,
            "max_queue_frames",
            self.max_queue_frames,
            f"at least clip_frames ({self.clip_frames})",
        )
        for name, (is_allowed, what) in _OPTIONAL.items():
            value = getattr(self, name)
            _check(value is None or is_allowed(value), name, value, f"{what}, or None")
        for name, allowed in _CHOICES.items():
            _check(getattr(self, name) in allowed, name, getattr(self, name), f"one of {', '.join(allowed)}")


_POSITIVE = (
    "clip_frames",
    "decode_steps",
    "window_tokens",
    "max_queue_frames",
    "max_question_tokens",
    "max_answer_tokens",
    "dialogue_tokens",
)
_NOT_NEGATIVE = (
    "retrieve_tokens",
    "retrieve_neighbours",
    "gist_tokens",
    "answer_bytes",
    "device_bytes",
    "host_bytes",
    "disk_bytes",
)
_OPTIONAL: dict[str, tuple[Callable[[float], bool], str]] = {
    "skip_duplicates": (lambda value: 0 <= value < 255, "a number >= 0 and < 255"),
    "drop_similarity": (lambda value: -1 <= value < 1, "a number >= -1 and < 1"),
    "scene_cut": (lambda value: 0 < value < 255, "a number > 0 and < 255"),
}
_CHOICES = {
    "selection": ("shared", "per-layer"),
    "positions": ("contiguous", "original"),
    "queue_policy": ("block", "drop-oldest"),
    **dict.fromkeys(("detail_codec", "digest_codec", "gist_codec"), get_args(CodecName)),
}


def _check(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
