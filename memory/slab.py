"""A slab: preallocated rows of bytes in slots on one device, and which block lies in which slots.

A slab is the home of blocks or a least-recently-used cache of a slower tier; which one is the store's business. This
module knows nothing of tiers, budgets, disks or metadata.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Container, Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.functional import pad

from vstream.kernels import Places, gather_rows
from vstream.kernels.streams import DONE, departures, queued
from vstream.memory.block import BlockShape, Form
from vstream.memory.codec import WORD_BYTES, Codec


def slot_row_bytes(codecs: Mapping[str, Codec], slot_tokens: int) -> int:
    """Bytes of one layer of a slot that holds `slot_tokens` uncompressed tokens, and at least one row of any codec."""
    return max(slot_tokens * codecs["none"].row_bytes, *(codec.row_bytes for codec in codecs.values()))


def slots_for(form: Form, codecs: Mapping[str, Codec], slot_tokens: int) -> int:
    """Slots that a block takes: the more a codec compresses, the more rows lie in a slot."""
    codec = codecs[form.codec]
    return -(-codec.num_rows(form.num_tokens) // (slot_row_bytes(codecs, slot_tokens) // codec.row_bytes))


class Slab:
    """Slots of the bytes of `slot_tokens` uncompressed tokens each: `data` is [L, S, W], S slots of W words a layer.

    The rows of a block, whatever its codec, fill its slots one after the other. The lowest free slots are used first,
    so that pageable memory is touched only as far as it was ever needed.

    Attributes:
        num_slots: slots in all.
        slot_bytes: bytes of one slot.
        forms: resident block id -> how it is stored.
        filled: when what was last written to it is there: copies out of a GPU go on while it computes.
        read: when nobody reads it any more: a GPU fetches from pinned memory while others go on.
    """

    def __init__(
        self,
        shape: BlockShape,
        codecs: Mapping[str, Codec],
        *,
        num_slots: int,
        slot_tokens: int,
        device: torch.device,
        pin: bool = False,
    ) -> None:
        words = slot_row_bytes(codecs, slot_tokens) // WORD_BYTES
        with torch.inference_mode(False):  # else nobody outside inference mode could write to it later
            size = (shape.num_layers, num_slots, words)
            self.data = torch.empty(size, dtype=torch.int64, device=device, pin_memory=pin)
        self.num_slots = num_slots
        self.slot_tokens = slot_tokens
        self.slot_bytes = shape.num_layers * words * WORD_BYTES
        self.forms: dict[int, Form] = {}
        self.filled = self.read = DONE
        self._codecs = codecs
        self._slots: OrderedDict[int, list[int]] = OrderedDict()
        self._free = list(range(num_slots))

    def __contains__(self, block_id: int) -> bool:
        return block_id in self._slots

    @property
    def ids(self) -> list[int]:
        """Resident blocks, least recently used first."""
        return list(self._slots)

    @property
    def used_slots(self) -> int:
        """Slots that hold a block."""
        return self.num_slots - len(self._free)

    @property
    def used_bytes(self) -> int:
        """Bytes of the slots that hold a block."""
        return self.used_slots * self.slot_bytes

    def touch(self, block_id: int) -> None:
        """Mark a resident block as used now."""
        self._slots.move_to_end(block_id)

    def make_room(self, form: Form, keep: Container[int], limit_slots: int) -> bool:
        """Forget least recently used blocks, none of `keep`, until one more fits within `limit_slots` used slots.

        Returns:
            whether it fits; if not, nothing is forgotten.
        """
        excess = self.used_slots + self._slots_for(form) - limit_slots
        victims = []
        for block_id, slots in self._slots.items():
            if excess <= 0:
                break
            if block_id not in keep:
                victims.append(block_id)
                excess -= len(slots)
        if excess > 0:
            return False
        for block_id in victims:
            self.forget(block_id)
        return True

    def shrink(self, keep: Container[int], limit_slots: int) -> None:
        """Forget least recently used blocks, none of `keep`, until at most `limit_slots` are used or no more may go."""
        if self.used_slots <= limit_slots:
            return
        for block_id in self.ids:
            if self.used_slots > limit_slots and block_id not in keep:
                self.forget(block_id)

    def write(self, block_id: int, form: Form, rows: Tensor) -> None:
        """Copy a block's rows [L, head_rows + N, R] uint8, from any device, into free slots.

        From a GPU into pinned memory they go on a stream of their own; `filled` says when they are there.
        """
        slots, per_slot = self._take(block_id, form), self._rows_per_slot(form.codec)
        self.read.settle()
        words = rows.contiguous().view(torch.int64)
        short = len(slots) * per_slot - words.shape[1]  # rows that the last slot has room for
        whole = (pad(words, (0, 0, 0, short)) if short else words).view(len(words), len(slots), -1)
        if self.data.device.type == "cpu":
            self._copy_out(slots, whole)
        else:
            self.data[:, self._index(slots), : whole.shape[2]] = whole.to(self.data.device)

    def _copy_out(self, slots: Sequence[int], whole: Tensor) -> None:
        """Slots [L, S, W] into those on the host: a copy for each layer and each run of neighbours."""
        spare = self.data.shape[2] - whole.shape[2]  # words of a slot that make no row
        whole = pad(whole, (0, spare)) if spare else whole
        with departures(whole.device).beside(whole):
            for start, run in groupby(range(len(slots)), key=lambda place: slots[place] - place):
                places = list(run)
                first, last = places[0], places[-1] + 1
                for into, layer in zip(self.data, whole, strict=True):
                    into[start + first : start + last].copy_(layer[first:last], non_blocking=True)
            self.filled = queued(whole.device)

    def copy_from(self, other: Slab, block_id: int) -> None:
        """Copy a block that lies in `other`, of the same slot size, into free slots here."""
        slots = self._take(block_id, other.forms[block_id])
        self.read.settle()
        other.filled.settle()
        self.data[:, self._index(slots)] = other.data[:, other._index(other._slots[block_id])].to(self.data.device)

    def forget(self, block_id: int) -> None:
        """Free a block's slots."""
        for slot in self._slots.pop(block_id):
            heapq.heappush(self._free, slot)
        del self.forms[block_id]

    def places(self, ids: Sequence[int], counts: Sequence[int]) -> Places:
        """Where resident blocks of one codec lie, B * head_rows + N rows.

        The heads of all blocks come first, then the first `counts` tokens of each, as `Codec.decode` wants them.
        """
        codec = self._codecs[self.forms[ids[0]].codec]
        per_slot = self._rows_per_slot(codec.name)
        first_slots = [self._slots[block_id] for block_id in ids]
        sizes = torch.tensor([codec.num_rows(count) for count in counts])
        flat = torch.tensor([slot for slots in first_slots for slot in slots], dtype=torch.int64)
        slot_starts = torch.tensor([0, *map(len, first_slots)]).cumsum(0)[:-1]
        rows = torch.arange(int(sizes.sum())) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)  # within its block
        slots = flat[slot_starts.repeat_interleave(sizes) + rows // per_slot]
        order = (rows >= codec.head_rows).argsort(stable=True)
        return Places(slots[order], (rows % per_slot)[order])

    def words(self, layer: int, codec: str) -> Tensor:
        """One layer as rows of a codec, [S, P, W] int64: P rows of W words in each of S slots. A view."""
        per_slot, words = self._rows_per_slot(codec), self._codecs[codec].row_bytes // WORD_BYTES
        return self.data[layer, :, : per_slot * words].view(self.num_slots, per_slot, words)

    def payload(self, block_id: int) -> Tensor:
        """A resident block's rows [L, head_rows + N, R] uint8, as they were written."""
        self.filled.settle()
        form = self.forms[block_id]
        places = self.places([block_id], [form.num_tokens]).on(self.data.device)
        rows = [gather_rows(self.words(layer, form.codec), *places) for layer in range(len(self.data))]
        return torch.stack(rows).view(torch.uint8)

    def check_integrity(self) -> None:
        """Raise RuntimeError if a slot is lost or used twice, or a block has the wrong number of slots."""
        used = [slot for slots in self._slots.values() for slot in slots]
        if sorted(used + self._free) != list(range(self.num_slots)):
            raise RuntimeError("a slot is used twice, or neither free nor used")
        if self.forms.keys() != self._slots.keys():
            raise RuntimeError("a slab's blocks and how they are stored disagree")
        for block_id, slots in self._slots.items():
            if len(slots) != self._slots_for(self.forms[block_id]):
                raise RuntimeError(f"block {block_id}, {self.forms[block_id]}, lies in {len(slots)} slots")

    def _take(self, block_id: int, form: Form) -> list[int]:
        needed = self._slots_for(form)
        assert block_id not in self._slots, f"block {block_id} is in the slab already"
        assert needed <= len(self._free), f"block {block_id} needs {needed} slots, {len(self._free)} are free"
        self._slots[block_id] = slots = [heapq.heappop(self._free) for _ in range(needed)]
        self.forms[block_id] = form
        return slots

    def _slots_for(self, form: Form) -> int:
        return slots_for(form, self._codecs, self.slot_tokens)

    def _rows_per_slot(self, codec: str) -> int:
        return self.data.shape[2] * WORD_BYTES // self._codecs[codec].row_bytes

    def _index(self, slots: Sequence[int]) -> Tensor:
        return torch.tensor(slots, dtype=torch.int64, device=self.data.device)
