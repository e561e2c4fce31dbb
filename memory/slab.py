"""A slab: preallocated keys and values in slots on one device, and which block lies in which slots.

A slab is the home of blocks or a least-recently-used cache of a slower tier; which one is the store's business. This
module knows nothing of tiers, budgets, disks or metadata.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Container, Sequence

import torch
from torch import Tensor

from vstream.kernels import gather_tokens
from vstream.memory.block import BlockShape


def slots_for(num_tokens: int, slot_tokens: int) -> int:
    """Slots that `num_tokens` take."""
    return -(-num_tokens // slot_tokens)


class Slab:
    """Slots of `slot_tokens` tokens each: `data` is [L, S, 2, K, P, D], S slots of P tokens.

    The lowest free slots are used first, so that pageable memory is touched only as far as it was ever needed.

    Attributes:
        num_slots: slots in all.
        slot_bytes: bytes of one slot.
        tokens: resident block id -> its number of tokens.
    """

    def __init__(
        self, shape: BlockShape, *, num_slots: int, slot_tokens: int, device: torch.device, pin: bool = False
    ) -> None:
        size = (shape.num_layers, num_slots, 2, shape.num_kv_heads, slot_tokens, shape.head_dim)
        with torch.inference_mode(False):  # else nobody outside inference mode could write to it later
            self.data = torch.empty(size, dtype=shape.dtype, device=device, pin_memory=pin)
        self.num_slots = num_slots
        self.slot_tokens = slot_tokens
        self.slot_bytes = slot_tokens * shape.bytes_per_token
        self.tokens: dict[int, int] = {}
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

    def make_room(self, num_tokens: int, keep: Container[int], limit_slots: int) -> bool:
        """Forget least recently used blocks, none of `keep`, until `num_tokens` fit within `limit_slots` used slots.

        Returns:
            whether they fit; if not, nothing is forgotten.
        """
        excess = self.used_slots + slots_for(num_tokens, self.slot_tokens) - limit_slots
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

    def write(self, block_id: int, kv: Tensor) -> None:
        """Copy a block's kv [L, 2, K, N, D], from any device, into free slots."""
        slots, here = self._take(block_id, kv.shape[3]), kv.to(self.data.device)
        for slot, part in zip(slots, torch.split(here, self.slot_tokens, dim=3), strict=True):
            self.data[:, slot, :, :, : part.shape[3]] = part  # [L, 2, K, P, D]

    def copy_from(self, other: Slab, block_id: int) -> None:
        """Copy a block that lies in `other`, of the same slot size, into free slots here."""
        slots = self._take(block_id, other.tokens[block_id])
        self.data[:, self._index(slots)] = other.data[:, other._index(other._slots[block_id])].to(self.data.device)

    def forget(self, block_id: int) -> None:
        """Free a block's slots."""
        for slot in self._slots.pop(block_id):
            heapq.heappush(self._free, slot)
        del self.tokens[block_id]

    def gather(self, layers: Sequence[int], ids: Sequence[int], counts: Sequence[int]) -> Tensor:
        """The first `counts` tokens of each resident block of `ids`: [len(layers), 2, K, N, D] on the slab's device."""
        slots, offsets = self._token_index(ids, counts)
        return torch.stack([gather_tokens(self.data[layer], slots, offsets) for layer in layers])

    def check_integrity(self) -> None:
        """Raise RuntimeError if a slot is lost or used twice, or a block has the wrong number of slots."""
        used = [slot for slots in self._slots.values() for slot in slots]
        if sorted(used + self._free) != list(range(self.num_slots)):
            raise RuntimeError("a slot is used twice, or neither free nor used")
        if self.tokens.keys() != self._slots.keys():
            raise RuntimeError("a slab's blocks and their token counts disagree")
        for block_id, slots in self._slots.items():
            if len(slots) != slots_for(self.tokens[block_id], self.slot_tokens):
                raise RuntimeError(f"block {block_id} of {self.tokens[block_id]} tokens lies in {len(slots)} slots")

    def _take(self, block_id: int, num_tokens: int) -> list[int]:
        needed = slots_for(num_tokens, self.slot_tokens)
        assert block_id not in self._slots, f"block {block_id} is in the slab already"
        assert needed <= len(self._free), f"block {block_id} needs {needed} slots, {len(self._free)} are free"
        self._slots[block_id] = slots = [heapq.heappop(self._free) for _ in range(needed)]
        self.tokens[block_id] = num_tokens
        return slots

    def _index(self, slots: Sequence[int]) -> Tensor:
        return torch.tensor(slots, dtype=torch.int64, device=self.data.device)

    def _token_index(self, ids: Sequence[int], counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Slot and offset of every token, each [N] int64."""
        per_slot = [
            (slot, min(self.slot_tokens, count - place * self.slot_tokens))
            for block_id, count in zip(ids, counts, strict=True)
            for place, slot in enumerate(self._slots[block_id][: slots_for(count, self.slot_tokens)])
        ]
        sizes = torch.tensor([size for _, size in per_slot], dtype=torch.int64)
        slots = torch.tensor([slot for slot, _ in per_slot], dtype=torch.int64).repeat_interleave(sizes)
        starts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        offsets = torch.arange(len(slots)) - starts
        return slots.to(self.data.device), offsets.to(self.data.device)
