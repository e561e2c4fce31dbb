"""Memories as a whole: encoded, listed, verified, compacted, exported, imported, pruned; killed, damaged, forged."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import archive_processes
import pytest
import torch
from blocks import make_block, raw
from processes import forking
from test_disk import fill, mount, open_store, small_disk  # noqa: F401 - a fixture
from videos import constant_times, write_video

from vstream.app import memories
from vstream.app.cli import main
from vstream.memory import archive, upkeep
from vstream.memory import folder as folders
from vstream.memory.archive import MANIFEST, SUMS, export_memory, import_memory
from vstream.memory.audit import audit
from vstream.memory.codec import CODECS
from vstream.memory.records import Part, encode_meta, page_key
from vstream.memory.store import BlockStore
from vstream.memory.tree import TreeFile

pytestmark = pytest.mark.slow

VSTREAM = Path(sys.executable).with_name("vstream")
SAMPLE = Path(__file__).parents[1] / "samples" / "sample.mp4"
RANDOM = ["--model", "random", "--threads", "1"]
ASKED = ["--threads", "1", "--max-tokens", "8", "--json"]
BUDGET = 4 << 20


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_memory(folder: Path, ids: range, remove_every: int = 0) -> Path:
    """A closed memory of random blocks with every codec."""
    with open_store(folder, disk_bytes=BUDGET) as store:
        for i in ids:
            gone = [i - 5] if remove_every and i % remove_every == 0 and i - 5 in store else []
            add_block(store, i, gone)
    return folder


def add_block(store: BlockStore, number: int, gone: Sequence[int] = ()) -> None:
    codec = (*CODECS,)[number % 3]
    store.commit([make_block(number, codec=codec)], gone, json.dumps({"last_seconds": number}).encode())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five blocks; not to be changed."""
    return write_memory(tmp_path_factory.mktemp("small") / "memory", range(5))


@pytest.fixture(scope="module")
def packed(small: Path) -> Path:
    """The small memory as a file; not to be changed."""
    file = small.parent / "kept.vstream"
    export_memory(small, file)
    return file


@pytest.fixture
def memory(small: Path, tmp_path: Path) -> Path:
    """A memory of one's own."""
    return Path(shutil.copytree(small, tmp_path / "memory"))


def contents(folder: Path) -> list[tuple[bytes, bytes]]:
    """Everything that a memory holds, read without LMDB; nothing may be wrong with it."""
    wrong: list[str] = []
    with TreeFile(folder / "data.mdb", wrong.append) as tree:
        found = list(tree.items())
    assert wrong == []
    return found


def place_of(folder: Path, part: Part, block_id: int) -> int:
    """Where in the data file a record's first page begins."""
    return (folder / "data.mdb").read_bytes().index(dict(contents(folder))[page_key(part, block_id, 0)])


def flip(path: Path, at: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, sentence: str) -> None:
    capsys.readouterr()
    assert main(arguments) == code
    said = capsys.readouterr()
    assert re.fullmatch(r"vstream: [^\n]+\n", said.err), said.err
    assert re.search(sentence, said.err), said.err


