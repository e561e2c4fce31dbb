"""Memory folders: what is refused and how it is said, full and read-only disks, two writers, long use."""

import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from blocks import MAX_TOKENS, SHAPE, make_block, raw, same_meta

from vstream.memory import folder as folders
from vstream.memory.block import Block, BlockShape, Tier
from vstream.memory.codec import make_codec
from vstream.memory.disk import DiskTier
from vstream.memory.store import BlockStore

KIB = 1024
BUDGET = 800 * KIB


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny tensors: a thread pool would only wait for other processes' threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def open_store(folder, *, disk_bytes=BUDGET, device_bytes=0, model="alpha", shape=SHAPE, max_block_tokens=MAX_TOKENS):
    return BlockStore(
        shape,
        device=torch.device("cpu"),
        device_bytes=device_bytes,
        host_bytes=0,
        disk_bytes=disk_bytes,
        folder=folder,
        identity={"model": model},
        max_block_tokens=max_block_tokens,
        max_state_bytes=20_000,
    )


def fill(store, ids):
    for block_id in ids:
        store.commit([make_block(block_id)], [], f"state {block_id}".encode())


@pytest.fixture
def folder(tmp_path):
    """A closed memory of five blocks."""
    with open_store(tmp_path / "memory") as store:
        fill(store, range(5))
    return tmp_path / "memory"


def mount(*arguments):
    """Run mount; where that is not allowed, skip, but never under CI."""
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        message = f"COULD NOT TEST a full or read-only disk, mount says: {done.stderr.strip()}"
        assert os.environ.get("CI") != "true", message
        pytest.skip(message)


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 1 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", path)
    yield path
    subprocess.run(["umount", path], check=True)


def test_layout_and_reopening(folder):
    assert {"data.mdb", "lock.mdb", "vstream.json", "writer.lock"} == set(os.listdir(folder))
    manifest = json.loads((folder / "vstream.json").read_text())
    assert manifest["format_version"] == 2
    assert manifest["identity"] == {
        "model": "alpha", "layers": 2, "kv heads": 2, "head dim": 16, "dtype": "float32",
    }  # fmt: skip
    with open_store(folder) as store:
        assert store.durable
        assert store.state == b"state 4"
        assert all(raw(store.gather([i])) == raw(make_block(i).kv) for i in range(5))
        assert all(store.picture(i) == make_block(i).picture for i in range(5))
        store.check_integrity(deep=True)
        fill(store, [5])


def test_readonly_shows_what_is_there(folder):
    with DiskTier.open_readonly(folder) as tier:
        blocks = list(tier.blocks())
        assert [stored.meta.id for stored in blocks] == [0, 1, 2, 3, 4]
        assert all(same_meta(stored.meta, make_block(stored.meta.id).meta) for stored in blocks)
        assert (tier.state, tier.identity["model"], tier.created[:2]) == (b"state 4", "alpha", "20")
        assert tier.file_bytes == (folder / "data.mdb").stat().st_size
    with pytest.raises(ValueError, match="there is no memory in"):
        DiskTier.open_readonly(folder.parent / "none")


@pytest.mark.slow
def test_readonly_beside_a_writer_in_another_process(folder):
    code = f"""
from pathlib import Path
from vstream.memory.disk import DiskTier
with DiskTier.open_readonly(Path({str(folder)!r})) as tier:
    print(sorted(stored.meta.id for stored in tier.blocks()))
"""
    with open_store(folder) as store:
        fill(store, [5])
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[0, 1, 2, 3, 4, 5]"


@pytest.mark.slow
def test_one_writer_in_all_processes(folder):
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_disk import open_store
from pathlib import Path
open_store(Path({str(folder)!r}))
"""
    with open_store(folder):
        second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert second.returncode != 0
        assert f"another process is writing to the memory folder {folder}" in second.stderr
        with pytest.raises(OSError, match="another process is writing"):
            open_store(folder)
    third = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert third.returncode == 0, third.stderr


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model": "beta", "shape": replace(SHAPE, dtype=torch.bfloat16)}, "made with model 'alpha', not 'beta'"),
        ({"shape": replace(SHAPE, dtype=torch.bfloat16)}, "made with dtype 'float32', not 'bfloat16'"),
        ({"shape": BlockShape(3, 2, 16, torch.float32)}, "made with layers 2, not 3"),
    ],
)
def test_another_models_folder_is_refused(folder, changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        open_store(folder, **changes)
    open_store(folder).close()


def test_a_model_of_another_name_may_be_the_same(folder):
    """A checkpoint's folder may be moved: its fingerprint, which is part of the identity too, tells."""
    open_store(folder, model="beta").close()
    assert folders.read_manifest(folder)["identity"]["model"] == "alpha"


