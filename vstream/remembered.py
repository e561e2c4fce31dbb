"""Remembered: a stream's sink, window and blocks, and what a question can see of them.

Who writes them (`stream_memory.py`) and who only reads them (`memory_reader.py`) see them alike. This module knows
nothing of sources, threads or how blocks come about.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vstream.cache import Placed, Snapshot, StreamCache, consecutive_starts, place
from vstream.clip_block import described, representative_of
from vstream.memory.block import BlockMeta, BlockShape, prefix_until
from vstream.memory.columns import Rows, rows_of
from vstream.memory.levels import DETAIL, LEVEL_NAMES, SINK
from vstream.memory.policies import make_retriever
from vstream.reduction import Looked, Reduction, VisionTokens, num_vision
from vstream.sampling import Counters
from vstream.types import Frame, Gap, TokenSpan, format_seconds
from vstream.view import View

if TYPE_CHECKING:
    from vstream.answer import Answer
    from vstream.config import Config
    from vstream.memory.store import BlockStore
    from vstream.models.base import Adapter

SINK_ID = 0
MAX_DIALOGUE_BYTES = 128 * 1024  # the state that holds it must stay below the store's limit
MAX_GAPS_BYTES = 64 * 1024
PICTURES_TRIED = 16  # blocks nearest to a time, for one that has a picture


class Remembered(ABC):
    """What is kept of one stream, as questions see it. One thread calls it.

    Attributes:
        source_name: what is, or was, watched.
        last_seconds: time of the newest committed frame, None before the first.
        counters: what had become of the frames at the last commit.
        vision: what had become of their vision tokens.
        dialogue: the latest questions and answers.
        gaps: the newest stretches that were not watched.
        num_gaps: how many there were.
        clip_tokens: of the longest clip there can be.
    """

    store: BlockStore
    cache: StreamCache

    def __init__(self, adapter: Adapter, config: Config) -> None:
        """Checks what the model allows; the store is opened by a subclass.

        Raises:
            ValueError: if window, retrieval, question and answer do not fit the model.
        """
        self.adapter, self._config = adapter, config
        self.source_name: str | None = None
        self.last_seconds: float | None = None
        self.counters = Counters()
        self.vision = VisionTokens()
        self.dialogue: deque[dict[str, Any]] = deque()
        self.gaps: tuple[Gap, ...] = ()
        self.num_gaps = 0
        self.clip_tokens = adapter.most_tokens(config.clip_frames)
        self.prompt_tokens = self.clip_tokens + config.max_question_tokens + config.max_answer_tokens
        self.prompt_tokens += config.earlier_tokens
        self._sink = adapter.sink()
        self._check_tokens(len(self._sink))
        self.retriever = make_retriever(config.policy, config.retrieve_neighbours)
        if config.selection == "per-layer" and not self.retriever.per_layer:
            raise ValueError(f"policy={config.policy!r} has one opinion for all layers; use selection='shared' with it")
        shape = BlockShape(adapter.num_layers, adapter.num_kv_heads, adapter.head_dim, adapter.dtype)
        extra = self.retriever.extra(self._choosing.stop, shape, adapter.config.hidden_size)
        self._shape = replace(shape, extra=extra)
        self._reduction = Reduction(
            adapter, skip_duplicates=config.skip_duplicates, drop_similarity=config.drop_similarity
        )

    @property
    @abstractmethod
    def moved(self) -> Counter[str]:
        """How many blocks were demoted and merged so far."""

    @abstractmethod
    def add_turns(self, answers: Sequence[Answer]) -> None:
        """Takes finished answers into the dialogue."""

    @abstractmethod
    def refresh(self) -> None:
        """Takes what another process has committed since."""

    def view(self, until_seconds: float) -> View:
        """What there is to see up to a time, the present or the past.

        Raises:
            ValueError: if blocks merged across that time have lost what was before it, or original positions are
                asked for where they no longer hold.
        """
        present = self.last_seconds is None or self.last_seconds <= until_seconds
        if self._config.positions == "original" and (self.cache.num_rebases or not present):
            raise ValueError("positions='original' serve only the present, before the trained length; use 'contiguous'")
        if not present:
            return self._past_view(until_seconds)
        rows = self._rows_until(until_seconds)
        if not self._config.answer_window:
            return self._view(self._rebuilt([]), rows, {})
        behind = ~np.isin(rows["id"], self._hot_ids())
        return self._view(self.cache.snapshot(), rows[behind], {})

    def newest_view(self, num_clips: int, *, recalls: bool) -> View:
        """The newest clips of the window alone; if it `recalls`, all that is older may be brought back before them."""
        snapshot = self.cache.snapshot().newest(num_clips)
        rows = self.rows() if recalls else rows_of([])
        older = ~np.isin(rows["id"], [placed.meta.id for placed in snapshot.window])  # all that is not shown anyway
        return self._view(snapshot, rows[older], {})

    def look(self, frames: Sequence[Frame]) -> Looked:
        """What goes through the decoder of a clip's frames, or of its first ones.

        Raises:
            ValueError: if they are more tokens than a clip may have.
        """
        shown = self._reduction.distinct(frames)
        features = self.adapter.encode(shown)  # [G, P, W]
        whole = self.layout(shown, features)  # [N] tokens
        span = self._reduction.thin(features, whole)
        made = num_vision(whole)
        return Looked(shown, features, span, VisionTokens(made, made - num_vision(span)))

    def layout(self, frames: Sequence[Frame], features: Tensor) -> TokenSpan:
        """The frames' tokens, from features [G, P, W].

        Raises:
            ValueError: if they are more than a clip may have.
        """
        span, limit = self.adapter.layout(frames, features), self.adapter.most_tokens(len(frames))
        if len(span) > limit:
            raise ValueError(
                f"frames at {format_seconds(frames[-1].pts_seconds)} take {len(span) / len(frames):.1f} tokens each, "
                f"but {self.adapter.name!r} allows {limit / len(frames):g}; give fewer, or times nearer to 0"
            )
        return span

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

    def rows(self) -> Rows:
        """Every block but the sink, in time order."""
        return self._rows_until(np.inf)

    def picture_near(self, seconds: float) -> tuple[bytes, float] | None:
        """The kept picture nearest to a stream time, as JPEG, and its own time; None where there is none."""
        rows = self.rows()
        away = np.maximum(np.maximum(rows["start_seconds"] - seconds, seconds - rows["end_seconds"]), 0.0)
        nearest = rows["id"][np.argsort(away, kind="stable")[:PICTURES_TRIED]].tolist()
        found = [self.store.meta(block_id) for block_id in nearest]
        pictured = [meta for meta in found if not math.isnan(meta.picture_seconds)]
        if not pictured:
            return None
        meta = min(pictured, key=lambda meta: abs(meta.picture_seconds - seconds))
        return self.store.picture(meta.id), meta.picture_seconds

    def num_blocks(self) -> dict[str, int]:
        """Blocks by level name."""
        return {name: self.store.num_blocks(number) for number, name in LEVEL_NAMES.items() if number != SINK}

    def close(self) -> None:
        """Lets the store go. What was committed stays committed."""
        self.store.close()

    def _past(self, above: int) -> list[BlockMeta]:
        return [meta for meta in self.store.metas() if meta.level > above]

    def _rows_until(self, until_seconds: float) -> Rows:
        """Blocks that had begun by a time, in time order."""
        rows = self.store.index.columns.in_time_order()
        return rows[(rows["level"] > SINK) & (rows["start_seconds"] <= until_seconds)]

    def _past_view(self, until_seconds: float) -> View:
        """The stream as of an earlier time: its then newest detail blocks become the window again."""
        rows = self._rows_until(until_seconds)
        rows = rows[~np.isin(rows["id"], self._not_yet_seen(rows, until_seconds))]
        crossing = rows["id"][rows["end_seconds"] > until_seconds].tolist()
        shortened = {block_id: self._until(self.store.meta(block_id), until_seconds) for block_id in crossing}
        window = list[BlockMeta]()
        recent = rows["id"].tolist() if self._config.answer_window else []
        for block_id in reversed(recent):
            meta = shortened.get(block_id) or self.store.meta(block_id)
            if meta.level != DETAIL or not self.cache.fits([meta, *window]):
                break
            window.insert(0, meta)
        behind = rows[: len(rows) - len(window)].copy()
        for row, block_id in enumerate(behind["id"].tolist()):
            if block_id in shortened:
                behind[row : row + 1] = rows_of([shortened[block_id]])
        return self._view(self._rebuilt(window), behind, shortened)

    def _not_yet_seen(self, rows: Rows, until_seconds: float) -> list[int]:
        """Blocks that had begun by a time, but had not yet the last frame of their first group."""
        metas = (self.store.meta(block_id) for block_id in rows["id"][rows["end_seconds"] > until_seconds].tolist())
        return [meta.id for meta in metas if meta.level == DETAIL and float(meta.seconds[0]) > until_seconds]

    def _view(self, snapshot: Snapshot, candidates: Rows, shortened: dict[int, BlockMeta]) -> View:
        """With the representatives of all blocks; that of a shortened block does not know what was cut off."""
        ids = [*candidates["id"].tolist(), *(placed.meta.id for placed in snapshot.window)]
        cut = {block_id: (self.store.gather([block_id], [m.num_tokens]), m.kinds) for block_id, m in shortened.items()}
        instead = {block_id: representative_of(kv, kinds)[self._choosing] for block_id, (kv, kinds) in cut.items()}
        representatives = self.store.representatives.kept(ids, self._choosing, instead)
        extra, extras = self._shape.extra, None
        if extra is not None and self.store.extras is not None:
            instead = {block_id: described(extra, kv, kinds) for block_id, (kv, kinds) in cut.items()}
            extras = self.store.extras.kept(ids, instead=instead)
        sink_key = self.store.representatives.rows([SINK_ID], self._choosing).float()
        return View(snapshot, candidates, representatives, sink_key, shortened, self.retriever, extras)

    @property
    def _choosing(self) -> slice:
        """Layers that choose blocks: each for itself, or as many as the policy reads."""
        alone, layers = self._config.selection == "per-layer", self.adapter.num_layers
        return slice(0, layers if alone else self.retriever.num_layers_read(layers))

    def _until(self, meta: BlockMeta, until_seconds: float) -> BlockMeta:
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

    def _remember_turns(self, answers: Sequence[Answer]) -> None:
        """The latest turns, within their bytes."""
        for answer in answers:
            if answer.error is None:
                turn = {
                    "question": answer.question,
                    "answer": answer.text(),
                    "asked_at_seconds": answer.asked_at_seconds,
                }
                evidence = [
                    [one.start_seconds, one.end_seconds, one.level, one.picture_seconds] for one in answer.evidence
                ]
                choices = {"choices": list(answer.choices)} if answer.choices else {}
                self.dialogue.append({**turn, **choices, "evidence": evidence})
        while len(json.dumps(list(self.dialogue))) > MAX_DIALOGUE_BYTES:
            self.dialogue.popleft()

    def _hot_ids(self) -> list[int]:
        return [SINK_ID, *(placed.meta.id for placed in self.cache.window)]

    def _device_bytes(self, elsewhere: int) -> int:
        """The device's budget; none where device and host are the same RAM and another tier serves."""
        return 0 if self.adapter.device.type == "cpu" and elsewhere else self._config.device_bytes

    def _restore(self, state: dict[str, Any]) -> None:
        """Takes a stream's state and window back to where a commit left them."""
        self.source_name = state["source"]
        self.last_seconds, self.counters = state["last_seconds"], Counters(**state["counters"])
        self.vision = VisionTokens(**state.get("vision_tokens", {}))
        self.dialogue = deque(state["dialogue"])
        self.gaps = tuple(Gap.from_plain(gap) for gap in state.get("gaps", ()))
        self.num_gaps = state.get("num_gaps", 0)
        self.cache.num_rebases = state["rebases"]
        window = [(self.store.meta(block_id), torch.tensor(start)) for block_id, start in state["window"]]
        while not self.cache.fits([meta for meta, _ in window]):
            window.pop(0)
        kv = self.store.gather([SINK_ID, *(meta.id for meta, _ in window)])
        self.cache.restore(self.store.meta(SINK_ID), window, kv)

    @property
    def _max_block_tokens(self) -> int:
        return max(self.clip_tokens, len(self._sink))

    @property
    def _identity(self) -> dict[str, str | int]:
        adapter = self.adapter
        return {"model": adapter.name, "fingerprint": adapter.fingerprint, "dtype": str(adapter.dtype)}

    @property
    def _max_state_bytes(self) -> int:
        return 2 * MAX_DIALOGUE_BYTES + MAX_GAPS_BYTES + 64 * self._max_window_blocks

    @property
    def _max_window_blocks(self) -> int:
        """Blocks in the window when every clip is a single frame."""
        return self._config.window_tokens // self.adapter.min_frame_tokens + 1

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

    def _make_cache(self) -> StreamCache:
        return StreamCache(
            self.adapter,
            window_tokens=self._config.window_tokens,
            clip_tokens=self.clip_tokens,
            sink_positions=int(self._sink.advance.max()),
            reserve=self._reserve,
            limit=self.adapter.max_positions - self.prompt_tokens,
        )
