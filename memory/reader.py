"""ReadStore: the blocks of a memory that others may be writing, as of a commit.

It writes nothing, holds no lock and never makes the writer wait for long. What it has read stays true, since blocks
never change and ids are never used again; a block can only be gone. This module knows nothing of levels, scores or
models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vstream.memory import folder as folders
from vstream.memory.block import Block, BlockShape, Tier
from vstream.memory.disk import DiskTier, StoredBlock
from vstream.memory.fetch import Fetch
from vstream.memory.store import BlockStore

ANY_DISK_BYTES = 1 << 60
"""How much may lie on disk is the writer's business, and another writer may allow more."""


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
        """Opens it; arguments as in `BlockStore`.

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
            disk_bytes=ANY_DISK_BYTES,
            folder=folder,
            identity=identity,
            max_block_tokens=max_block_tokens,
            max_state_bytes=max_state_bytes,
        )

    def refresh(self) -> bool:
        """Takes what has been committed since; whether that was anything.

        Raises:
            ValueError: if the index has outgrown the device's budget; then nothing has changed.
            RuntimeError: if the folder is gone or holds another memory now, or stored bytes are damaged.
        """
        disk = self._disk_tier
        if not disk.is_current:
            raise RuntimeError(f"the memory in {disk.folder} was removed or replaced while it was open; open it again")
        with disk.snapshot():
            commits = disk.num_commits
            if commits == self._seen_commits:
                return False
            stored, known = set(disk.block_ids()), set(self.entries)
            new = [disk.block(block_id) for block_id in sorted(stored - known)]
            extras = [self._extra_of(one) for one in new]
            state = disk.state
        self._check_room(len(stored))
        self._replace(sorted(known - stored), new, extras)
        self._state, self._seen_commits = state, commits
        return True

    def commit(self, add: Sequence[Block], remove: Sequence[int], state: bytes) -> None:
        """Not for readers."""
        raise AssertionError("a memory that is only read takes no commits")

    def picture(self, block_id: int) -> bytes:
        """A block's JPEG, b"" if it has none.

        Raises:
            BlockGoneError: if the block is no longer there.
        """
        self._check_known([block_id])
        found = super().picture(block_id)
        if not found and self.index.entry(block_id).picture_bytes:
            raise BlockGoneError(f"block {block_id} is gone")
        return found

    def fetch(self, ids: Sequence[int], lengths: Sequence[int] | None = None, layers: range | None = None) -> Fetch:
        """See `BlockStore.fetch`.

        Raises:
            BlockGoneError: if a block is no longer there.
        """
        self._check_known(ids)
        try:
            return super().fetch(ids, lengths, layers)
        except RuntimeError:
            gone = sorted(set(ids) - set(self._disk_tier.block_ids()))
            if not gone:
                raise
            raise BlockGoneError(f"blocks {gone} are gone") from None

    def _check_known(self, ids: Sequence[int]) -> None:
        """Blocks may be asked for that a `refresh` meanwhile has left out."""
        gone = sorted(set(ids) - self.entries.keys())
        if gone:
            raise BlockGoneError(f"blocks {gone} are gone")

    def _check_room(self, num_blocks: int) -> None:
        if num_blocks > self.representatives.max_rows:
            raise ValueError(
                f"the memory holds {num_blocks} blocks, but device_bytes={self.budgets[Tier.DEVICE]} has room for the "
                f"index of {self.representatives.max_rows}; give more"
            )

    def _replace(self, gone: Sequence[int], new: Sequence[StoredBlock], extras: Sequence[Tensor | None]) -> None:
        for block_id in gone:
            self._remove(block_id)
        self._reserve(len(new))
        for one, extra in zip(new, extras, strict=True):
            self._take(one, extra)

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
