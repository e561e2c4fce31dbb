"""StreamMemory: all that is kept of one stream, and how it comes back after a restart.

Sink and window in the cache, blocks in the pyramid: one commit keeps them together. This
module knows nothing of sources, threads or answers' texts.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vstream.cache import Placed, Snapshot, StreamCache, consecutive_starts, place
from vstream.clip_block import make_block, representative_of, typical_frame
from vstream.memory.block import Block, BlockMeta, BlockShape, prefix_until
from vstream.memory.pyramid import DETAIL, LEVEL_NAMES, SINK, Pyramid
from vstream.memory.retriever import make_retriever
from vstream.memory.store import BlockStore
from vstream.picture import MAX_BYTES
from vstream.sampling import Counters
from vstream.types import Clip, Frame, TokenSpan, format_seconds
from vstream.view import View

if TYPE_CHECKING:
    from vstream.answer import Answer
    from vstream.config import Config
    from vstream.models.base import Adapter

SINK_ID = 0
MAX_DIALOGUE_BYTES = 128 * 1024  # the state that holds it must stay below the store's limit


class StreamMemory:
    """One stream's cache and blocks. Only the session's worker calls it.

    Attributes:
        last_seconds: time of the newest committed frame, None before the first.
        counters: what had become of the frames at the last commit.
        dialogue: the latest questions and answers, kept with every commit.
    """

    def __init__(
        self,
        adapter: Adapter,
        config: Config,
        *,
        source_name: str | None,
        source_fingerprint: str = "",
        folder: Path | None = None,
    ) -> None:
        """Opens a memory, new or resumed.

        Args:
            adapter: the model.
            config: all settings.
            source_name: what is watched; a memory holds one source. None takes the one it holds.
            source_fingerprint: tells sources of one name apart.
            folder: where it is kept; None keeps it while the session lasts.

        Raises:
            ValueError: if the budgets cannot hold a clip, or the folder is not a memory of this model and source.
        """
        self.adapter, self.source_name = adapter, source_name
        self._source_fingerprint = source_fingerprint
        self.last_seconds: float | None = None
        self.counters = Counters()
        self.dialogue: deque[dict[str, Any]] = deque()
        self._config = config
        sink = adapter.sink()
        self.clip_tokens = config.clip_frames * adapter.max_frame_tokens
        self.prompt_tokens = self.clip_tokens + config.max_question_tokens + config.max_answer_tokens
        self._check_tokens(len(sink))
        shape = BlockShape(adapter.num_layers, adapter.num_kv_heads, adapter.head_dim, adapter.dtype)
        self.retriever = make_retriever(config.policy)
        self.store = self._open_store(shape, max(self.clip_tokens, len(sink)), folder)
        try:
            self.pyramid = self._make_pyramid(len(sink))
            self.cache = self._make_cache()
            if self.store.state is None:
                self._begin(sink)
            else:
                self._resume(json.loads(self.store.state))
        except BaseException:
            self.store.close()
            raise

    def layout(self, frames: Sequence[Frame], features: Tensor) -> TokenSpan:
        """The frames' tokens, from features [T, P, E].

        Raises:
            ValueError: if they are more than a clip may have.
        """
        span, limit = self.adapter.layout(frames, features), self.adapter.max_frame_tokens
        if len(span) > limit * len(frames):
            raise ValueError(
                f"frames at {format_seconds(frames[-1].pts_seconds)} take {len(span) / len(frames):.1f} tokens each, "
                f"but {self.adapter.name!r} allows {limit}; give fewer, or times nearer to 0"
            )
        return span

    def watch(self, clip: Clip, features: Tensor, span: TokenSpan, counters: Counters) -> None:
        """Prefills a clip behind the window, and keeps it. When this returns, it is committed.

        Args:
            clip: the frames.
            features: [T, P, E].
            span: its tokens.
            counters: what will have become of the frames then.
        """
        if self.cache.must_rebase(span):
            self.cache.rebase(self.store.gather(self._hot_ids()))
        kv, start = self.cache.prefill(span)  # [L, 2, K, N, D], keys un-rotated
        frame = typical_frame(clip, features)
        block = make_block(self.pyramid.take_id(), span, kv, start, clip, frame)
        before = self.last_seconds, self.counters
        self.last_seconds, self.counters = clip.end_seconds, counters
        try:
            self._commit(block)
        except BaseException:
            self.last_seconds, self.counters = before
            raise

    def view(self, until_seconds: float) -> View:
        """What there is to see up to a time, the present or the past.

        Raises:
            ValueError: if blocks merged across that time have lost what was before it, or original positions are
                asked for where they no longer hold.
        """
        present = self.last_seconds is None or self.last_seconds <= until_seconds
        if self._config.positions == "original" and (self.cache.num_rebases or not present):
            raise ValueError("positions='original' serve only the present, before the trained length; use 'contiguous'")
        if present:
            window = {placed.meta.id for placed in self.cache.window}
            candidates = [meta for meta in self._past(SINK) if meta.id not in window]
            return self._view(self.cache.snapshot(), candidates)
        return self._past_view(until_seconds)

    def add_turns(self, answers: Sequence[Answer]) -> None:
        """Takes finished answers into the dialogue, and keeps it."""
        for answer in answers:
            if answer.error is None:
                self.dialogue.append(
                    {"question": answer.question, "answer": answer.text(), "asked_at_seconds": answer.asked_at_seconds}
                )
        while len(json.dumps(list(self.dialogue))) > MAX_DIALOGUE_BYTES:
            self.dialogue.popleft()
        self.store.commit([], [], self._state())

    @property
    def last_wall_seconds(self) -> float | None:
        """Unix time of the newest committed frame, None where unknown."""
        newest = max(self._past(SINK), key=lambda meta: meta.end_seconds, default=None)
        if newest is None or newest.epoch_seconds is None:
            return None
        return newest.epoch_seconds + newest.end_seconds

    def seconds_at(self, wall_seconds: float) -> float:
        """Stream time of a Unix time, by the anchors of what is remembered.

        Raises:
            ValueError: if the stream has no wall clock, or was not yet watched then.
        """
        anchored = [(meta.epoch_seconds, meta) for meta in self._past(SINK) if meta.epoch_seconds is not None]
        if not anchored:
            raise ValueError("this stream has no wall clock; ask at seconds or MM:SS of the stream instead")
        began = [(epoch, meta) for epoch, meta in anchored if epoch + meta.start_seconds <= wall_seconds]
        if not began:
            first = datetime.fromtimestamp(min(epoch + meta.start_seconds for epoch, meta in anchored))
            raise ValueError(f"the stream was not watched before {first:%Y-%m-%d %H:%M:%S}; ask at a later time")
        epoch, _ = max(began, key=lambda pair: pair[1].start_seconds)
        return wall_seconds - epoch

    def num_blocks(self) -> dict[str, int]:
        """Blocks by level name."""
        return {name: self.store.num_blocks(number) for number, name in LEVEL_NAMES.items() if number != SINK}

    def close(self) -> None:
        """Lets the store go. What was committed stays committed."""
        self.store.close()

    def _past(self, above: int) -> list[BlockMeta]:
        return [meta for meta in self.store.metas() if meta.level > above]

    def _past_view(self, until_seconds: float) -> View:
        """The stream as of an earlier time: its then newest detail blocks become the window again."""
        seen = [meta for meta in self._past(SINK) if meta.start_seconds <= until_seconds]
        cut = [self._until(meta, until_seconds) for meta in seen]
        room, window = self._config.window_tokens, list[BlockMeta]()
        for meta in reversed(cut):
            if meta.level != DETAIL or meta.num_tokens > room:
                break
            room -= meta.num_tokens
            window.insert(0, meta)
        return self._view(self._rebuilt(window), cut[: len(cut) - len(window)])

    def _view(self, snapshot: Snapshot, candidates: list[BlockMeta]) -> View:
        """With the representatives of all blocks; that of a shortened block does not know what was cut off."""
        metas = [*candidates, *(placed.meta for placed in snapshot.window)]
        rows = self.store.representatives.rows([meta.id for meta in metas])
        for row, meta in enumerate(metas):
            if meta.num_tokens < self.store.meta(meta.id).num_tokens:
                kv = self.store.gather([meta.id], [meta.num_tokens])
                rows[:, :, row] = representative_of(kv, meta.kinds)
        sink_key = self.store.representatives.rows([SINK_ID]).float()
        return View(snapshot, candidates, rows, sink_key)

    def _until(self, meta: BlockMeta, until_seconds: float) -> BlockMeta:
        if meta.end_seconds <= until_seconds:
            return meta
        if meta.level == DETAIL:
            return prefix_until(meta, until_seconds)
        start, end, asked = (format_seconds(s) for s in (meta.start_seconds, meta.end_seconds, until_seconds))
        raise ValueError(
            f"the memory keeps {start} to {end} only as one condensed block and cannot tell what was seen by {asked}; "
            f"ask at a time before {start} or from {end} on"
        )

    def _rebuilt(self, window: list[BlockMeta]) -> Snapshot:
        """A snapshot whose window is made of stored blocks, placed as after a rebase."""
        assert self.cache.sink is not None
        sink = self.cache.sink
        starts = consecutive_starts(sink.stop + self._reserve, window)
        placed = tuple(Placed(meta, start) for meta, start in zip(window, starts, strict=True))
        metas = [sink.meta, *window]
        kv = self.store.gather([meta.id for meta in metas], [meta.num_tokens for meta in metas])
        kv = place(self.adapter, kv, torch.cat([one.positions for one in (sink, *placed)], dim=1))
        cursor = placed[-1].stop if placed else sink.stop + self._reserve
        return Snapshot(sink, placed, [(layer[None, 0], layer[None, 1]) for layer in kv], cursor)

    @property
    def _reserve(self) -> int:
        return self._config.gist_tokens + self._config.retrieve_tokens

    @property
    def _max_window_blocks(self) -> int:
        """Blocks in the window when every clip is a single frame."""
        return self._config.window_tokens // self.adapter.min_frame_tokens + 1

    def _hot_ids(self) -> list[int]:
        return [SINK_ID, *(placed.meta.id for placed in self.cache.window)]

    def _commit(self, block: Block) -> None:
        """Into window and memory, with the session's state, in one durable step."""
        self.cache.adopt(block.meta)
        self.pyramid.commit(block, self._state, pinned=set(self._hot_ids()))

    def _begin(self, sink: TokenSpan) -> None:
        """A new memory holds its sink from the start."""
        kv, start = self.cache.prefill(sink)
        self._commit(make_block(self.pyramid.take_id(), sink, kv, start, None, None))

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
            "rebases": self.cache.num_rebases,
            "window": [(placed.meta.id, placed.start.tolist()) for placed in self.cache.window],
        }
        return json.dumps(state).encode()

    def _resume(self, state: dict[str, Any]) -> None:
        """Takes everything back to where the last commit left it."""
        self._check_same("source", state["source"], self.source_name or state["source"])
        if self.source_name is not None and state["source_fingerprint"] != self._source_fingerprint:
            raise ValueError(f"this memory holds another {self.source_name!r}; give that one, or another memory folder")
        self.source_name, self._source_fingerprint = state["source"], state["source_fingerprint"]
        self.pyramid.next_id = state["next_id"]
        self.pyramid.counts = Counter(state["moved"])
        self.dialogue.extend(state["dialogue"])
        self.last_seconds, self.counters = state["last_seconds"], Counters(**state["counters"])
        self.cache.num_rebases = state["rebases"]
        window = [(self.store.meta(block_id), torch.tensor(start)) for block_id, start in state["window"]]
        while sum(meta.num_tokens for meta, _ in window) > self._config.window_tokens:
            window.pop(0)
        kv = self.store.gather([SINK_ID, *(meta.id for meta, _ in window)])
        self.cache.restore(self.store.meta(SINK_ID), window, kv)

    def _check_same(self, what: str, held: object, given: object) -> None:
        if held is not None and held != given:
            raise ValueError(
                f"this memory was made with {what} {held!r}, not {given!r}; use that one, or another memory folder"
            )

    def _check_tokens(self, sink_tokens: int) -> None:
        config, adapter = self._config, self.adapter
        if config.window_tokens < self.clip_tokens:
            raise ValueError(
                f"a window of {config.window_tokens} tokens is too small for one clip: {config.clip_frames} frames "
                f"take up to {self.clip_tokens} tokens with {adapter.name!r}; use a larger window or smaller clips"
            )
        needed = sink_tokens + self._reserve + config.window_tokens + self.clip_tokens + self.prompt_tokens
        if needed > adapter.max_positions:
            raise ValueError(
                f"window, retrieval, question and answer need up to {needed} positions, but {adapter.name!r} was "
                f"trained for {adapter.max_positions}; make the window or the retrieval smaller"
            )

    def _open_store(self, shape: BlockShape, max_block_tokens: int, folder: Path | None) -> BlockStore:
        config, adapter = self._config, self.adapter
        return BlockStore(
            shape,
            device=adapter.device,
            device_bytes=config.device_bytes,
            host_bytes=config.host_bytes,
            disk_bytes=config.disk_bytes,
            folder=folder,
            identity={"model": adapter.name, "fingerprint": adapter.fingerprint, "dtype": str(adapter.dtype)},
            max_block_tokens=max_block_tokens,
            max_state_bytes=2 * MAX_DIALOGUE_BYTES + 64 * self._max_window_blocks,
        )

    def _make_pyramid(self, sink_tokens: int) -> Pyramid:
        """The levels, if the memory's budget can hold the window, two clips more and two condensed blocks."""
        config, store = self._config, self.store
        clip_bytes = store.bytes_of(self.clip_tokens, MAX_BYTES)
        frame_bytes = store.bytes_of(self.adapter.min_frame_tokens, MAX_BYTES)
        whole = (config.window_tokens // self.clip_tokens + 2) * clip_bytes
        hot = max(whole, self._max_window_blocks * frame_bytes + clip_bytes)
        gist = 2 * store.bytes_of(self.adapter.max_frame_tokens, MAX_BYTES)
        needed = int(max(hot / (1 - config.gist_share), gist / config.gist_share)) + store.bytes_of(sink_tokens)
        if store.capacity_bytes < needed:
            raise ValueError(
                f"a memory of {store.capacity_bytes / 2**20:.1f} MiB is too small: the window and a few clips of "
                f"{self.adapter.name!r} need {needed / 2**20:.1f} MiB; give more bytes or a smaller window"
            )
        return Pyramid(
            store,
            sink_tokens=sink_tokens,
            gist_share=config.gist_share,
            gist_vision_tokens=config.gist_vision_tokens,
        )

    def _make_cache(self) -> StreamCache:
        return StreamCache(
            self.adapter,
            window_tokens=self._config.window_tokens,
            clip_tokens=self.clip_tokens,
            reserve=self._reserve,
            limit=self.adapter.max_positions - self.prompt_tokens,
        )