def test_what_is_not_a_whole_memory_is_refused(folder, tmp_path):
    manifest, data = folder / "vstream.json", folder / "data.mdb"
    text = manifest.read_text()
    with pytest.raises(ValueError, match=r"vstream.json is a file; a memory needs a folder"):
        open_store(manifest)
    for version in (0, 1, "one"):
        manifest.write_text(json.dumps(json.loads(text) | {"format_version": version}))
        with pytest.raises(ValueError, match=f"has format version {version!r}, but this vstream reads version 2"):
            open_store(folder)
    for wrong in ("", "[]", "{}"):
        manifest.write_text(wrong)
        with pytest.raises(ValueError, match=r"vstream.json is damaged"):
            open_store(folder)
    manifest.unlink()
    with pytest.raises(
        ValueError, match=r"half of the memory .* is missing: data.mdb is there, but vstream.json is not"
    ):
        open_store(folder)
    manifest.write_text(text)
    data.rename(tmp_path / "aside")
    with pytest.raises(
        ValueError, match=r"half of the memory .* is missing: vstream.json is there, but data.mdb is not"
    ):
        open_store(folder)
    (tmp_path / "aside").rename(data)
    open_store(folder).close()


def test_a_folder_of_other_things_is_refused_and_left_alone(tmp_path):
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(ValueError, match=r"is not a memory folder: it holds holiday.jpg"):
        open_store(tmp_path)
    assert os.listdir(tmp_path) == ["holiday.jpg"]


@pytest.mark.parametrize("kept", [0, 100, 5000, 8192, 0.5, -1])
def test_a_truncated_file_is_refused_before_it_is_mapped(folder, kept):
    size = folders.check_whole(folder)
    os.truncate(folder / "data.mdb", int(size * kept) if isinstance(kept, float) else kept % size)
    with pytest.raises(ValueError, match=r"data.mdb is truncated or damaged"):
        open_store(folder)
    with pytest.raises(ValueError, match=r"data.mdb is truncated or damaged"):
        DiskTier.open_readonly(folder)


def test_a_whole_file_is_never_called_truncated(tmp_path):
    """LMDB leaves pages unwritten that it took and gave back: after any commit the file must still look whole."""
    rng = random.Random(5)
    with open_store(tmp_path / "memory") as store:
        for i in range(150):
            remove = [block_id for block_id in store.entries if rng.random() < 0.3]
            store.commit([make_block(i)], remove, bytes(rng.randint(0, 20_000)))
            folders.check_whole(tmp_path / "memory")


def test_data_of_another_memory_is_refused(folder, tmp_path):
    with open_store(tmp_path / "other", model="beta") as store:
        fill(store, [9])
    shutil.copy(tmp_path / "other" / "data.mdb", folder / "data.mdb")
    with pytest.raises(ValueError, match=r"is another's: data.mdb is not the one of vstream.json"):
        open_store(folder)


def test_creation_cut_short_is_finished_at_the_next_opening(tmp_path):
    open_store(tmp_path / "memory").close()
    (tmp_path / "memory" / "vstream.json").unlink()
    with open_store(tmp_path / "memory", model="beta") as store:
        fill(store, [1])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "data.mdb").touch()
    (tmp_path / "empty" / "vstream.json.new").touch()
    with open_store(tmp_path / "empty") as store:
        fill(store, [1])


def test_the_disk_budget_may_grow_but_not_below_what_is_used(folder):
    with open_store(folder) as store:
        i = 5
        while store.fits(store.bytes_of(MAX_TOKENS, 10_000)):
            fill(store, [i])
            i += 1
        used = store.used_bytes
    with pytest.raises(
        ValueError, match=r"disk_bytes=500000 is less than the memory in .* give at least \d+"
    ) as refused:
        open_store(folder, disk_bytes=500_000)
    enough = int(str(refused.value).split()[-1])
    assert enough <= BUDGET
    with open_store(folder, disk_bytes=enough) as store:
        store.check_integrity(deep=True)
    with pytest.raises(ValueError, match="is less than the memory"):
        open_store(folder, disk_bytes=enough - 4096)
    with open_store(folder, disk_bytes=3 * BUDGET) as store:
        assert store.capacity_bytes > 2 * used
        while store.fits(store.bytes_of(MAX_TOKENS, 10_000)):
            fill(store, [i])
            i += 1
        assert store.used_bytes > 2 * used
        assert store.tier_bytes()[Tier.DISK] <= 3 * BUDGET
        store.check_integrity(deep=True)


def test_a_device_budget_too_small_for_the_representatives_is_refused(folder):
    with pytest.raises(
        ValueError, match=r"device_bytes=600 is less than the memory in .* give at least \d+"
    ) as refused:
        open_store(folder, device_bytes=600)
    with open_store(folder, device_bytes=int(str(refused.value).split()[-1])) as store:
        store.check_integrity(deep=True)


