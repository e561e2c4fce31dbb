"""Events by webhook: signed, tried again, received at least once whatever is killed, sent to allowed hosts alone."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from receivers import JPEG, SECRET, Receiver, event_at, receiving, same_keys

from vstream.app.alerts import outbox as outboxes
from vstream.app.alerts.delivery import Delivery
from vstream.app.alerts.endpoint import Endpoint, allowed_hosts, read_secret
from vstream.app.alerts.eventlog import EventLog
from vstream.app.alerts.notices import Notice, notice_text
from vstream.app.alerts.outbox import Outbox
from vstream.app.alerts.webhook import Patience, Webhook
from vstream.app.output import PictureFolder

QUICK = Patience(first_seconds=0.05)
PROGRAM = Path(__file__).with_name("webhook_program.py")


@contextmanager
def webhook(folder: Path, url: str, patience: Patience = QUICK, **endpoint) -> Iterator[tuple[Webhook, list[str]]]:
    """A webhook, and what it tells."""
    told: list[str] = []
    given = {"secret": SECRET, "try_seconds": 5.0, **endpoint}
    sending = Webhook(Endpoint(url, **given), Outbox(folder / "outbox"), told=told.append, patience=patience)
    try:
        yield sending, told
    finally:
        sending.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def wait_told(told: list[str], sentence: str) -> None:
    until = time.monotonic() + 10
    while not any(sentence in one for one in told):
        assert time.monotonic() < until, told
        time.sleep(0.01)


def wait_empty(folder: Path, seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while Outbox(folder / "outbox").waiting():
        assert time.monotonic() < until, "letters are left"
        time.sleep(0.01)


# What is sent -------------------------------------------------------------------------------------------------------


def test_an_event_is_posted_and_signed(tmp_path: Path) -> None:
    notice = Notice(event_at(12.0, 20.0, wall_clock=1_790_000_000.25), "door.mp4", stream="s1")
    with receiving() as receiver:
        make = lambda told: Webhook(Endpoint(receiver.url, SECRET), Outbox(tmp_path / "out"), told=told)  # noqa: E731
        with Delivery(PictureFolder(tmp_path), make_webhook=make) as delivery:
            delivery.put(notice)
            (request,) = receiver.wait_for(1)
    assert request.path == "/hook?for=tests"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["host"] == receiver.url.split("/")[2]
    assert abs(int(request.headers["x-vstream-timestamp"]) - time.time()) < 5
    assert request.is_signed()
    assert not request.is_signed(b"another-secret-of-somebody"), "the negative control"
    assert request.key == notice.key == f"{notice.event_id}-end"
    record = request.record
    assert base64.b64decode(record.pop("picture_jpeg_base64")) == JPEG
    assert record.pop("wall_clock").startswith("2026-")
    assert record == {
        "event": "end", "id": notice.event_id, "alert_id": "a1", "source": "door.mp4", "text": "a cat appears",
        "start_seconds": 12.0, "end_seconds": 20.0, "seconds": 13.0, "confidence": 0.9, "stream_id": "s1",
    }  # fmt: skip


def test_without_a_secret_nothing_is_signed(tmp_path: Path) -> None:
    with receiving() as receiver, webhook(tmp_path, receiver.url, secret=None) as (sending, _):
        sending.put("a-start", b"{}")
        assert "x-vstream-signature" not in receiver.wait_for(1)[0].headers


def test_ids_are_those_of_one_event_alone() -> None:
    start, end = Notice(event_at(12.0), "a.mp4"), Notice(event_at(12.0, 20.0), "a.mp4")
    assert start.event_id == end.event_id == Notice(event_at(12.0), "a.mp4").event_id
    assert start.key != end.key
    others = [
        Notice(event_at(13.0), "a.mp4"), Notice(event_at(12.0), "b.mp4"), Notice(event_at(12.0), "a.mp4", "s2"),
        Notice(event_at(12.0, wall_clock=1e9), "a.mp4"), Notice(event_at(12.0, wall_clock=1e9 + 5), "a.mp4"),
    ]  # fmt: skip
    assert len({one.event_id for one in [start, *others]}) == 6, "a camera that starts anew has other events"


def test_people_read_when_and_what() -> None:
    assert notice_text(Notice(event_at(12.0), "a.mp4")) == ("00:12", "a cat appears (90%)")
    over = Notice(event_at(12.0, 20.0), "a.mp4", label="@2 a.mp4")
    assert notice_text(over) == ("@2 a.mp4 00:12-00:20", "over: a cat appears (90%)")


# Again and again ----------------------------------------------------------------------------------------------------


def test_it_is_tried_again_until_it_is_received(tmp_path: Path) -> None:
    with receiving(500, 503, 429, 408) as receiver, webhook(tmp_path, receiver.url) as (sending, told):
        sending.put("e1-start", b'{"event": "start"}')
        requests = receiver.wait_for(5)
        wait_empty(tmp_path)
        assert same_keys(requests)
        assert len({request.body for request in requests}) == 1
        assert all(request.is_signed() for request in requests)
        waits = [after.at - before.at for before, after in pairwise(requests)]
        assert waits[3] > waits[0], waits
        assert told[0] == "the webhook at 127.0.0.1 takes no events: it answers 500; it is tried again for a day"
        wait_told(told, "the webhook at 127.0.0.1 takes events again")


def test_waits_double_at_random_up_to_the_longest() -> None:
    patience = Patience(first_seconds=1.0, most_seconds=60.0)
    for failures, longest in ((1, 1.0), (2, 2.0), (5, 16.0), (7, 60.0), (1000, 60.0)):
        waits = [patience.wait_seconds(failures) for _ in range(50)]
        assert longest / 2 <= min(waits) <= max(waits) <= longest
        assert len(set(waits)) > 10


def test_a_server_that_asks_for_time_gets_it(tmp_path: Path) -> None:
    with receiving((503, {"Retry-After": "1"})) as receiver, webhook(tmp_path, receiver.url) as (sending, _):
        sending.put("e1-start", b"{}")
        first, second = receiver.wait_for(2)
        assert second.at - first.at >= 1.0


def test_one_who_never_answers_is_given_up_for_now(tmp_path: Path) -> None:
    def sleeps() -> int:
        time.sleep(1.5)
        return 204

    slow = (sleeps, {})
    with receiving(slow) as receiver, webhook(tmp_path, receiver.url, try_seconds=0.3) as (sending, told):
        sending.put("e1-start", b"{}")
        first, second = receiver.wait_for(2)
        assert 0.3 <= second.at - first.at < 1.4, "it did not wait for the first answer"
        wait_empty(tmp_path)
        assert "it does not answer" in told[0]


def test_a_server_that_drips_is_cut_off() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            connection, _ = listening.accept()
            with connection:
                try:
                    while True:
                        connection.sendall(b"H")
                        time.sleep(0.05)
                except OSError:
                    return

        threading.Thread(target=drip, daemon=True).start()
        began = time.monotonic()
        reply = Endpoint(f"http://127.0.0.1:{listening.getsockname()[1]}/", try_seconds=0.5).send("k", b"{}")
        assert (reply.status, reply.may_be_tried_again) == (0, True)
        assert time.monotonic() - began < 3


def test_while_nobody_answers_everything_waits_in_order(tmp_path: Path) -> None:
    port = free_port()
    with webhook(tmp_path, f"http://127.0.0.1:{port}/hook") as (sending, told):
        for key in ("e1-start", "e1-end", "e2-start"):
            sending.put(key, key.encode())
        time.sleep(0.3)
        assert len(sending.outbox.waiting()) == 3
        assert told == ["the webhook at 127.0.0.1 takes no events: connection refused; it is tried again for a day"], (
            "told once"
        )
        with receiving(port=port) as receiver:
            requests = receiver.wait_for(3)
            wait_empty(tmp_path)
        assert [request.key for request in requests] == ["e1-start", "e1-end", "e2-start"]


def test_an_end_waits_for_its_beginning_and_others_do_not(tmp_path: Path) -> None:
    with receiving(500) as receiver, webhook(tmp_path, receiver.url, Patience(first_seconds=0.4)) as (sending, _):
        for key in ("e1-start", "e1-end", "e2-start"):
            sending.put(key, b"{}")
        keys = [request.key for request in receiver.wait_for(4)]
        assert keys == ["e1-start", "e2-start", "e1-start", "e1-end"]


@pytest.mark.parametrize("status", [400, 401, 404, 410, 413, 301, 307])
def test_a_refusal_is_final_and_told_once(tmp_path: Path, status: int) -> None:
    with receiving() as elsewhere:
        answer = (status, {"Location": elsewhere.url})
        with receiving(answer, answer) as receiver, webhook(tmp_path, receiver.url) as (sending, told):
            sending.put("e1-start", b"{}")
            sending.put("e2-start", b"{}")
            receiver.wait_for(2)
            wait_empty(tmp_path)
            time.sleep(0.2)
            assert len(receiver.requests) == 2
            wait_told(told, "refuses events")
            assert len(told) == 1
        assert elsewhere.requests == [], "a redirect was followed"


def test_after_a_day_a_letter_is_given_up(tmp_path: Path) -> None:
    with webhook(tmp_path, f"http://127.0.0.1:{free_port()}/", Patience(first_seconds=0.05, give_up_seconds=0.4)) as (
        sending,
        told,
    ):
        sending.put("e1-start", b"{}")
        wait_empty(tmp_path)
        wait_told(told, "e1-start could not be sent to 127.0.0.1 in time and is given up")


# Crashes ------------------------------------------------------------------------------------------------------------


def start(folder: Path, url: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(PROGRAM), str(folder), url, SECRET.decode()]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.slow
def test_killed_before_it_was_delivered_it_is_delivered_later(tmp_path: Path) -> None:
    port = free_port()
    process = start(tmp_path, f"http://127.0.0.1:{port}/hook")
    assert process.stdout is not None
    assert process.stdout.readline() == "written down\n"
    kill(process)
    (line,) = (tmp_path / "events.jsonl").read_text().splitlines()
    with receiving(port=port) as receiver, webhook(tmp_path, f"http://127.0.0.1:{port}/hook"):
        (request,) = receiver.wait_for(1)
        wait_empty(tmp_path)
        assert request.is_signed()
        assert request.record["id"] == json.loads(line)["id"]


@pytest.mark.slow
def test_killed_before_it_was_acknowledged_it_comes_again_with_the_same_id(tmp_path: Path) -> None:
    running: list[subprocess.Popen[str]] = []

    def kills_the_sender() -> int:
        running[0].send_signal(signal.SIGKILL)
        running[0].wait()
        return 204

    with receiving((kills_the_sender, {})) as receiver:
        running.append(start(tmp_path, receiver.url))
        receiver.wait_for(1)
        running[0].wait(10)
        kill(running[0])
        assert len(Outbox(tmp_path / "outbox").waiting()) == 1
        again = start(tmp_path, receiver.url)  # which notices the same event, and has it in its outbox already
        first, second = receiver.wait_for(2)
        wait_empty(tmp_path)
        kill(again)
        assert same_keys([first, second])
        assert first.body == second.body
        assert second.is_signed()
        time.sleep(0.3)
        assert len(receiver.requests) == 2


def test_two_processes_with_one_outbox_send_a_letter_once(tmp_path: Path) -> None:
    letters = Outbox(tmp_path / "outbox")
    letters.add("e1-start", b"body")
    (letter,) = letters.waiting()
    ready, release = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with letters.held(letter) as body:
            os.write(ready[1], body or b"nothing")
            os.read(release[0], 1)
            letters.remove(letter)
        os._exit(0)
    assert os.read(ready[0], 10) == b"body"
    with letters.held(letter) as body:
        assert body is None, "the other one sends it"
    os.write(release[1], b"x")
    os.waitpid(child, 0)
    with letters.held(letter) as body:
        assert body is None, "the other one has sent it"


def test_half_a_letter_is_none(tmp_path: Path) -> None:
    part = tmp_path / f"{time.time_ns():020d}-e1-start.letter.1.part"
    part.write_bytes(b"{")
    assert Outbox(tmp_path).waiting() == []
    os.utime(part, (0, 0))
    Outbox(tmp_path)
    assert not part.exists()


def test_an_outbox_keeps_no_more_than_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outboxes, "MAX_LETTERS", 3)
    letters = Outbox(tmp_path)
    lost = [letters.add(f"e{number}-start", b"{}") for number in range(5)]
    assert lost == [[], [], [], ["e0-start"], ["e1-start"]]
    assert [letter.key for letter in letters.waiting()] == ["e2-start", "e3-start", "e4-start"]
    assert letters.add("e4-start", b"{}") == [], "it waits already"
    assert len(letters.waiting()) == 3


def test_a_torn_last_line_of_events_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventLog(path).append({"event": "start"})
    with path.open("ab") as file:
        file.write(b'{"event": "en')
    EventLog(path).append({"event": "end"})
    lines = path.read_text().splitlines()
    assert [lines[0], lines[2]] == ['{"event": "start"}', '{"event": "end"}']
    with pytest.raises(ValueError, match="in a folder that exists"):
        EventLog(tmp_path / "nowhere" / "events.jsonl")


def test_a_full_disk_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    log, shown, told = EventLog(Path("/dev/full")), [], []
    with receiving() as receiver:
        make = lambda told: Webhook(Endpoint(receiver.url), Outbox(tmp_path / "out"), told=told)  # noqa: E731
        pictures = PictureFolder(tmp_path / "pictures")
        with Delivery(pictures, log=log, make_webhook=make, shown=shown.append, told=told.append) as delivery:
            delivery.put(Notice(event_at(12.0), "door.mp4"))
            receiver.wait_for(1)
            delivery.settle()
        assert "an event could not be written" in told[0]
        assert Path(shown[0].image).read_bytes() == JPEG


# Where to -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("", "must be an http or https address"),
        ("hooks.example/x", "must be an http or https address"),
        ("ftp://hooks.example/x", "must be an http or https address"),
        ("https://user:password@hooks.example/x", "without a user, password"),
        ("https://hooks.example/x#part", "without a user, password or fragment"),
        ("https://hooks.example:0/", "must be an http or https address"),
        ("https://hooks.example:99999/", "must be an http or https address"),
        ("https://hooks.example/a b", "must be an http or https address"),
        ("https://hooks.example/\r\nX-Evil: 1", "must be an http or https address"),
        ("http://169.254.169.254/latest", "link-local addresses like 169.254.169.254 are never connected to"),
        ("http://100.100.100.200/", "cloud metadata addresses"),
        ("http://[fd00:ec2::254]/", "cloud metadata addresses"),
        ("http://0.0.0.0:80/", "unspecified addresses"),
    ],
)
def test_addresses_that_will_not_do_are_refused_at_once(url: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as refused:
        Endpoint(url)
    assert "password@" not in str(refused.value)
    assert "/latest" not in str(refused.value)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("10.1.2.3", "private address 10.1.2.3; --webhook-allow hooks.example would permit it"),
        ("169.254.169.254", "169.254.169.254"),
        ("fd00::1", "private address fd00::1"),
        ("127.0.0.1", "private address 127.0.0.1"),
    ],
)
def test_a_name_with_a_private_address_is_not_connected_to(address: str, said: str) -> None:
    with receiving() as receiver:
        port = receiver.url.split(":")[2].split("/")[0]
        endpoint = Endpoint(f"http://hooks.example:{port}/", resolver=lambda host, port: ["192.0.2.1", address])
        reply = endpoint.send("k", b"{}")
        assert (reply.status, reply.received) == (0, False)
        assert "private address" in reply.trouble
        assert said in Endpoint(f"http://hooks.example:{port}/", resolver=lambda *_: [address]).send("k", b"").trouble
        assert receiver.requests == []


def test_an_allowed_name_may_be_private_but_never_metadata() -> None:
    allowed = allowed_hosts(["hooks.lan"])
    refused = Endpoint("http://hooks.lan/", allowed=allowed, resolver=lambda *_: ["169.254.169.254"]).send("k", b"")
    assert "never connected to" in refused.trouble
    private = Endpoint("http://hooks.lan/", allowed=allowed, resolver=lambda *_: ["10.255.255.1"])
    assert private._checked("hooks.lan", 80) == ["10.255.255.1"]
    with pytest.raises(ValueError, match="--webhook-allow takes a host"):
        allowed_hosts(["http://x/"])


def test_a_name_is_looked_up_for_every_attempt_and_the_checked_address_is_used() -> None:
    with receiving() as receiver:
        port, answers = int(receiver.url.split(":")[2].split("/")[0]), [["127.0.0.1"], ["10.9.9.9"]]
        asked: list[str] = []

        def resolver(host: str, port: int) -> list[str]:
            asked.append(host)
            return answers.pop(0)

        endpoint = Endpoint(f"http://localhost:{port}/x", resolver=resolver)
        assert endpoint.send("k", b"{}").received
        assert asked == ["localhost"], "one look-up for one connection"
        assert receiver.requests[0].headers["host"] == f"localhost:{port}"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of localhost, by nobody whom anybody trusts."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


def test_certificates_are_checked_against_the_name(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with receiving(tls=context) as receiver:
        address = receiver.url.replace("127.0.0.1", "localhost")
        here = lambda *_: ["127.0.0.1"]  # noqa: E731
        untrusted = Endpoint(address, resolver=here).send("k", b"{}")
        assert untrusted.status == 0
        assert "certificate" in untrusted.trouble
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        assert Endpoint(address, resolver=here).send("k", b"{}").received
        assert "certificate" in Endpoint(receiver.url).send("k", b"{}").trouble, "it is of another name"
        assert len(receiver.requests) == 1


def test_a_secret_comes_from_a_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "secret.txt"
    file.write_bytes(SECRET + b"\n")
    assert read_secret(file, {}) == SECRET
    assert read_secret(None, {"VSTREAM_WEBHOOK_SECRET": SECRET.decode()}) == SECRET
    assert read_secret(None, {}) is None
    file.write_text("short")
    with pytest.raises(ValueError, match="must hold a secret of 16 to 4096 bytes, got 5"):
        read_secret(file, {})
    with pytest.raises(ValueError, match="cannot be read"):
        read_secret(tmp_path / "nothing", {})
    assert "secret" not in repr(Endpoint("https://hooks.example/secret-path", SECRET))


def test_nothing_secret_is_told(tmp_path: Path) -> None:
    with receiving(404) as receiver, webhook(tmp_path, receiver.url) as (sending, told):
        sending.put("e1-start", b"{}")
        wait_told(told, "404")
        assert not any("hook?" in sentence for sentence in told)
        assert "hook?" not in str(list(tmp_path.rglob("*")))


def test_a_receiver_is_a_real_one() -> None:
    """The negative control of the signature's check."""
    with receiving() as receiver:
        assert isinstance(receiver, Receiver)
        Endpoint(receiver.url, SECRET).send("k", b"{}")
        (request,) = receiver.requests
        forged = type(request)(request.path, request.headers, request.body + b" ", request.at)
        assert request.is_signed()
        assert not forged.is_signed()
