"""The block store: where every block's bytes live, in which tiers, and what is pinned there.

Every block lives at its *home*, the lowest tier that has a budget; the tiers above are write-through caches of it whose
eviction is only forgetting. So the capacity is the home's, no eviction loses anything, and "acknowledged is durable" is
one transaction. This module knows nothing of scores or models, nor what a level means. One thread at a time may use a
store.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from vstream.memory import integrity
from vstream.memory.block import Block, BlockMeta, BlockShape, Form, Tier, lead_tokens
from vstream.memory.budget import Budgets
from vstream.memory.disk import DiskTier, StoredBlock
from vstream.memory.fetch import Fetch
from vstream.memory.index import BlockIndex, Entry
from vstream.memory.records import meta_bytes, own
from vstream.memory.representatives import RepresentativeTable
from vstream.memory.tiers import Tiers


class BlockStore:
    """Blocks of one stream within a budget per tier; `commit` alone changes what is remembered.

    Always safe: every read. Blocks in `pinned` are neither evicted from the caches nor removed. Representatives lie on
    the device in any case; with `device_bytes=0` they are counted there without a limit of their own.

    Attributes:
        home: the tier where every block lives.
        codecs: by name; every block names its own.
        index: every block's metadata, and totals.
        slabs: home or cache slab by tier, where it has slots.
        disk: the disk tier, if it is the home.
        pictures: by block id, where the home is not the disk.
        representatives: of all blocks.
        extras: what the retrieval policy keeps of all blocks, [A, H, D] each; None where it keeps nothing.
        peaks: the most bytes seen in each tier.
    """

    def __init__(
        self,
        shape: BlockShape,
        *,
        device: torch.device,
        device_bytes: int,
        host_bytes: int,
        disk_bytes: int,
        folder: Path | None = None,
        identity: Mapping[str, str | int],
        max_block_tokens: int,
        slot_tokens: int | None = None,
        max_state_bytes: int = 256 * 1024,
    ) -> None:
        """Open the store; blocks that a persistent `folder` holds are there at once, their payload is not read.

        Args:
            shape: of all blocks.
            device: where gathered blocks are wanted.
            device_bytes, host_bytes, disk_bytes: budgets; 0 leaves a tier out.
            folder: a memory folder to open or make. Without one, disk bytes live in a temporary folder until `close`.
            identity: what made the keys and values; a folder of another identity is refused.
            max_block_tokens: no block has more tokens.
            slot_tokens: uncompressed tokens per slot of a slab; by default a sixteenth of the largest block, up to 8,
                so that little room is left over in the last slot of a block that is compressed.
            max_state_bytes: the session's state is never larger.

        Raises:
            ValueError: if a budget is too small, or the folder is not a whole memory of this identity.
            OSError: if the folder cannot be written to, or another process is writing to it.
        """
        if folder is not None and not disk_bytes:
            raise ValueError(f"disk_bytes is 0, but {folder} is to hold the memory; give disk_bytes > 0")
        tiers = {Tier.DEVICE: device_bytes, Tier.HOST: host_bytes, Tier.DISK: disk_bytes}
        slot_tokens = slot_tokens if slot_tokens is not None else max(1, min(8, max_block_tokens // 16))
        self._budgets = Budgets(shape, tiers, max_block_tokens, slot_tokens, max_state_bytes)
        self.shape, self.device, self.home = shape, device, self._budgets.home
        self.codecs = self._budgets.codecs
        self.durable = folder is not None
        self.index = BlockIndex()
        self.pictures: dict[int, bytes] = {}
        self._state: bytes | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self.disk = self._open_disk(folder, identity)
        self._tiers = Tiers(self._budgets, device=device, disk=self.disk)
        self.slabs = self._tiers.slabs
        max_rows = self._budgets.max_blocks
        self.representatives = RepresentativeTable(shape.representative_size, device=device, max_rows=max_rows)
        extra = shape.extra
        self.extras = RepresentativeTable(extra.size, device=device, max_rows=max_rows) if extra else None
        self._load()
        self.peaks = dict.fromkeys(Tier, 0)
        self._note_use()

    @property
    def budgets(self) -> dict[Tier, int]:
        """The bytes given for each tier."""
        return dict(self._budgets.tiers)

    @property
    def capacity_bytes(self) -> int:
        """The most that all blocks together may be charged at home."""
        return self._budgets.capacity_bytes

    @property
    def used_bytes(self) -> int:
        """What all blocks together are charged at home."""
        return self.index.used_bytes

    @property
    def index_bytes(self) -> int:
        """RAM that the blocks' metadata take and, where the home is not the disk, their pictures."""
        return self.index.ram_bytes

    def level_bytes(self, level: int) -> int:
        """What a level's blocks are charged at home."""
        return self.index.level_bytes(level)

    def num_blocks(self, level: int) -> int:
        """How many blocks a level has."""
        return self.index.num_blocks(level)

    def bytes_of(self, num_tokens: int, picture_bytes: int = 0, codec: str = "none") -> int:
        """What a block is charged at home, its metadata, representative and picture included."""
        return self._budgets.charge(Form(num_tokens, codec), picture_bytes)

    def charge_of(self, block: Block) -> int:
        """What a block, stored or not, is charged at home."""
        return self._budgets.charge(block.meta.form, len(block.picture))

    def fill(self, form: Form) -> int:
        """The most tokens that take no more slots or pages at home than those of a form."""
        return self._budgets.fill(form)

    def payload_bytes(self, form: Form) -> int:
        """Bytes of a block's keys and values, as they are stored."""
        return self.codecs[form.codec].num_bytes(form.num_tokens)

    def charged_bytes(self, block_id: int) -> int:
        """What a stored block is charged at home."""
        return self.index.entry(block_id).charge

    def fits(self, add_bytes: int, remove: Collection[int] = ()) -> bool:
        """Whether blocks charged `add_bytes` can be committed while the blocks `remove` leave."""
        freed = sum(self.charged_bytes(block_id) for block_id in remove)
        return self.used_bytes + add_bytes - freed <= self.capacity_bytes

    def tier_bytes(self) -> dict[Tier, int]:
        """Bytes in use: device with all representatives, host with the index, disk as the file's size."""
        slabs = {tier: slab.used_bytes for tier, slab in self.slabs.items()}
        return {
            Tier.DEVICE: slabs.get(Tier.DEVICE, 0) + sum(table.nbytes for table in self.tables),
            Tier.HOST: slabs.get(Tier.HOST, 0) + self.index_bytes,
            Tier.DISK: self.disk.file_bytes if self.disk else 0,
        }

    @property
    def entries(self) -> dict[int, Entry]:
        """What the index knows of each block, by block id."""
        return self.index.entries

    @property
    def tables(self) -> list[RepresentativeTable]:
        """What choosing among blocks reads: mean keys and, where the policy keeps more, that."""
        return [self.representatives] if self.extras is None else [self.representatives, self.extras]

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, block_id: int) -> bool:
        return block_id in self.entries

    def metas(self) -> list[BlockMeta]:
        """All blocks' metadata in time order."""
        return self.index.metas()

    def metas_on(self, level: int) -> list[BlockMeta]:
        """A level's blocks' metadata in time order."""
        return [meta for meta in self.metas() if meta.level == level]

    def meta(self, block_id: int) -> BlockMeta:
        """One block's metadata."""
        return self.index.entry(block_id).meta

    @property
    def state(self) -> bytes | None:
        """The session's state of the last commit, None before the first."""
        return self._state

    def picture(self, block_id: int) -> bytes:
        """A block's JPEG, b"" if it has none."""
        if not self.index.entry(block_id).picture_bytes:
            return b""
        return self.disk.picture(block_id) if self.disk else self.pictures[block_id]

    def tier_of(self, block_id: int) -> Tier:
        """The fastest tier that holds a block."""
        assert block_id in self, f"there is no block {block_id}"
        return self._tiers.of(block_id)

    def commit(self, add: Sequence[Block], remove: Sequence[int], state: bytes) -> None:
        """Add and remove blocks and replace the session's state in one step, durable on return in a persistent folder.

        Raises:
            OSError, RuntimeError: if the disk refuses; then nothing has changed, and the store can still be read.
        """
        self._check_commit(add, remove, state, sum(map(self.charge_of, add)))
        packed = [(block, self._encode(block)) for block in add]
        self._reserve(max(0, len(add) - len(remove)))
        if self.disk:
            self.disk.write(packed, remove, state, self.shape.extra.policy if self.shape.extra else "")
        for block_id in remove:
            self._remove(block_id)
        for block, rows in packed:
            self._add(own(block.meta), len(block.picture), block.representative, block.extra)
            if not self.disk and block.picture:
                self.pictures[block.meta.id] = block.picture
            self._tiers.put(block.meta.id, block.meta.form, rows)
        self._state = bytes(state)
        self._note_use()

    def gather(self, ids: Sequence[int], lengths: Sequence[int] | None = None) -> Tensor:
        """Blocks' kv [L, 2, K, N, D] on the device, concatenated in the order given.

        Without a codec they are bit for bit as committed; with one, the bits do not depend on which are read together.

        Args:
            ids: blocks, in the order wanted.
            lengths: take only so many first tokens of each block.

        Raises:
            RuntimeError: if stored bytes are damaged.
        """
        return self.fetch(ids, lengths).read()

    def gather_layer(self, layer: int, ids: Sequence[int], lengths: Sequence[int] | None = None) -> Tensor:
        """One layer of blocks, [2, K, N, D] on the device, concatenated in the order given; else as `gather`."""
        return self.fetch(ids, lengths, range(layer, layer + 1)).read()[0]

    def fetch(self, ids: Sequence[int], lengths: Sequence[int] | None = None, layers: range | None = None) -> Fetch:
        """Blocks made ready to be read a layer at a time, until the next fetch or commit; arguments as of `gather`.

        Args:
            layers: a stretch of them; by default all.
        """
        forms = {block_id: self.meta(block_id).form for block_id in ids}
        counts = [forms[block_id].num_tokens for block_id in ids] if lengths is None else lengths
        for block_id, count in zip(ids, counts, strict=True):
            assert 0 < count <= forms[block_id].num_tokens, f"{count} tokens of {self.meta(block_id)}"
        found = self._tiers.fetch(layers or range(self.shape.num_layers), ids, counts, forms)
        self._note_use()
        return found

    @contextmanager
    def pinned(self, ids: Sequence[int]) -> Iterator[None]:
        """While entered, these blocks are neither evicted from a cache nor may be removed; pins nest."""
        for block_id in ids:
            assert block_id in self, f"there is no block {block_id} to pin"
        self.pins.update(ids)
        try:
            yield
        finally:
            self.pins.subtract(ids)
            for block_id in [block_id for block_id, count in self.pins.items() if count == 0]:
                del self.pins[block_id]

    @property
    def pins(self) -> Counter[int]:
        """How often each pinned block is pinned."""
        return self._tiers.pins

    def check_integrity(self, deep: bool = False) -> None:
        """Compare everything the store believes with what is there.

        Args:
            deep: also read every byte, verify its checksum, and compare cached copies with home bit for bit.

        Raises:
            RuntimeError: naming the first thing that is wrong.
        """
        integrity.check(self, deep)

    def close(self) -> None:
        """Let go of files and locks; may be called again. A temporary folder is removed."""
        if self.disk:
            self.disk.close()
        if self._temporary:
            self._temporary.cleanup()

    def __enter__(self) -> BlockStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_disk(self, folder: Path | None, identity: Mapping[str, str | int]) -> DiskTier | None:
        if self.home is not Tier.DISK:
            return None
        if folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="vstream-")
        where = folder if folder is not None else Path(self._temporary.name)  # type: ignore[union-attr]
        shape = self.shape
        layout: dict[str, str | int] = {
            "layers": shape.num_layers, "kv heads": shape.num_kv_heads, "head dim": shape.head_dim,
            "dtype": str(shape.dtype).removeprefix("torch."),
        }  # fmt: skip
        return self._open_tier(where, {**identity, **layout})

    def _open_tier(self, folder: Path, identity: Mapping[str, str | int]) -> DiskTier:
        return DiskTier.open(folder, identity, disk_bytes=self._budgets.tiers[Tier.DISK], durable=self.durable)

    def _load(self) -> None:
        """Take the index and the state from the disk."""
        if not self.disk:
            return
        try:
            found = list(self.disk.blocks())
            sizes = [(one.meta.form, one.picture_bytes, self._foreign_bytes(one)) for one in found]
            self._budgets.check_holds(sizes, f"the memory in {self.disk.folder}")
            self._reserve(len(found))
            for one in found:
                self._take(one, self._extra_of(one))
            self._state = self.disk.state
        except BaseException:
            self.close()
            raise

    def _check_commit(self, add: Sequence[Block], remove: Sequence[int], state: bytes, add_bytes: int) -> None:
        new = [block.meta.id for block in add]
        taken = [block_id for block_id in new if block_id in self]
        assert not taken, f"blocks {taken} are stored already"
        assert len(set(new)) == len(new), f"a block is added twice in {new}"
        assert len(set(remove)) == len(remove), f"a block is removed twice in {list(remove)}"
        pinned = [block_id for block_id in remove if block_id in self.pins]
        assert not pinned, f"blocks {pinned} are pinned and cannot be removed"
        for block in add:
            size = (self.shape.num_layers, 2, self.shape.num_kv_heads, block.meta.num_tokens, self.shape.head_dim)
            assert block.kv.shape == size, f"{block} in a store of {self.shape}"
            assert block.kv.dtype == self.shape.dtype, f"{block} in a store of {self.shape}"
            assert block.meta.codec in self.codecs, f"{block} has an unknown codec {block.meta.codec!r}"
            assert 0 < block.meta.num_tokens <= self._budgets.max_block_tokens, f"{block} is empty or too large"
            extra = None if block.extra is None else tuple(block.extra.shape)
            wanted = self.shape.extra.size if self.shape.extra else None
            assert extra == wanted, f"{block} has an extra of {extra}, not of {wanted}"
        assert len(state) <= self._budgets.max_state_bytes, f"a state of {len(state)} bytes is too large"
        full = f"{add_bytes} bytes more do not fit: {self.used_bytes} of {self.capacity_bytes}"
        assert self.fits(add_bytes, remove), full

    def _reserve(self, num_blocks: int) -> None:
        for table in self.tables:
            table.reserve(num_blocks)

    def _encode(self, block: Block) -> Tensor:
        """A block's payload, see `Codec.encode`."""
        return self.codecs[block.meta.codec].encode(block.kv, lead_tokens(block.meta.seconds))

    def _add(
        self, meta: BlockMeta, picture_bytes: int, representative: Tensor, extra: Tensor | None, foreign_bytes: int = 0
    ) -> None:
        ram_bytes = meta_bytes(meta.num_tokens) + (0 if self.disk else picture_bytes)
        charge = self._budgets.charge(meta.form, picture_bytes, foreign_bytes)
        self.index.add(Entry(meta, picture_bytes, charge, ram_bytes))
        self.representatives.add(meta.id, representative)
        if self.extras is not None:
            assert extra is not None, f"{meta} has nothing of what the policy keeps"
            self.extras.add(meta.id, extra)

    def _take(self, stored: StoredBlock, extra: Tensor | None) -> None:
        """Into the index, as the disk has it."""
        self._add(stored.meta, stored.picture_bytes, stored.representative, extra, self._foreign_bytes(stored))

    def _foreign_bytes(self, stored: StoredBlock) -> int:
        """What a block takes on disk for its extra, above today's."""
        return max(0, (0 if stored.extra is None else stored.extra.tensor.nbytes) - self.shape.extra_bytes)

    def _extra_of(self, stored: StoredBlock) -> Tensor | None:
        """What the retrieval policy keeps of a stored block: as stored or, if it was not, made of its kv."""
        wanted, found = self.shape.extra, stored.extra
        if wanted is None:
            return None
        if found is not None and (found.policy, tuple(found.tensor.shape)) == (wanted.policy, wanted.size):
            return found.tensor
        assert self.disk is not None, f"{stored.meta} was stored, but there is no disk"
        meta, codec = stored.meta, self.codecs[stored.meta.codec]
        rows = self.disk.read_rows(meta.id, codec, meta.num_tokens, range(wanted.size[0]))
        kv = codec.decode(rows, torch.zeros(meta.num_tokens, dtype=torch.int64))
        made = wanted.describe(kv, meta.kinds)
        if made is None:
            raise ValueError(
                f"policy={wanted.policy!r} needs of every block what only it keeps, and the memory in "
                f"{self.disk.folder} was made with another; choose another policy, or give another folder"
            )
        return made

    def _remove(self, block_id: int) -> None:
        self.index.remove(block_id)
        for table in self.tables:
            table.remove(block_id)
        self.pictures.pop(block_id, None)
        self._tiers.forget(block_id)

    def _note_use(self) -> None:
        """Evict what the grown index leaves no room for, and remember the peaks."""
        self._tiers.reserved = self.index_bytes
        self._tiers.shrink()
        self.peaks = {tier: max(self.peaks[tier], used) for tier, used in self.tier_bytes().items()}