def test_a_commit_that_does_not_fit_the_map_changes_nothing(tmp_path):
    """Copy-on-write needs the new pages before the old ones are free: replacing everything at once is too much."""
    with open_store(tmp_path / "memory") as store:
        i = 0
        while store.fits(store.bytes_of(MAX_TOKENS)):
            store.commit([make_block(i, tokens=MAX_TOKENS, picture_bytes=0)], [], b"before")
            i += 1
        old, before = list(store.entries), store.tier_bytes()
        new = [make_block(1000 + i, tokens=MAX_TOKENS, picture_bytes=0) for i in range(len(old))]
        with pytest.raises(RuntimeError, match=r"no room for \d+ more blocks .* nothing was changed; give it a larger"):
            store.commit(new, old, b"after")
        assert (list(store.entries), store.state, store.tier_bytes()) == (old, b"before", before)
        store.check_integrity(deep=True)
        store.commit(new[:2], old[:2], b"after")
        store.check_integrity(deep=True)


def test_a_full_disk_changes_nothing(small_disk):
    with open_store(small_disk / "memory", disk_bytes=8_000 * KIB) as store:
        with pytest.raises(OSError, match=r"\d+ bytes are free there\), so nothing was changed"):
            fill(store, range(1000))
        count = len(store)
        assert count > 10
        assert store.state == f"state {count - 1}".encode()
        store.check_integrity(deep=True)
        with pytest.raises(OSError, match="nothing was changed"):
            fill(store, [count])
        assert all(raw(store.gather([i])) == raw(make_block(i).kv) for i in range(count))
    with open_store(small_disk / "memory", disk_bytes=8_000 * KIB) as store:
        assert sorted(store.entries) == list(range(count))
        store.check_integrity(deep=True)
        subprocess.run(["mount", "-o", "remount,size=2m", small_disk], check=True)
        fill(store, range(count, count + 10))
        store.check_integrity(deep=True)


def test_no_space_at_creation_leaves_nothing_behind(small_disk):
    with (small_disk / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(small_disk).free)
    (small_disk / "memory").mkdir()
    with pytest.raises(OSError, match=r"cannot create a memory in .*memory.*No space left on device"):
        open_store(small_disk / "memory")
    assert set(os.listdir(small_disk / "memory")) <= {"writer.lock"}
    (small_disk / "filler").unlink()
    with open_store(small_disk / "memory") as store:
        fill(store, [1])


def test_a_readonly_mount_can_be_looked_at_but_not_written(small_disk):
    with open_store(small_disk / "memory") as store:
        fill(store, range(3))
    mount("-o", "remount,ro", small_disk)
    with pytest.raises(OSError, match=r"cannot write to the memory folder .*: Read-only file system"):
        open_store(small_disk / "memory")
    with pytest.raises(OSError, match=r"Read-only file system"):
        open_store(small_disk / "new")
    with DiskTier.open_readonly(small_disk / "memory") as tier:
        assert [stored.meta.id for stored in tier.blocks()] == [0, 1, 2]
        codec, block = make_codec("none", SHAPE), make_block(1)
        rows = tier.read_rows(1, codec, block.meta.num_tokens)
        assert raw(codec.decode(rows, torch.zeros(block.meta.num_tokens, dtype=torch.int64))) == raw(block.kv)


@pytest.mark.slow
@pytest.mark.parametrize("largest", [4, 40, 400])
def test_thousands_of_commits_at_the_edge_never_fill_the_map(tmp_path, largest):
    """Random sizes on a small map: freed pages always fit again, and now and then half of everything leaves."""
    rng = random.Random(largest)
    source = make_block(1, tokens=largest, picture_bytes=9000)
    disk_bytes = {4: 700, 40: 1000, 400: 3000}[largest] * KIB

    def block_of(block_id):
        count, meta = rng.randint(1, largest), source.meta
        tensors = {"kinds": meta.kinds[:count], "seconds": meta.seconds[:count], "positions": meta.positions[:, :count]}
        meta = replace(meta, id=block_id, **tensors)
        return Block(meta, source.kv[:, :, :, :count], source.representative, source.picture[: rng.randint(0, 9000)])

    with open_store(None, disk_bytes=disk_bytes, max_block_tokens=largest) as store:
        fullest = 0.0
        for step in range(1200):
            add = [block_of(3 * step + i) for i in range(rng.randint(1, 3))]
            need = sum(store.bytes_of(block.meta.num_tokens, len(block.picture)) for block in add)
            ids, remove = rng.sample(list(store.entries), len(store)), []
            while not store.fits(need, remove):
                remove.append(ids[len(remove)])
            if step % 100 == 99:
                remove = ids[: max(len(remove), len(ids) // 2)]
            store.commit(add, remove, bytes(rng.randint(0, 20_000)))
            fullest = max(fullest, store.used_bytes / store.capacity_bytes)
        assert fullest > 0.95
        assert store.peaks[Tier.DISK] <= disk_bytes
        store.check_integrity(deep=True)