def ask(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> list[Any]:
    """What can be compared of a memory's answers."""
    capsys.readouterr()
    assert main(["ask", str(folder), "what is shown?", "when?", *arguments, *ASKED]) == 0
    return comparable(capsys.readouterr().out)


def comparable(lines: str) -> list[Any]:
    answers = [json.loads(line) for line in lines.splitlines()]
    return [[one["answer"], one["snapshot_seconds"], one["evidence"]] for one in answers]


# What an archive is -----------------------------------------------------------------------------------------------


def test_a_memory_comes_back_bit_for_bit_and_can_be_written_on(small, packed, tmp_path):
    assert import_memory(packed, tmp_path / "there") == 5
    assert contents(tmp_path / "there") == contents(small)
    assert folders.read_manifest(tmp_path / "there") == folders.read_manifest(small)
    assert audit(tmp_path / "there").damages == ()
    with open_store(tmp_path / "there", disk_bytes=BUDGET) as store:
        assert raw(store.gather([3])) == raw(make_block(3).kv)  # its codec keeps every bit
        assert all(store.picture(i) == make_block(i).picture for i in range(5))
        fill(store, [5, 6])
        store.check_integrity(deep=True)
    assert sorted(os.listdir(tmp_path)) == ["there"]


def test_the_same_memory_gives_the_same_bytes(small, packed, tmp_path):
    """Whatever the data file went through: written piece by piece, compacted, or made by an import."""
    (tmp_path / "empty").mkdir()
    import_memory(packed, tmp_path / "empty")
    compacted = Path(shutil.copytree(small, tmp_path / "compacted"))
    upkeep.compact(compacted)
    data = [(one / "data.mdb").read_bytes() for one in (small, tmp_path / "empty", compacted)]
    assert len(set(data)) == 3, "the files in which LMDB keeps it are of three kinds"
    for number, folder in enumerate((small, tmp_path / "empty", compacted)):
        export_memory(folder, tmp_path / f"{number}.vstream")
        assert (tmp_path / f"{number}.vstream").read_bytes() == packed.read_bytes()
    other = write_memory(tmp_path / "other", range(1, 6))
    export_memory(other, tmp_path / "other.vstream")
    assert (tmp_path / "other.vstream").read_bytes() != packed.read_bytes()


def test_it_is_a_tar_that_common_tools_read_and_check(packed, tmp_path):
    with tarfile.open(packed) as tar:
        assert tar.getnames()[:3] == [MANIFEST, "state", "blocks/000000000000.meta"]
        assert all(one.isfile() and one.mtime == one.uid == 0 for one in tar)
    subprocess.run(["tar", "xf", packed, "-C", tmp_path], check=True)
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", SUMS], cwd=tmp_path, check=True)
    jpg = [(tmp_path / f"blocks/{i:012d}.jpg") for i in range(5)]
    assert [one.read_bytes() if one.exists() else b"" for one in jpg] == [make_block(i).picture for i in range(5)]


def test_an_empty_memory_and_one_without_blocks(tmp_path):
    open_store(tmp_path / "memory").close()
    export_memory(tmp_path / "memory", tmp_path / "one.vstream")
    assert import_memory(tmp_path / "one.vstream", tmp_path / "again") == 0
    assert contents(tmp_path / "again") == contents(tmp_path / "memory")


# Answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_encode_once_ask_elsewhere(tmp_path, capsys):
    """tiny, a real video: the exact answers of the original, from another process, in another place."""
    there, past = tmp_path / "there", ["--at", "00:40"]
    settings = ["--model", "tiny", "--threads", "1", "--fps", "0.5"]
    encode = ["encode", str(SAMPLE), *settings, "--memory", str(tmp_path / "kept")]
    assert main(encode) == 0
    original = tmp_path / "kept" / "sample.mp4"
    assert main(["memory", "export", str(original), str(tmp_path / "sample.vstream")]) == 0
    answers, earlier = ask(capsys, original), ask(capsys, original, *past)
    assert answers != earlier
    assert main(["memory", "import", str(tmp_path / "sample.vstream"), str(there)]) == 0
    original.rename(tmp_path / "gone")
    command = [VSTREAM, "ask", there, "what is shown?", "when?", *ASKED]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert comparable(done.stdout) == answers, done.stderr
    assert ask(capsys, there, *past) == earlier
    assert main(["memory", "compact", str(there)]) == 0
    assert ask(capsys, there) == answers


# Bad archives -----------------------------------------------------------------------------------------------------


def rejected(file: Path, folder: Path, sentence: str = "is damaged or cut short") -> None:
    """Checks that an import is refused, in one sentence, and that nothing is left of it."""
    before = set(os.listdir(folder.parent))
    with pytest.raises(ValueError, match=sentence) as error:
        import_memory(file, folder, memories.check_state)
    assert "\n" not in str(error.value)
    assert set(os.listdir(folder.parent)) == before


def test_an_archive_cut_short_anywhere_is_refused(packed, tmp_path):
    whole = packed.read_bytes()
    for size in (1, 511, 512, *(len(whole) * tenth // 10 for tenth in range(1, 10)), len(whole) - 1):
        (tmp_path / "cut.vstream").write_bytes(whole[:size])
        rejected(tmp_path / "cut.vstream", tmp_path / "there")
    for more in (b"\0", b"more", bytes(512)):
        (tmp_path / "cut.vstream").write_bytes(whole + more)
        rejected(tmp_path / "cut.vstream", tmp_path / "there", "something behind its end")
    (tmp_path / "cut.vstream").write_bytes(b"")
    rejected(tmp_path / "cut.vstream", tmp_path / "there")


def test_an_archive_with_any_bit_flipped_is_refused(packed, tmp_path):
    rng, size = random.Random(7), packed.stat().st_size
    file = Path(shutil.copy(packed, tmp_path / "flipped.vstream"))
    first, last = range(0, 512, 7), range(size - 1536, size, 31)  # the first header, the checksums and the end
    for at in (*first, *last, *(rng.randrange(size) for _ in range(100))):
        bit = rng.randrange(8)
        flip(file, at, bit)
        rejected(file, tmp_path / "there", r"damaged or cut short|is no archive|but this vstream reads|this machine")
        flip(file, at, bit)
    assert import_memory(file, tmp_path / "there") == 5


def members(packed: Path) -> dict[str, bytes]:
    with tarfile.open(packed) as tar:
        return {one.name: tar.extractfile(one).read() for one in tar if one.name != SUMS}  # type: ignore[union-attr]


def forge(file: Path, bodies: dict[str, bytes]) -> Path:
    """An archive of these members, whose checksums fit."""
    with file.open("wb") as opened:
        writer = archive._Writer(opened)
        for name, body in bodies.items():
            writer.add(name, body)
        writer.finish()
    return file


def change_manifest(body: bytes, **changes: Any) -> bytes:
    return json.dumps(json.loads(body) | changes, indent=1).encode() + b"\n"


def test_what_another_machine_or_version_wrote_is_refused(packed, tmp_path, monkeypatch):
    bodies = members(packed)
    for changes, sentence in (
        ({"archive_version": 2}, "has archive_version 2, but this vstream reads 1"),
        ({"format_version": 3}, "has format_version 3, but this vstream reads 2"),
        ({"byte_order": "big"}, "holds numbers in 'big' byte order, but this machine has 'little'"),
    ):
        changed = bodies | {MANIFEST: change_manifest(bodies[MANIFEST], **changes)}
        rejected(forge(tmp_path / "one.vstream", changed), tmp_path / "there", sentence)
    monkeypatch.setattr(sys, "byteorder", "big")
    rejected(packed, tmp_path / "there", "holds numbers in 'little' byte order, but this machine has 'big'")


def forgeries(bodies: dict[str, bytes]) -> dict[str, dict[str, bytes]]:
    """Archives whose checksums fit, but which no memory gives."""
    block = "blocks/000000000003."
    identity = json.loads(bodies[MANIFEST])["identity"]
    meta = make_block(3).meta

    def manifest(**changes: Any) -> dict[str, bytes]:
        return bodies | {MANIFEST: change_manifest(bodies[MANIFEST], **changes)}

    def head(**changes: Any) -> dict[str, bytes]:
        body = bodies[block + "meta"]
        size = int.from_bytes(body[:8], "little")
        text = json.dumps(json.loads(body[8 : 8 + size]) | changes).encode()
        return bodies | {block + "meta": len(text).to_bytes(8, "little") + text + body[8 + size :]}

    wrong_shape = make_block(3).representative[:1]
    return {
        "a block that is listed twice": manifest(blocks=[0, 1, 2, 3, 3]),
        "a block that is missing": manifest(blocks=[0, 1, 2, 3, 4, 5]),
        "a block too many": manifest(blocks=[0, 1, 2, 3]),
        "no identity": manifest(identity=None),
        "a shape of no sense": manifest(identity=identity | {"layers": 10**9}),
        "another shape": manifest(identity=identity | {"layers": 3}),
        "more than it should say": manifest(more="x" * 1000),
        "deep JSON": bodies | {MANIFEST: b"[" * 100_000},
        "JSON of another kind": bodies | {MANIFEST: b"[]\n"},
        "no state of a session": bodies | {"state": b"[1]"},
        "a huge tensor": head(shapes={"kinds": [1 << 40]}),
        "a negative tensor": head(shapes={"kinds": [-1, 5]}),
        "an unknown codec": head(codec="../../none"),
        "a level that is a text": head(level="0"),
        "times that are none": head(start_seconds=None),
        "another block": head(id=4),
        "metadata of nothing": bodies | {block + "meta": b""},
        "a head longer than all": bodies | {block + "meta": b"\xff" * 64},
        "a short payload": bodies | {block + "kv": bodies[block + "kv"][:-8]},
        "a representative of another shape": bodies | {block + "meta": encode_meta(meta, wrong_shape, 0)},
        "names that lead out": {**bodies, "../../outside": b"x"},
        "an absolute name first": {"/tmp/outside": b"x", **bodies},
    }


def test_an_archive_that_was_forged_is_refused(packed, tmp_path):
    bodies = members(packed)
    assert import_memory(forge(tmp_path / "fair.vstream", bodies), tmp_path / "fair") == 5, "the forger can forge"
    for name, forged in forgeries(bodies).items():
        try:
            rejected(forge(tmp_path / "one.vstream", forged), tmp_path / "there", "one.vstream is (damaged|no archive)")
        except BaseException:
            print(f"with {name}")
            raise


def test_links_devices_and_other_kinds_of_members_are_refused(packed, tmp_path):
    bodies = members(packed)
    for kind in (
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.DIRTYPE,
        tarfile.XHDTYPE,
        tarfile.GNUTYPE_SPARSE,
    ):
        for at in (0, 3):
            with tarfile.open(tmp_path / "one.vstream", "w", format=tarfile.USTAR_FORMAT) as tar:
                for number, (name, body) in enumerate(bodies.items()):
                    info = tarfile.TarInfo(name)
                    info.size, info.mode = len(body), 0o644
                    if number == at:
                        info.type, info.linkname, info.size, body = kind, "/etc/passwd", 0, b""
                    tar.addfile(info, io.BytesIO(body))
            rejected(tmp_path / "one.vstream", tmp_path / "there", "damaged or cut short|is no archive")


def test_bombs_are_refused_at_once(packed, tmp_path):
    """Neither what is compressed nor what is announced is ever unfolded."""
    file = tmp_path / "one.vstream"
    file.write_bytes(gzip.compress(bytes(1 << 20)))
    rejected(file, tmp_path / "there", "is no archive of a memory|damaged or cut short")
    whole = packed.read_bytes()
    announced = archive._header(MANIFEST, 1 << 32)
    file.write_bytes(announced + whole[512:])
    rejected(file, tmp_path / "there", "vstream.json has 4294967296 bytes, not at most")
    with file.open("r+b") as opened:
        opened.truncate(1 << 40)  # a sparse file: a terabyte that takes no room
    with pytest.raises(OSError, match=r"bytes free, but .*one.vstream needs \d+"):
        import_memory(file, tmp_path / "there")
    assert os.listdir(tmp_path) == ["one.vstream"]


def test_targets_and_names_that_will_not_do(memory, packed, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "holiday.jpg").touch()
    there, out = str(tmp_path / "there"), str(tmp_path / "out.vstream")
    for arguments, sentence in (
        (["export", there, out], "there is no memory in .*there"),
        (["export", str(packed), out], "is a file; give the folder of a memory"),
        (["export", str(memory), str(tmp_path / "file")], "file exists already; give another name"),
        (["export", str(memory), str(tmp_path / "no" / "out")], "no is no folder; make it first"),
        (["import", there, out], "there is not there; give an archive"),
        (["import", str(memory), there], "memory is no ordinary file"),
        (["import", str(tmp_path / "file"), there], "file is (damaged|no archive)"),
        (["import", str(packed), str(memory)], "memory exists already"),
        (["import", str(packed), str(tmp_path / "full")], "full exists already"),
        (["import", str(packed), str(tmp_path / "file")], "file exists already"),
        (["compact", there], "there is no memory in"),
        (["verify", there], "there is no memory in"),
        (["verify", str(packed)], "is a file; give the folder of a memory"),
        (["list", there], "there is not there; give a folder that holds memories"),
        (["list", str(packed)], "is a file; give a folder that holds memories"),
        (["prune", str(memory), "--keep-last", "0"], "is a memory itself; give the folder that holds memories"),
        (["prune", str(tmp_path)], "say which memories to keep: one of"),
        (["prune", str(tmp_path), "--keep-last", "1", "--keep-days", "1"], "one of --keep-days N"),
        (["prune", str(tmp_path), "--keep-last", "-1"], "must be a number from 0, got -1"),
        (["prune", str(tmp_path), "--keep-bytes", "many"], "such as 200M or 1.5G, got 'many'"),
    ):  # fmt: skip
        refused(capsys, ["memory", *arguments], 2, sentence)
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["file", "full", "memory"]


# Damage -----------------------------------------------------------------------------------------------------------


def test_verify_names_what_is_damaged_by_block_and_time(memory, capsys):
    assert main(["memory", "verify", str(memory)]) == 0
    assert "is whole: 5 blocks" in capsys.readouterr().out
    block, pictured = make_block(0), next(i for i in range(5) if make_block(i).picture)
    places = [(Part.STATE, 0), (Part.KV, 0), (Part.KV, 3), (Part.PICTURE, pictured)]
    for at in [place_of(memory, *place) for place in places]:
        flip(memory / "data.mdb", at + 12, 2)
    assert main(["memory", "verify", str(memory), "--json"]) == 1
    damages = json.loads(capsys.readouterr().out)["damages"]
    assert [one["block_id"] for one in damages] == [None, *sorted([0, 3, pictured])]
    assert re.fullmatch(r"the state: page 0 of the state .* does not match its checksum", damages[0]["what"])
    told = {(one["block_id"], one["start_seconds"], one["end_seconds"]) for one in damages[1:]}
    assert (0, block.meta.start_seconds, block.meta.end_seconds) in told
    assert sum("of the picture of block" in one["what"] for one in damages) == 1
    assert main(["memory", "verify", str(memory)]) == 1
    assert "damaged: 4 complaints" in capsys.readouterr().out


def test_verify_misses_nothing_that_flipped(memory):
    """Wherever a bit flips, the tree included: it is told, or nothing of what the memory holds has changed."""
    rng, path = random.Random(11), memory / "data.mdb"
    before, size = contents(memory), folders.check_whole(memory)
    told = 0
    for _ in range(400):
        at, bit = rng.randrange(size), rng.randrange(8)
        flip(path, at, bit)
        found = audit(memory).damages
        told += bool(found)
        assert found or contents(memory) == before, (at, bit)
        flip(path, at, bit)
    assert 100 < told < 400
    assert audit(memory).damages == ()


def test_verify_survives_any_damage_to_the_tree(tmp_path):
    """Bits of the headers, tables and nodes of all pages of LMDB's tree: no crash, and never called whole in vain."""
    memory = write_memory(tmp_path / "memory", range(60), remove_every=3)
    path, before = memory / "data.mdb", contents(memory)
    whole = path.read_bytes()
    nodes = [at for at in range(0, len(whole), 4096) if whole[at + 10] in (1, 2) and whole[at + 11] == 0]
    assert len(nodes) > 3
    rng, told = random.Random(3), 0
    for at in [page + offset for page in nodes for offset in (*range(0, 32, 5), rng.randrange(4000, 4096))]:
        bit = rng.randrange(8)
        flip(path, at, bit)
        found = audit(memory)
        told += bool(found.damages)
        assert found.damages or contents(memory) == before
        flip(path, at, bit)
    assert told > len(nodes)


def test_a_truncated_or_halved_memory_is_damage(memory, capsys):
    os.truncate(memory / "data.mdb", 9000)
    assert main(["memory", "verify", str(memory)]) == 1
    assert "data.mdb is truncated or damaged" in capsys.readouterr().out
    (memory / "vstream.json").write_text("{")
    assert main(["memory", "verify", str(memory)]) == 1
    assert "vstream.json is damaged" in capsys.readouterr().out
    (memory / "data.mdb").unlink()
    assert main(["memory", "verify", str(memory)]) == 1
    assert "half of the memory" in capsys.readouterr().out


def test_what_is_damaged_is_neither_exported_nor_compacted(memory, tmp_path, capsys):
    flip(memory / "data.mdb", place_of(memory, Part.KV, 3) + 9, 1)
    before = (memory / "data.mdb").read_bytes()
    refused(
        capsys, ["memory", "export", str(memory), str(tmp_path / "x")], 1, "kv of block 3 does not match its checks"
    )
    refused(capsys, ["memory", "compact", str(memory)], 1, "does not match its checksum")
    assert (memory / "data.mdb").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["memory"]
    assert "compacted.new" not in os.listdir(memory)


# Compacting -------------------------------------------------------------------------------------------------------


def test_compacting_gives_space_back_and_loses_nothing(tmp_path, capsys):
    memory = write_memory(tmp_path / "memory", range(120), remove_every=1)
    before, size, written = (
        contents(memory),
        (memory / "data.mdb").stat().st_size,
        (memory / "data.mdb").stat().st_mtime,
    )
    assert main(["memory", "compact", str(memory)]) == 0
    after = (memory / "data.mdb").stat().st_size
    assert after < size / 2
    assert f"{size} bytes before" in (said := capsys.readouterr().out)
    assert f"{after} now" in said
    assert contents(memory) == before
    assert (memory / "data.mdb").stat().st_mtime == written
    with open_store(memory, disk_bytes=BUDGET) as store:
        fill(store, range(200, 220))
        store.check_integrity(deep=True)
    (memory / "vstream.json").unlink()
    with pytest.raises(ValueError, match="half of the memory"):  # and not "nothing was ever committed"
        folders.find_memory(memory)


def test_nothing_is_done_to_a_memory_that_somebody_has_open(memory, tmp_path, capsys):
    with open_store(memory, disk_bytes=BUDGET) as store:
        add_block(store, 7)
        refused(capsys, ["memory", "compact", str(memory)], 1, "another process is writing to the memory folder")
        refused(capsys, ["memory", "export", str(memory), str(tmp_path / "x")], 1, "is being written to; try again")
        refused(capsys, ["memory", "verify", str(memory)], 1, "is being written to; try again")
        assert memories.memories_listing(tmp_path)[0]["open"] == "writing"
        assert [one.folder for one in memories.plan_pruning(tmp_path, memories.Rule(last=0)).spared] == [memory]
        add_block(store, 8)
    code = f"""
import sys
from pathlib import Path
from vstream.memory.disk import DiskTier
with DiskTier.open_readonly(Path({str(memory)!r})) as tier:
    print(len(list(tier.blocks())), flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdout.readline() == b"7\n"
        sentence = f"process {reader.pid} has the memory in .* open; try again"
        refused(capsys, ["memory", "compact", str(memory)], 1, sentence)
        assert memories.memories_listing(tmp_path)[0]["open"] == "reading"
        assert main(["memory", "prune", str(tmp_path), "--keep-last", "0", "--yes"]) == 0
        assert "is open and stays" in capsys.readouterr().out
        assert main(["memory", "verify", str(memory)]) == 0, "to look is no harm"
    assert memories.memories_listing(tmp_path)[0]["open"] == ""
    assert main(["memory", "compact", str(memory)]) == 0


# Lists and pruning ------------------------------------------------------------------------------------------------


@pytest.fixture
def many(small: Path, tmp_path: Path) -> Path:
    """Four memories, one of the server's, written to 4, 3, 2 and 1 days ago."""
    root = tmp_path / "many"
    for days, name in ((4, "a/x"), (3, "b"), (2, "0123456789ab/memory"), (1, "d")):
        shutil.copytree(small, root / name)
        stamp = (root / name / "data.mdb").stat().st_mtime - days * 86400
        os.utime(root / name / "data.mdb", (stamp, stamp))
    (root / "0123456789ab" / "stream.json").write_text(json.dumps({"title": "The door"}))
    (root / "notes.txt").write_text("mine")
    return root


def test_list_shows_every_memory_and_what_is_wrong_with_it(many, capsys):
    os.truncate(many / "b" / "data.mdb", 5000)
    assert main(["memory", "list", str(many), "--json"]) == 0
    rows = {row["folder"].removeprefix(f"{many}/"): row for row in json.loads(capsys.readouterr().out)["memories"]}
    assert list(rows) == ["0123456789ab/memory", "a/x", "b", "d"]
    assert (rows["0123456789ab/memory"]["title"], rows["d"]["title"]) == ("The door", "")
    assert "truncated" in rows["b"]["damaged"]
    assert rows["d"] | {"written": ""} == {
        "folder": f"{many}/d", "title": "", "damaged": None, "open": "", "source": None, "model": "alpha",
        "start_seconds": min(make_block(i).meta.start_seconds for i in range(5)), "end_seconds": 4,
        "blocks": {"detail": 5}, "bytes": (many / "d" / "data.mdb").stat().st_size,
        "created": folders.read_manifest(many / "d")["created"], "written": "",
    }  # fmt: skip
    assert main(["memory", "list", str(many)]) == 0
    said = capsys.readouterr().out
    assert "The door" in said
    assert re.search(r"^damaged: .*truncated", said, re.MULTILINE)
    assert main(["memory"]) == 0
    assert "prune" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rule", "gone"),
    [
        (["--keep-last", "2"], ["a/x", "b"]),
        (["--keep-days", "2.5"], ["a/x", "b"]),
        (["--keep-bytes", "SIZE"], ["a/x", "b", "0123456789ab"]),
        (["--keep-bytes", "1G"], []),
        (["--keep-last", "0"], ["a/x", "b", "0123456789ab", "d"]),
    ],
)
def test_prune_removes_the_oldest_and_only_if_told(many, capsys, rule, gone):
    size = (many / "d" / "data.mdb").stat().st_size
    command = ["memory", "prune", str(many), *(one.replace("SIZE", str(size + 1)) for one in rule)]
    before = sorted(many.rglob("*"))
    assert main([*command, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    homes = [one.removeprefix(f"{many}/").removesuffix("/memory") for one in listed["going"]]
    assert homes == gone
    assert main(command) == 0
    assert sorted(many.rglob("*")) == before
    assert ("give --yes" in capsys.readouterr().out) == bool(gone)
    assert main([*command, "--yes"]) == 0
    assert [name for name in ("a/x", "b", "0123456789ab", "d") if not (many / name).exists()] == gone
    assert (many / "notes.txt").read_text() == "mine"
    assert all(audit(one.folder).damages == () for one in memories.find_memories(many))


# Kills and full disks ---------------------------------------------------------------------------------------------


@pytest.fixture
def place(small: Path, packed: Path, tmp_path: Path) -> Path:
    """What `archive_processes.do` works on."""
    shutil.copytree(small, tmp_path / "memory")
    os.truncate(tmp_path / "memory" / "data.mdb", 3 << 20)  # something to give back
    shutil.copy(packed, tmp_path / "kept.vstream")
    (tmp_path / "many").mkdir()
    return tmp_path


def is_whole_or_absent(what: str, place: Path, packed: Path, wanted: list[tuple[bytes, bytes]]) -> None:
    if what == "export":
        file = place / "one.vstream"
        assert not file.exists() or file.read_bytes() == packed.read_bytes()
        file.unlink(missing_ok=True)
    folder = {"compact": "memory", "export": "memory", "import": "imported", "prune": "many/a"}[what]
    assert what in ("import", "prune") or (place / folder).exists()
    if (place / folder).exists():
        assert audit(place / folder).damages == ()
        assert contents(place / folder) == wanted
    if what == "import" and (place / folder).exists():
        shutil.rmtree(place / folder)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["compact", "export", "import", "prune"])
def test_killed_at_any_moment_it_leaves_the_memory_whole_or_absent(what, small, packed, place):
    """Real kills, one at every few times that a file is touched, until it is no longer in time to be killed."""
    processes, wanted, kills = forking(), contents(small), 0
    for count in range(1, 1000, 7 if what == "compact" else 3):
        if what == "prune":
            for name in ("a", "b"):
                if not (place / "many" / name).exists():
                    shutil.copytree(small, place / "many" / name)
            os.utime(place / "many" / "a" / "data.mdb", (1e9, 1e9))
        process = processes.Process(target=archive_processes.killed_at, args=(what, str(place), count))
        process.start()
        process.join()
        is_whole_or_absent(what, place, packed, wanted)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        kills += 1
        if what == "compact" and (place / "memory" / "data.mdb").stat().st_size < 3 << 20:
            os.truncate(place / "memory" / "data.mdb", 3 << 20)
    assert kills >= 4
    assert process.exitcode == 0
    left = {path.name for path in (*place.iterdir(), *(place / "many").iterdir(), *(place / "memory").iterdir())}
    hidden = {name for name in left if name.startswith(".") or name.endswith((".new", ".part"))}
    assert hidden == set(), "what was left by those that were killed is gone"


@pytest.mark.parametrize("what", ["compact", "export", "import"])
def test_on_a_full_disk_nothing_changes(what, small, packed, place):
    processes, wanted = forking(), contents(small)
    before = sorted(path for path in place.rglob("*"))
    receiver, sender = processes.Pipe(duplex=False)
    arguments = (what, str(place), 5 * 4096, sender)
    process = processes.Process(target=archive_processes.with_small_files, args=arguments)
    process.start()
    said = receiver.recv_bytes().decode()
    process.join()
    assert re.search("File too large", said), said
    assert "\n" not in said
    assert sorted(path for path in place.rglob("*")) == before
    assert contents(place / "memory") == wanted


def test_a_readonly_disk(small_disk, small, packed, tmp_path, capsys):  # noqa: F811
    mount("-o", "remount,size=16m", small_disk)
    shutil.copytree(small, small_disk / "memory")
    mount("-o", "remount,ro", small_disk)
    folder = str(small_disk / "memory")
    assert main(["memory", "verify", folder]) == 0
    assert main(["memory", "list", str(small_disk)]) == 0
    assert main(["memory", "export", folder, str(tmp_path / "one.vstream")]) == 0
    assert (tmp_path / "one.vstream").read_bytes() == packed.read_bytes()
    refused(capsys, ["memory", "compact", folder], 1, "Read-only file system")
    refused(capsys, ["memory", "export", folder, str(small_disk / "x")], 1, "cannot write to .*: Read-only file system")
    refused(capsys, ["memory", "import", str(packed), str(small_disk / "x")], 1, "Read-only file system|bytes free")
    assert main(["memory", "prune", str(small_disk), "--keep-last", "0", "--json"]) == 0
    capsys.readouterr()
    assert main(["memory", "prune", str(small_disk), "--keep-last", "0", "--yes"]) == 1
    assert "Read-only file system" in capsys.readouterr().err


# Encoding ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name, seconds in (("one.mp4", 10), ("two.mp4", 14)):
        write_video(folder / name, constant_times(5 * seconds, 5.0))
    (folder / "bad.mp4").write_text("no video")
    return folder


def test_encode_goes_on_where_it_stopped_and_skips_what_is_done(videos, tmp_path, capsys):
    given = [str(videos / name) for name in ("one.mp4", "two.mp4")]
    command = ["encode", *given, *RANDOM, "--fps", "2", "--json", "--memory"]
    assert main([*command, str(tmp_path / "fresh")]) == 0
    first = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["source"], one["from_seconds"]) for one in first] == [("one.mp4", None), ("two.mp4", None)]
    assert first[1]["last_seconds"] > first[0]["last_seconds"] > 9
    half = tmp_path / "resumed" / "two.mp4"
    assert main(["ask", given[1], "what?", *RANDOM, "--fps", "2", "--at", "5", "--memory", str(half)]) == 0
    capsys.readouterr()
    assert main([*command, str(tmp_path / "resumed"), "--at-once", "2"]) == 0
    resumed = {one["source"]: one for one in map(json.loads, capsys.readouterr().out.splitlines())}
    assert 3 < resumed["two.mp4"]["from_seconds"] <= 5
    assert resumed["two.mp4"]["last_seconds"] == first[1]["last_seconds"]
    for name in ("one.mp4", "two.mp4"):
        pages = [[one for one in contents(tmp_path / where / name) if one[0][0] > 1] for where in ("fresh", "resumed")]
        assert pages[0] == pages[1], "blocks do not depend on having stopped"
    stamps = [(tmp_path / "fresh" / name / "data.mdb").read_bytes() for name in ("one.mp4", "two.mp4")]
    assert main([*command[:-2], "--memory", str(tmp_path / "fresh")]) == 0
    assert capsys.readouterr().out.count("was there already") == 2
    assert [(tmp_path / "fresh" / name / "data.mdb").read_bytes() for name in ("one.mp4", "two.mp4")] == stamps


def test_encode_tells_what_is_bad_and_goes_on(videos, tmp_path, capsys):
    given = [str(videos / name) for name in ("bad.mp4", "one.mp4", "none.mp4")]
    camera = "lavfi:testsrc2=size=64x48:rate=10,realtime"
    assert main(["encode", *given, camera, *RANDOM, "--memory", str(tmp_path / "kept")]) == 1
    said = capsys.readouterr()
    assert "one.mp4: encoded up to 00:09" in said.out
    lines = said.err.strip().splitlines()
    assert len(lines) == 3
    for line, sentence in zip(lines, ("bad.mp4", "none.mp4", "is a camera and has no end"), strict=True):
        assert line.startswith("vstream: ")
        assert sentence in line
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["one.mp4"]
    assert main(["encode", given[0], *RANDOM, "--memory", str(tmp_path / "kept")]) == 1


def test_encode_refuses_what_cannot_be_meant(videos, tmp_path, capsys):
    one = str(videos / "one.mp4")
    refused(capsys, ["encode", one, *RANDOM], 2, "needs a folder for the memories: --memory DIR")
    kept = ["--memory", str(tmp_path / "kept")]
    refused(capsys, ["encode", one, *RANDOM, *kept, "--at-once", "0"], 2, "--at-once must be a whole number from 1")
    refused(
        capsys, ["encode", one, one, *RANDOM, *kept], 2, "2 sources are called 'one.mp4' and would share one memory"
    )
    refused(capsys, ["encode", one, *RANDOM, *kept, "--fps", "-1"], 2, "fps")
    assert main(["encode", one, *RANDOM, *kept]) == 0
    refused(capsys, ["encode", one, *RANDOM, "--memory", str(tmp_path / "kept" / "one.mp4")], 2, "memory of one source")
    capsys.readouterr()
    assert main(["encode", one, "--model", "tiny", "--threads", "1", *kept]) == 1
    assert "was made with model 'random', not 'tiny'" in capsys.readouterr().err
