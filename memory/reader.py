"""ReadStore: the blocks of a memory that another process may be writing, as of its last commit.

It writes nothing, holds no lock and never makes the writer wait. What it has read stays true, since blocks never change
and ids are never used again; a block can only be gone. This module knows nothing of levels, scores or models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vstream.memory import folder as folders
from vstream.memory.block import Block, BlockShape
from vstream.memory.budget import FIXED_DISK_BYTES
from vstream.memory.disk import DiskTier
from vstream.memory.store import BlockStore


class BlockGoneError(Exception):
    """The writer has condensed a block away since the last `refresh`: refresh, and begin again."""


class ReadStore(BlockStore):
    """A memory folder, read only, as of the last `refresh` (opening it is the first)."""

    def __init__(
        self,
        folder: Path,
        shape: BlockShape,
        *,
        device: torch.device,
        device_bytes: int,
        host_bytes: int,
        identity: Mapping[str, str | int],
        max_block_tokens: int,
        max_state_bytes: int,
    ) -> None:
        """Opens it; arguments as in `BlockStore`. How much may lie on disk is its writer's business.

        Raises:
            ValueError: if there is no whole memory of this identity, or its index does not fit the device's budget.
        """
        if not folders.find_memory(folder):
            raise ValueError(f"there is no memory in {folder}")
        self._seen_commits = -1
        super().__init__(
            shape,
            device=device,
            device_bytes=device_bytes,
            host_bytes=host_bytes,
            disk_bytes=folders.map_bytes(folder) + FIXED_DISK_BYTES,
            folder=folder,
            identity=identity,
            max_block_tokens=max_block_tokens,
            max_state_bytes=max_state_bytes,
        )

    def refresh(self) -> bool:
        """Takes what has been committed since; whether that was anything."""
        disk = self._disk_tier
        with disk.snapshot():
            commits = disk.num_commits
            if commits == self._seen_commits:
                return False
            stored, known = set(disk.block_ids()), {meta.id for meta in self.metas()}
            for block_id in sorted(known - stored):
                self._remove(block_id)
            new = [disk.block(block_id) for block_id in sorted(stored - known)]
            self.representatives.reserve(len(new))
            for one in new:
                self._add(one.meta, one.picture_bytes, one.representative)
            self._state = disk.state
        self._seen_commits = commits
        return True

    def commit(self, add: Sequence[Block], remove: Sequence[int], state: bytes) -> None:
        """Not for readers."""
        raise AssertionError("a memory that is only read takes no commits")

    def picture(self, block_id: int) -> bytes:
        """A block's JPEG, b"" if it has none.

        Raises:
            BlockGoneError: if the block is no longer there.
        """
        found = super().picture(block_id)
        if not found and self.index.entry(block_id).picture_bytes:
            raise BlockGoneError(f"block {block_id} is gone")
        return found

    def _gather(self, layers: range, ids: Sequence[int], lengths: Sequence[int] | None) -> Tensor:
        try:
            return super()._gather(layers, ids, lengths)
        except RuntimeError:
            gone = sorted(set(ids) - set(self._disk_tier.block_ids()))
            if not gone:
                raise
            raise BlockGoneError(f"blocks {gone} are gone") from None

    @property
    def _disk_tier(self) -> DiskTier:
        assert self.disk is not None, "a memory that is only read lies on disk"
        return self.disk

    def _open_tier(self, folder: Path, identity: Mapping[str, str | int]) -> DiskTier:
        tier = DiskTier.open_readonly(folder)
        try:
            folders.check_identity(folder, tier.identity, identity)
        except ValueError:
            tier.close()
            raise
        return tier

    def _load(self) -> None:
        try:
            self.refresh()
        except BaseException:
            self.close()
            raise
