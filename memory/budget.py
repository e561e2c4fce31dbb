"""What a block costs and how the budgets are split, worked out once when a store opens.

This module allocates nothing and knows nothing of blocks that exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from vstream.memory.block import BlockShape, Form, Tier
from vstream.memory.codec import Codec, make_codecs
from vstream.memory.records import PAGE_BYTES, PAGE_CHARGE, meta_bytes, num_pages
from vstream.memory.slab import slot_row_bytes, slots_for

FIXED_DISK_BYTES = 16 * PAGE_BYTES
"""Disk budget kept for the files beside data.mdb and for LMDB's own meta pages."""
COMMIT_BLOCKS = 3
"""Largest blocks that one commit may add at the edge of the capacity: copy-on-write needs new pages before old ones."""


@dataclass(frozen=True)
class Budgets:
    """The bytes given for each tier (0: the tier keeps no blocks) and what is to be kept in them.

    Attributes:
        shape: of all blocks.
        tiers: bytes by tier.
        max_block_tokens: tokens of the largest block.
        slot_tokens: tokens per slot of a slab.
        max_state_bytes: the session's state never gets larger.
    """

    shape: BlockShape
    tiers: dict[Tier, int]
    max_block_tokens: int
    slot_tokens: int
    max_state_bytes: int

    def __post_init__(self) -> None:
        for tier, given in self.tiers.items():
            if given < 0:
                raise ValueError(f"{_name(tier)} must be >= 0, got {given}")
        if not any(self.tiers.values()):
            raise ValueError(
                "device_bytes, host_bytes and disk_bytes are all 0; give one of them bytes to keep memory in"
            )
        for name in ("max_block_tokens", "slot_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        largest, given = self._largest_bytes, self.tiers[self.home]
        if self.capacity_bytes < largest:
            raise ValueError(
                f"{_name(self.home)}={given} cannot hold one block of {self.max_block_tokens} tokens; "
                f"give at least {self.needed_bytes(largest)}"
            )
        if self.max_blocks < 1:
            raise ValueError(
                f"{_name(Tier.DEVICE)}={self.tiers[Tier.DEVICE]} cannot hold one block's representative; "
                f"give at least {self._row_bytes}"
            )

    @cached_property
    def home(self) -> Tier:
        """The lowest tier with a budget: where every block lives."""
        return max(tier for tier, given in self.tiers.items() if given)

    @cached_property
    def codecs(self) -> dict[str, Codec]:
        """All codecs, by name."""
        return make_codecs(self.shape)

    @cached_property
    def slot_bytes(self) -> int:
        """Bytes of one slot."""
        return self.shape.num_layers * slot_row_bytes(self.codecs, self.slot_tokens)

    @cached_property
    def capacity_bytes(self) -> int:
        """The most that all blocks together may be charged at home.

        On disk 85% of the map, or all but what a commit's copy-on-write needs where that is less; in a slab its slots.
        """
        if self.home is not Tier.DISK:
            return self.tiers[self.home] // self._home_slot_bytes * self.slot_bytes
        room = self.tiers[Tier.DISK] - FIXED_DISK_BYTES - self._state_bytes
        return max(0, min(room * 85 // 100, room - COMMIT_BLOCKS * self._largest_bytes))

    @cached_property
    def max_blocks(self) -> int:
        """Most blocks at once: bounded by the home, and by the device bytes that their representatives may take."""
        device = self.tiers[Tier.DEVICE]
        if self.home is Tier.DEVICE or not device:
            return self._home_blocks
        share = device // 2 if self._fits_cache(device - device // 2) else device
        return min(self._home_blocks, share // self._row_bytes)

    def slots(self, tier: Tier) -> int:
        """Slots of a tier's slab; 0 where it keeps no blocks or is a cache too small for the largest one."""
        given = self.tiers[tier]
        if tier is self.home:
            return self.capacity_bytes // self.slot_bytes
        cache = given - self.max_blocks * self._row_bytes if tier is Tier.DEVICE else given * 15 // 16
        return cache // self.slot_bytes if given and self._fits_cache(cache) else 0

    def charge(self, form: Form, picture_bytes: int = 0, foreign_bytes: int = 0) -> int:
        """Bytes a block counts at home: its own, at least a share so large that `max_blocks` is never exceeded.

        A block that another retrieval policy has stored may have `foreign_bytes` more of its own than this one's.
        """
        share = -(-self.capacity_bytes // self.max_blocks) if self.max_blocks < self._home_blocks else 0
        return max(self._record_bytes(form, picture_bytes, foreign_bytes), share)

    def check_holds(self, sizes: Sequence[tuple[Form, int, int]], what: str) -> None:
        """Raise ValueError unless blocks of these sizes, as `charge` takes them, fit; says which budget they need."""
        own = sum(self._record_bytes(*size) for size in sizes)
        if own > self.capacity_bytes:
            short, needed = self.home, self.needed_bytes(own)
        elif sum(self.charge(*size) for size in sizes) > self.capacity_bytes:
            short, needed = Tier.DEVICE, 2 * self._home_blocks * self._row_bytes
        else:
            return
        raise ValueError(f"{_name(short)}={self.tiers[short]} is less than {what} uses; give at least {needed}")

    def needed_bytes(self, used: int) -> int:
        """The smallest home budget whose capacity is at least `used`."""
        if self.home is not Tier.DISK:
            return -(-used // self.slot_bytes) * self._home_slot_bytes
        room = max(-(-used * 100 // 85) + 1, used + COMMIT_BLOCKS * self._largest_bytes)
        return room + FIXED_DISK_BYTES + self._state_bytes

    def _record_bytes(self, form: Form, picture_bytes: int = 0, foreign_bytes: int = 0) -> int:
        """Bytes that a block with its metadata, representative and picture takes at home, at most."""
        metadata = meta_bytes(form.num_tokens) + foreign_bytes
        if self.home is Tier.DISK:
            payload = self.codecs[form.codec].num_bytes(form.num_tokens)
            parts = [payload, metadata + self.shape.representative_bytes]
            parts += [picture_bytes] if picture_bytes else []
            return sum(map(num_pages, parts)) * PAGE_CHARGE
        row = self._row_bytes if self.home is Tier.DEVICE else 0
        return self._slots_for(form) * self.slot_bytes + metadata + row + picture_bytes

    def _slots_for(self, form: Form) -> int:
        return slots_for(form, self.codecs, self.slot_tokens)

    def fill(self, form: Form) -> int:
        """The most tokens that take no more slots or pages at home than those of a form."""
        tokens, taken = form.num_tokens, self._payload_units(form)
        while self._payload_units(Form(tokens + 1, form.codec)) == taken:
            tokens += 1
        return tokens

    def _payload_units(self, form: Form) -> int:
        if self.home is not Tier.DISK:
            return self._slots_for(form)
        return num_pages(self.codecs[form.codec].num_bytes(form.num_tokens))

    def _fits_cache(self, given: int) -> bool:
        return given // self.slot_bytes >= max(map(self._slots_for, self._forms(self.max_block_tokens)))

    def _forms(self, num_tokens: int) -> list[Form]:
        return [Form(num_tokens, name) for name in self.codecs]

    @cached_property
    def _largest_bytes(self) -> int:
        """The most that any block may take."""
        return max(map(self._record_bytes, self._forms(self.max_block_tokens)))

    @cached_property
    def _home_blocks(self) -> int:
        """Most blocks that the home has bytes for."""
        return self.capacity_bytes // min(map(self._record_bytes, self._forms(1)))

    @cached_property
    def _row_bytes(self) -> int:
        """A representative's row, and half a row more for the old table while it grows."""
        return self.shape.representative_bytes * 3 // 2

    @property
    def _home_slot_bytes(self) -> int:
        """A home slot and, on the device, the representative that a block in it may have."""
        return self.slot_bytes + (self._row_bytes if self.home is Tier.DEVICE else 0)

    @property
    def _state_bytes(self) -> int:
        """The old state and the new one on disk, and the tree and free-list pages of a commit."""
        return (2 * num_pages(self.max_state_bytes) + 32) * PAGE_CHARGE


def _name(tier: Tier) -> str:
    return f"{tier.name.lower()}_bytes"
