"""Acknowledged is durable: a writer killed again and again, and the order of its system calls."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import durable_writer
import pytest
from processes import forking

TESTS = Path(__file__).parent


class Witness:
    """What the outside knows: everything acknowledged, and the one commit that was perhaps under way."""

    def __init__(self):
        self.blocks = {}
        self.step = None
        self.pending = None

    def hear(self, line):
        words = line.split()
        if words[0] == "ack":
            assert self.pending is not None
            assert self.pending[0] == int(words[1])
            self.step, self.blocks = self.pending
            self.pending = None
            return
        cut = words.index("remove")
        added = {int(i): digest for i, digest in (word.split(":") for word in words[3:cut])}
        removed = set(map(int, words[cut + 1 :]))
        self.pending = (int(words[1]), {i: d for i, d in self.blocks.items() if i not in removed} | added)

    def settle(self, folder):
        """Reopen: all that was acknowledged is there, bit for bit, the pending commit wholly or not at all."""
        with durable_writer.open_memory(folder) as store:
            store.check_integrity(deep=True)
            found = {i: durable_writer.digest(store.gather([i])) for i in store.entries}
            step = None if store.state is None else int(store.state)
        outcomes = [(self.step, self.blocks)] + ([self.pending] if self.pending else [])
        assert (step, found) in outcomes
        self.step, self.blocks, self.pending = step, found, None


@pytest.fixture(scope="module")
def processes():
    return forking()


def start_writer(processes, folder):
    receiver, sender = processes.Pipe(duplex=False)
    process = processes.Process(target=durable_writer.child, args=(str(folder), 10**6, sender))
    process.start()
    sender.close()
    return process, receiver


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_when_the_writer_is_killed(processes, tmp_path):
    rng = random.Random(20)
    witness, folder = Witness(), tmp_path / "memory"
    acknowledged = 0
    for _ in range(20):
        process, receiver = start_writer(processes, folder)
        for _ in range(2 * rng.randint(1, 30)):
            witness.hear(receiver.recv_bytes().decode())
        time.sleep(rng.random() * 0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        while True:
            try:
                witness.hear(receiver.recv_bytes().decode())
            except EOFError:
                break
        before = witness.step
        witness.settle(folder)
        assert witness.step >= before > acknowledged, "the run did not go on from the last one"
        acknowledged = before
    assert acknowledged > 100
    assert min(witness.blocks) > 50, "nothing was ever evicted"


def test_the_witness_notices_a_lost_block(processes, tmp_path):
    """The negative control: an acknowledged block that is gone, or a commit that was half applied."""
    witness, folder = Witness(), tmp_path / "memory"
    durable_writer.write_blocks(folder, 5, witness.hear)
    witness.settle(folder)
    with durable_writer.open_memory(folder) as store:
        store.commit([], [min(store.entries)], store.state)
    with pytest.raises(AssertionError):
        witness.settle(folder)


def run_under_strace(folder, trace_folder, *flags):
    if shutil.which("strace") is None:
        message = "COULD NOT TEST the order of system calls: strace is not installed"
        assert os.environ.get("CI") != "true", message
        pytest.skip(message)
    calls = "trace=openat,write,writev,pwrite64,pwritev,pwritev2,fdatasync,fsync,msync,sync_file_range"
    command = ["strace", "-ff", "--seccomp-bpf", "-y", "-s", "40", "-e", calls, "-o", str(trace_folder / "trace")]
    writer = [sys.executable, str(TESTS / "durable_writer.py"), str(folder), "6", *flags]
    done = subprocess.run(command + writer, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ack") == 6
    traces = [path.read_text().splitlines() for path in trace_folder.glob("trace.*")]
    return [lines for lines in traces if any("data.mdb>" in line for line in lines)]


CALL = re.compile(r"(?P<name>\w+)\((?P<fd>\d+)?(?:<(?P<path>[^>]*)>)?(?P<rest>.*)\)\s*= (?P<result>-?\d+)")


def events(lines):
    """The writer's calls as words: data (a write to data.mdb), sync, meta (a write that syncs itself), try, ack."""
    synchronous = set()
    for line in lines:
        call = CALL.match(line)
        if call is None:
            continue
        name, fd, path, rest, result = call.group("name", "fd", "path", "rest", "result")
        if name == "openat" and "data.mdb" in rest:
            (synchronous.add if re.search(r"O_D?SYNC", rest) else synchronous.discard)(result)
        elif path and path.endswith("data.mdb"):
            if "write" in name:
                assert int(result) > 0
                yield "meta" if fd in synchronous else "data"
            elif int(result) == 0 and name in ("fdatasync", "fsync"):
                yield "sync"
        elif name == "write" and fd == "1":
            yield rest.split('"')[1].split()[0]


def check_order(words):
    """Between try and ack: data written, then synced, then the meta page that refers to it, written through."""
    commits = re.findall(r"try (.*?)ack", " ".join(words))
    assert len(commits) == 6
    for commit in commits:
        assert re.fullmatch(r"(data )+(sync )+meta ", commit), (
            f"a commit was acknowledged after {commit or 'nothing'!r}"
        )


@pytest.mark.slow
def test_the_sync_comes_before_the_acknowledgement(tmp_path):
    (lines,) = run_under_strace(tmp_path / "memory", tmp_path)
    check_order(list(events(lines)))


@pytest.mark.slow
def test_the_check_of_the_order_rejects_a_writer_that_does_not_sync(tmp_path):
    (lines,) = run_under_strace(tmp_path / "memory", tmp_path, "--nosync")
    words = list(events(lines))
    assert "data" in words
    with pytest.raises(AssertionError, match="acknowledged after 'data"):
        check_order(words)
