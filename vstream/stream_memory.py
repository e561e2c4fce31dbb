"""StreamMemory: all that is kept of one stream while it is watched, and how it comes back after a restart.

Sink and window in the cache, blocks in the pyramid: one commit keeps them together. This module knows nothing of
sources, threads or answers' texts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vstream.clip_block import make_block, typical_frame
from vstream.memory.block import lead_tokens
from vstream.memory.levels import Room, make_levels
from vstream.memory.pyramid import Pyramid
from vstream.memory.store import BlockStore
from vstream.picture import MAX_BYTES
from vstream.remembered import Remembered
from vstream.types import Clip, Gap, TokenSpan

if TYPE_CHECKING:
    from vstream.answer import Answer
    from vstream.config import Config
    from vstream.memory.block import Block
    from vstream.models.base import Adapter
    from vstream.reduction import Looked
    from vstream.sampling import Counters

KEPT_GAPS = 100


class StreamMemory(Remembered):
    """The memory of a stream that is being watched: the one that writes it. Dialogue is kept with every commit."""

    def __init__(
        self,
        adapter: Adapter,
        config: Config,
        *,
        source_name: str,
        source_fingerprint: str = "",
        folder: Path | None = None,
    ) -> None:
        """Opens a memory, new or resumed.

        Args:
            adapter: the model.
            config: all settings.
            source_name: what is watched; a memory holds one source.
            source_fingerprint: tells sources of one name apart.
            folder: where it is kept; None keeps it while the session lasts.

        Raises:
            ValueError: if the budgets cannot hold a clip, or the folder is not a memory of this model and source.
        """
        super().__init__(adapter, config)
        self.source_name, self._source_fingerprint = source_name, source_fingerprint
        self.store = self._open_store(folder)
        try:
            self.pyramid = self._make_pyramid(len(self._sink))
            self.cache = self._make_cache()
            if self.store.state is None:
                self._begin(self._sink)
            else:
                self._resume(json.loads(self.store.state))
        except BaseException:
            self.store.close()
            raise
        self._earlier_gaps, self._num_earlier_gaps = self.gaps, self.num_gaps

    @property
    def moved(self) -> Counter[str]:
        """How many blocks were demoted and merged so far."""
        return self.pyramid.counts

    def refresh(self) -> None:
        """Nothing to take: it is the only writer."""

    def note_gaps(self, gaps: Sequence[Gap], num_gaps: int, until_seconds: float) -> None:
        """Those of this run up to a time, of `num_gaps` in all: they are kept with the next commit."""
        later = sum(gap.end_seconds > until_seconds for gap in gaps)
        past = gaps[: len(gaps) - later]
        self.gaps = (*self._earlier_gaps, *past)[-KEPT_GAPS:]
        self.num_gaps = self._num_earlier_gaps + num_gaps - later

    def watch(self, clip: Clip, looked: Looked, counters: Counters) -> None:
        """Prefills a clip behind the window, and keeps it. When this returns, it is committed.

        Args:
            clip: the frames.
            looked: its tokens.
            counters: what will have become of the frames then.
        """
        if self.cache.must_rebase(looked.span):
            self.cache.rebase(self.store.gather(self._hot_ids()))
        codec, lead = self.store.codecs[self._config.detail_codec], lead_tokens(looked.span.seconds)
        kv, start = self.cache.prefill(
            looked.span, lambda kv: codec.round_trip(kv, lead)
        )  # [L, 2, K, N, D], un-rotated
        frame = typical_frame(looked.frames, looked.features)
        block_id, extra = self.pyramid.take_id(), self._shape.extra
        block = make_block(block_id, looked.span, kv, start, clip, frame, extra, codec.name)
        before = self.last_seconds, self.counters, self.vision
        self.last_seconds, self.counters, self.vision = clip.end_seconds, counters, self.vision + looked.vision
        try:
            self._commit(block)
        except BaseException:
            self.last_seconds, self.counters, self.vision = before
            raise

    def add_turns(self, answers: Sequence[Answer]) -> None:
        """Takes finished answers into the dialogue, and keeps it."""
        self._remember_turns(answers)
        self.store.commit([], [], self._state())

    def _commit(self, block: Block) -> None:
        """Into window and memory, with the session's state, in one durable step."""
        self.cache.adopt(block.meta)
        self.pyramid.commit(block, self._state, pinned=set(self._hot_ids()))

    def _begin(self, sink: TokenSpan) -> None:
        """A new memory holds its sink from the start."""
        kv, start = self.cache.prefill(sink)
        self._commit(make_block(self.pyramid.take_id(), sink, kv, start, None, None, self._shape.extra))

    def _state(self) -> bytes:
        """All that a resumed stream needs besides its blocks."""
        state = {
            "source": self.source_name,
            "source_fingerprint": self._source_fingerprint,
            "next_id": self.pyramid.next_id,
            "moved": dict(self.pyramid.counts),
            "dialogue": list(self.dialogue),
            "last_seconds": self.last_seconds,
            "counters": asdict(self.counters),
            "vision_tokens": asdict(self.vision),
            "gaps": [gap.to_plain() for gap in self.gaps],
            "num_gaps": self.num_gaps,
            "rebases": self.cache.num_rebases,
            "window": [(placed.meta.id, placed.start.tolist()) for placed in self.cache.window],
        }
        return json.dumps(state).encode()

    def _resume(self, state: dict[str, Any]) -> None:
        """Takes everything back to where the last commit left it."""
        if state["source"] is not None and state["source"] != self.source_name:
            raise ValueError(
                f"this memory was made with source {state['source']!r}, not {self.source_name!r}; "
                "use that one, or another memory folder"
            )
        if state["source_fingerprint"] != self._source_fingerprint:
            raise ValueError(f"this memory holds another {self.source_name!r}; give that one, or another memory folder")
        self.pyramid.next_id = state["next_id"]
        self.pyramid.counts = Counter(state["moved"])
        self._restore(state)

    def _open_store(self, folder: Path | None) -> BlockStore:
        config = self._config
        return BlockStore(
            self._shape,
            device=self.adapter.device,
            device_bytes=self._device_bytes(config.host_bytes + config.disk_bytes),
            host_bytes=config.host_bytes,
            disk_bytes=config.disk_bytes,
            folder=folder,
            identity=self._identity,
            max_block_tokens=self._max_block_tokens,
            max_state_bytes=self._max_state_bytes,
        )

    def _make_pyramid(self, sink_tokens: int) -> Pyramid:
        """The levels, if the memory's budget can hold the window, two clips more and two condensed blocks."""
        config, store = self._config, self.store
        clip_bytes = store.bytes_of(self.clip_tokens, MAX_BYTES, config.detail_codec)
        frame_bytes = store.bytes_of(self.adapter.min_frame_tokens, MAX_BYTES, config.detail_codec)
        whole = (config.window_tokens // self.clip_tokens + 2) * clip_bytes
        hot = max(whole, self._max_window_blocks * frame_bytes + clip_bytes)
        gist = 2 * store.bytes_of(self.adapter.max_frame_tokens, MAX_BYTES, config.gist_codec)
        needed = hot + 3 * gist + store.bytes_of(sink_tokens)
        if store.capacity_bytes < needed:
            raise ValueError(
                f"a memory of {store.capacity_bytes / 2**20:.1f} MiB is too small: the window and a few clips of "
                f"{self.adapter.name!r} need {needed / 2**20:.1f} MiB; give more bytes or a smaller window"
            )
        return Pyramid(store, make_levels(config.consolidation, self._room(hot, gist, sink_tokens)))

    def _room(self, hot_bytes: int, least_bytes: int, sink_tokens: int) -> Room:
        config = self._config
        return Room(
            total_bytes=self.store.capacity_bytes - self.store.bytes_of(sink_tokens),
            hot_bytes=hot_bytes,
            least_bytes=least_bytes,
            digest_share=config.digest_share,
            gist_share=config.gist_share,
            gist_vision_tokens=config.gist_vision_tokens,
            fill=self.store.fill,
            codecs=(config.detail_codec, config.digest_codec, config.gist_codec),
        )
