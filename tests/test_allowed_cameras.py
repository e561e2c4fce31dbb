"""Network cameras for strangers: allowed hosts, addresses that nobody may have, and the relay between FFmpeg and them.

Servers are real: GStreamer's, and ones that lie. Each attack is shown to work where there is no relay.
"""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import BinaryIO, Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rtsp_server import BlackHole, RtspServer, free_port, require_gstreamer
from videos import constant_times, read_clock, write_video

from vstream.app.serve import hosts
from vstream.app.serve.allowed import SourcePolicy, SourceRefused
from vstream.app.serve.hosts import checked_addresses, why_special
from vstream.sources import CameraSource, open_source
from vstream.sources.base import Source
from vstream.sources.relay import Answers, CameraRefused, Relay
from vstream.types import Frame

pytestmark = pytest.mark.slow

SDP = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\n{base}t=0 0\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n{track}"
)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of frames that show their own time."""
    require_gstreamer()
    return write_video(tmp_path_factory.mktemp("clips") / "short.mp4", constant_times(40, 20), options={"bf": "0"})


def wait_until(condition: Callable[[], object], what: str, seconds: float = 15.0) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"took too long: {what}"
        time.sleep(0.01)


class Watch:
    """A source that is read in a thread."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.frames: list[Frame] = []
        self._thread = threading.Thread(target=self._read)

    def _read(self) -> None:
        for frame in self.source.frames(lambda seconds: True):
            self.frames.append(frame)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.source.interrupt()
        self._thread.join(20)
        assert not self._thread.is_alive()
        self.source.close()
        wait_until(lambda: not relays(), "a relay outlives its source")

    def sees(self, part: str) -> str:
        """Waits for a state that holds this, and returns it whole."""
        assert isinstance(self.source, CameraSource)
        wait_until(lambda: part in self.source.state, f"{part}, but {self.source.state}, {self.source.gaps}")
        return self.source.state


def relays() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "RTSP relay"]


def watched(policy: SourcePolicy, url: str) -> Watch:
    return Watch(policy.open(url, max_side=160).source)


class Listening:
    """Serves what comes to a port of its own, for as long as it is entered."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _serve(self) -> None:
        raise NotImplementedError


class Liar(Listening):
    """An RTSP server that answers each method as it is told, and keeps what it was asked.

    Attributes:
        answers: by method; "{port}" stands for another's port.
        asked: the first lines of all requests.
        connections: how many there were.
    """

    def __init__(self, **answers: str) -> None:
        self.answers = {"OPTIONS": "200 OK\r\nPublic: OPTIONS, DESCRIBE, SETUP, PLAY\r\n"} | answers
        self.asked: list[str] = []
        self.connections = 0
        super().__init__()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._talk, args=(client,), daemon=True).start()

    def _talk(self, client: socket.socket) -> None:
        with client, client.makefile("rwb") as lines:
            while head := read_head(lines):
                self.asked.append(head[0])
                method = head[0].split()[0]
                number = next(line.split(":")[1] for line in head if line.lower().startswith("cseq"))
                answer = self.answers.get(method, "200 OK\r\n")
                lines.write(f"RTSP/1.0 {answer}".replace("\r\n", f"\r\nCSeq:{number}\r\n", 1).encode())
                lines.write(b"" if "\r\n\r\n" in answer else b"\r\n")
                lines.flush()


def read_head(lines: BinaryIO) -> list[str]:
    """A request's lines; none once the client has gone."""
    head: list[str] = []
    try:
        while line := lines.readline().decode().strip():
            head.append(line)
    except ConnectionResetError:  # the client has gone
        return []
    return head


def described(base: str = "", track: str = "a=control:1\r\n", headers: str = "") -> str:
    body = SDP.format(base=base, track=track)
    return f"200 OK\r\nContent-Type: application/sdp\r\n{headers}Content-Length: {len(body)}\r\n\r\n{body}"


# Which hosts


@pytest.mark.parametrize(
    ("allow", "url", "is_allowed"),
    [
        ("192.168.1.20", "rtsp://192.168.1.20/x", True),
        ("192.168.1.20", "rtsp://192.168.1.21/x", False),
        ("192.168.1.20", "rtsps://u:p@192.168.1.20:8554/x", True),
        ("192.168.1.20:554", "rtsp://192.168.1.20/x", True),
        ("192.168.1.20:554", "rtsps://192.168.1.20/x", False),
        ("192.168.1.20:554", "rtsp://192.168.1.20:8554/x", False),
        ("192.168.1.0/24", "rtsp://192.168.1.77/x", True),
        ("192.168.1.77/24", "rtsp://192.168.1.78/x", True),
        ("192.168.1.0/24", "rtsp://192.168.2.1/x", False),
        ("192.168.1.0/24", "rtsp://192.168.1.1.evil.example/x", False),
        ("fd00::/8", "rtsp://[fd00::7]:554/x", True),
        ("fd00::1", "rtsp://[fd00:0::0:1]/x", True),
        ("[fd00::1]:554", "rtsp://[fd00::1]/x", True),
        ("[fd00::1]:554", "rtsp://[fd00::1]:555/x", False),
        ("192.168.1.20", "rtsp://[::ffff:192.168.1.20]/x", False),
        ("camera.lan", "rtsp://CAMERA.lan./x", True),
        ("camera.lan:8554", "rtsp://camera.lan:8554/x", True),
        ("camera.lan:8554", "rtsp://camera.lan/x", False),
        ("camera.lan", "rtsp://evil.camera.lan/x", False),
        ("camera.lan", "rtsp://camera.lan@evil.example/x", False),
        ("camera.lan", "rtsp://camera.lan:554@evil.example/x", False),
        ("camera.lan", "rtsp://evil.example/camera.lan", False),
        ("camera.lan", "rtsp://evil.example?camera.lan", False),
        ("127.0.0.1", "rtsp://2130706433/x", False),
        ("127.0.0.1", "rtsp://0x7f.1/x", False),
        ("127.0.0.1", "rtsp://localhost/x", False),
        ("0.0.0.0/0", "rtsp://localhost/x", False),
    ],
)
def test_only_allowed_hosts(allow: str, url: str, is_allowed: bool) -> None:
    policy = SourcePolicy([allow])
    if is_allowed:
        source = policy.open(url, max_side=64).source
        assert isinstance(source, CameraSource)
        source.close()
    else:
        with pytest.raises(SourceRefused, match="is not allowed here"):
            policy.open(url, max_side=64)


def test_what_is_said_holds_no_credentials() -> None:
    policy, url = SourcePolicy(["camera.lan"]), "rtsp://us3r:Secr3t@{}/x?token=T0ken"
    with pytest.raises(SourceRefused) as refused:
        policy.open(url.format("evil.example"), max_side=64)
    with pytest.raises(ValueError, match="the camera's address is not") as malformed:
        policy.open(url.format("camera.lan/y@"), max_side=64)
    opened = policy.open(url.format("camera.lan"), max_side=64)
    assert opened.given == "rtsp://camera.lan/x"
    said = f"{refused.value}{malformed.value}{opened}{opened.source}{vars(opened.source)}"
    assert "--allow evil.example" in said
    assert not re.search("us3r|Secr3t|T0ken", said)


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("169.254.169.254", "link-local"), ("169.254.0.1", "link-local"), ("fe80::1", "link-local"),
        ("fd00:ec2::254", "cloud metadata"), ("100.100.100.200", "cloud metadata"), ("168.63.129.16", "cloud metadata"),
        ("0.0.0.0", "unspecified"), ("0.1.2.3", "unspecified"), ("::", "unspecified"), ("224.0.0.1", "multicast"),
        ("ff02::1", "multicast"), ("255.255.255.255", "reserved"), ("240.0.0.1", "reserved"),
        ("::ffff:169.254.169.254", "link-local"), ("2002:a9fe:a9fe::", "link-local"),
        ("64:ff9b::a9fe:a9fe", "link-local"), ("::a9fe:a9fe", "link-local"),
        ("::ffff:0.0.0.0", "unspecified"), ("fe80::1%3", "link-local"),
        ("192.168.1.20", None), ("10.0.0.1", None), ("127.0.0.1", None), ("::1", None), ("fd00::1", None),
        ("93.184.216.34", None), ("2606:2800:220:1::1", None), ("100.64.0.1", None),
    ],
)  # fmt: skip
def test_special_addresses(address: str, kind: str | None) -> None:
    assert why_special(ip_address(address)) == kind
    if kind:
        with pytest.raises(
            CameraRefused, match=f"camera.lan has the {kind} address {re.escape(address)}, which is never"
        ):
            checked_addresses("camera.lan", 554, lambda host, port: ["192.168.1.20", address])
        with pytest.raises(CameraRefused, match="which is never connected to"):
            checked_addresses(address, 554, hosts.resolved)
    else:
        assert checked_addresses(address, 554, hosts.resolved) == [address]


def test_a_name_may_not_mean_this_machine_unless_it_says_so() -> None:
    for address in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
        with pytest.raises(CameraRefused, match="has the loopback address"):
            checked_addresses("camera.lan", 554, lambda host, port, address=address: [address])
        assert checked_addresses("localhost", 554, lambda host, port, address=address: [address]) == [address]


def test_a_network_that_holds_special_addresses_does_not_allow_them() -> None:
    policy = SourcePolicy(["0.0.0.0/0", "::/0"])
    for host in ("169.254.169.254", "0.0.0.0", "[fe80::1]", "[::ffff:169.254.169.254]", "224.0.0.1"):
        with pytest.raises(SourceRefused, match=f"addresses like {re.escape(host.strip('[]'))} are never connected to"):
            policy.open(f"rtsp://u:p@{host}/x", max_side=64)
    policy.open("rtsp://192.168.1.20/x", max_side=64).source.close()


# Frames, and lies


@pytest.mark.slow
def test_frames_come_through_the_relay_again_and_again(clip: Path) -> None:
    server = RtspServer(clip, user="us er", password="p@:/%w")
    policy = SourcePolicy(["127.0.0.1"])
    with server, watched(policy, server.url("us%20er:p%40%3A%2F%25w", "a=b")) as watch:
        wait_until(lambda: watch.source.num_gaps == 2, "two ends")
        server.kill()
        watch.sees("connection refused (attempt 2)")
        server.start()
        wait_until(lambda: watch.source.num_gaps == 3, "it is watched again")
    shown = [read_clock(frame.image) for frame in watch.frames[:40]]
    assert shown == [pytest.approx(k / 20) for k in range(40)]
    assert watch.source.gaps[0].reason == "the camera ended the stream"


def test_a_wrong_password_is_told_through_the_relay(clip: Path) -> None:
    with (
        RtspServer(clip, user="watcher", password="right") as server,
        watched(SourcePolicy(["127.0.0.1"]), server.url("watcher:Secr3t")) as watch,
    ):
        assert "Secr3t" not in watch.sees("not authorised")


@pytest.mark.parametrize("method", ["OPTIONS", "DESCRIBE", "SETUP", "PLAY"])
def test_a_redirect_is_not_followed(method: str) -> None:
    with Liar() as target:
        for code in (301, 302, 305):
            answers = {
                "DESCRIBE": described(),
                "SETUP": "200 OK\r\nSession: 1\r\nTransport: RTP/AVP/TCP;interleaved=0-1\r\n",
            }
            answers[method] = f"{code} Moved\r\nLocation: rtsp://127.0.0.1:{target.port}/x\r\n"
            with (
                Liar(**answers) as liar,
                watched(SourcePolicy(["127.0.0.1"]), f"rtsp://127.0.0.1:{liar.port}/x") as watch,
            ):
                assert f"RTSP {code}), which is not followed" in watch.sees("the camera redirects")
            assert liar.asked[-1].startswith(method)
        assert target.connections == 0


def test_a_redirect_is_followed_without_a_relay() -> None:
    with (
        Liar() as target,
        Liar(DESCRIBE=f"302 Moved\r\nLocation: rtsp://127.0.0.1:{target.port}/x\r\n") as liar,
        Watch(open_source(f"rtsp://127.0.0.1:{liar.port}/x", max_side=64)),
    ):
        wait_until(lambda: target.connections, "FFmpeg follows it")


def test_absolute_addresses_in_answers_lead_nowhere_else() -> None:
    with Liar() as target:
        there = f"rtsp://127.0.0.1:{target.port}/x"
        answer = described(
            f"c=IN IP4 127.0.0.1\r\na=control:{there}\r\n", f"a=control:{there}/1\r\n", f"Content-Base: {there}/\r\n"
        )
        transport = f"200 OK\r\nSession: 1\r\nTransport: RTP/AVP/TCP;interleaved=0-1;source=127.0.0.1:{target.port}\r\n"
        with Liar(DESCRIBE=answer, SETUP=transport) as liar:
            with watched(SourcePolicy(["127.0.0.1"]), f"rtsp://127.0.0.1:{liar.port}/x"):
                wait_until(lambda: any(line.startswith("PLAY") for line in liar.asked), str(liar.asked))
            assert f"SETUP {there}/1 RTSP/1.0" in liar.asked, "to the server that was allowed"
        assert target.connections == 0


def test_a_camera_that_wants_udp_is_not_heard() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as trap:
        trap.bind(("127.0.0.1", 0))
        trap.settimeout(0.2)
        port = trap.getsockname()[1]
        transport = (
            f"200 OK\r\nSession: 1\r\nTransport: RTP/AVP;unicast;source=127.0.0.1;server_port={port}-{port + 1}\r\n"
        )
        with Liar(DESCRIBE=described(), SETUP=transport) as liar:
            with watched(SourcePolicy(["127.0.0.1"]), f"rtsp://127.0.0.1:{liar.port}/x") as watch:
                watch.sees("(attempt 1)")
            assert not any(line.startswith("PLAY") for line in liar.asked)
        with pytest.raises(TimeoutError):
            trap.recv(1)


def test_what_speaks_no_rtsp_is_told() -> None:
    with (
        Liar(OPTIONS="garbage\r\n") as liar,
        watched(SourcePolicy(["127.0.0.1"]), f"rtsp://127.0.0.1:{liar.port}/x") as watch,
    ):
        watch.sees("what answers there is no RTSP camera")
    with BlackHole() as port, watched(SourcePolicy(["127.0.0.1"]), f"rtsp://127.0.0.1:{port}/x") as watch:
        watch.sees("no answer")


# Names


class Names:
    """A resolver whose answers change."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, int]] = []

    def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append((host, port))
        return self.answers[min(len(self.asked), len(self.answers)) - 1]


@pytest.mark.slow
def test_a_name_that_means_something_else_later_is_refused_then(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(["127.0.0.1"], ["127.0.0.1"], ["127.0.0.1", "169.254.169.254"])
    connected: list[tuple[str, int]] = []
    connecting = socket.create_connection
    monkeypatch.setattr(socket, "create_connection", lambda to, *rest: connected.append(to) or connecting(to, *rest))
    with RtspServer(clip) as server:
        policy = SourcePolicy(["camera.localhost"], resolver=names)
        opened = policy.open(f"rtsp://camera.localhost:{server.port}/test", max_side=160)
        assert names.asked == [], "a camera that is not read is not looked up"
        with Watch(opened.source) as watch:
            state = watch.sees(
                "camera.localhost has the link-local address 169.254.169.254, which is never connected to"
            )
            assert state.startswith("waiting")
    assert names.asked[:3] == [("camera.localhost", server.port)] * 3, "once for every connection"
    assert connected == [("127.0.0.1", server.port)] * 2, "to the address that was checked, not to the name"
    assert (len(watch.frames), watch.source.num_gaps) == (80, 1)


def test_a_name_that_nobody_knows_is_waited_for() -> None:
    def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with watched(SourcePolicy(["camera.lan"], resolver=unknown), "rtsp://camera.lan/x") as watch:
        watch.sees("name or service not known (attempt 2)")


def test_the_next_address_is_tried(clip: Path) -> None:
    with RtspServer(clip) as server:
        names = Names(["127.0.0.2", "127.0.0.1"])
        with watched(SourcePolicy(["localhost"], resolver=names), f"rtsp://localhost:{server.port}/test") as watch:
            watch.sees("watching")


# TLS


class Terminator(Listening):
    """TLS in front of another server: a certificate for localhost that nobody has signed but itself."""

    def __init__(self, port: int, folder: Path) -> None:
        self.certificate = folder / "cert.pem"
        command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout {folder}/key.pem -out {self.certificate}"
        names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        subprocess.run([*command.split(), *names], check=True, capture_output=True)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(self.certificate, folder / "key.pem")
        self._to = port
        super().__init__()

    def _serve(self) -> None:
        while True:
            try:
                client = self._context.wrap_socket(self._listening.accept()[0], server_side=True)
            except ssl.SSLError:
                continue
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._to))
            for pair in ((client, server), (server, client)):
                threading.Thread(target=self._copy, args=pair, daemon=True).start()

    def _copy(self, here: socket.socket, there: socket.socket) -> None:
        try:
            while data := here.recv(1 << 14):
                there.sendall(data)
        except OSError:
            return
        finally:
            there.close()


def test_tls_needs_a_certificate_that_is_trusted(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = SourcePolicy(["localhost"], resolver=Names(["127.0.0.1"]))
    with RtspServer(clip) as server, Terminator(server.port, tmp_path) as tls:
        url = f"rtsps://localhost:{tls.port}/test"
        with watched(policy, url) as watch:
            watch.sees("the camera's certificate is not trusted (self-signed certificate)")
        assert watch.frames == []
        monkeypatch.setenv("SSL_CERT_FILE", str(tls.certificate))
        with watched(policy, url) as watch:
            wait_until(lambda: watch.source.num_gaps == 1, "the end")
        assert len(watch.frames) >= 40
        other = SourcePolicy(["127.0.0.1"])
        with watched(other, f"rtsps://127.0.0.1:{tls.port}/test") as watch:
            watch.sees("certificate is not trusted (IP address mismatch")
        with watched(policy, f"rtsps://localhost:{server.port}/test") as watch:
            watch.sees("the camera ")
        assert watch.frames == []


# What the relay passes


def heard_by_ffmpeg(data: bytes) -> list[int]:
    """The status codes that FFmpeg's reader (`ff_rtsp_read_reply`, as it is while it connects) finds in some bytes."""
    statuses, at = [], 0

    def line() -> bytes | None:
        nonlocal at
        text = b""
        while at < len(data):
            byte, at = data[at : at + 1], at + 1
            if byte == b"\n":
                return text
            if byte == b"$" and not text:
                at += 3 + int.from_bytes(data[at + 1 : at + 3], "big")
            elif byte != b"\r":
                text += byte
        return None

    while (first := line()) is not None:
        size, words = 0, first.split()
        if len(words) > 1 and words[0].startswith(b"RTSP/") and (number := re.match(rb"[0-9]+", words[1])):
            statuses.append(int(number[0]))
        following = first
        while following:
            following = line() or b""
            if found := re.match(rb"content-length:\s*([0-9]+)", following, re.IGNORECASE):
                size = int(found[1])
        at += size
    return statuses


PARTS = st.sampled_from(
    [b"RTSP/1.0 200 OK", b"RTSP/1.0 302 Moved", b"RTSP/1.0  302", b"RTSP/1.0\t302", b"RTSP/1.0 0302 x", b"\r\n",
     b"\r\n\r\n", b"\n", b"\r", b"\n\n", b"$", b"$\0\0\3", b"$\0\0\x10" + bytes(16), b"$\0\0\7RTSP/ 3",
     b"Content-Length: 5\r\n", b"Content-length:30\r\n", b"Content-Length : 9\r\n",
     b"CSeq: 1\r\n", b"Location: rtsp://x/\r\n", b"\0", b"x", b" ",
     b"OPTIONS * RTSP/1.0", b"REDIRECT * RTSP/1.0", b"Session: 1\r$\r\n", b"Range: \x0b\r\n"]
)  # fmt: skip


def relayed(pieces: list[bytes]) -> bytes:
    """What is passed of some pieces, up to where the relay ends the connection."""
    answers, passed = Answers(), []
    try:
        for piece in pieces:
            for part in answers.passed(piece):
                passed.append(part)
    except CameraRefused:
        return b"".join(passed)
    return b"".join(passed)


@settings(max_examples=500, deadline=None)
@given(st.lists(PARTS, max_size=14))
def test_ffmpeg_never_hears_of_a_redirect(parts: list[bytes]) -> None:
    whole, passed = b"".join(parts), relayed(parts)
    assert not any(300 <= status < 400 for status in heard_by_ffmpeg(passed))
    assert relayed([whole[k : k + 1] for k in range(len(whole))]) == passed, "however it is cut"


def test_ffmpeg_hears_of_redirects_without_the_relay() -> None:
    redirect = b"RTSP/1.0 302 Moved\r\nLocation: rtsp://x/\r\n\r\n"
    hidden = b"RTSP/1.0 200 OK\r\nContent-Length : 47\r\n\r\n" + redirect  # not what FFmpeg takes for a length
    assert heard_by_ffmpeg(redirect) == [302]
    assert heard_by_ffmpeg(hidden) == [200, 302]
    assert relayed([hidden]) == b"RTSP/1.0 200 -\r\nContent-Length: 0\r\n\r\n"


def test_packets_pass_as_they_are_and_answers_written_anew() -> None:
    packet = b"$\1\0\x0c" + b"RTSP/1.0 302"
    answer = b"RTSP/1.0 200 OK\r\nCSeq: 4\r\nServer: RealServer\r\nX: y\r\nSession: 7;timeout=60\r\n"
    answer += b"Content-Length: 2\r\n\r\nv="
    told = b"RTSP/1.0 200 -\r\nCSeq: 4\r\nSession: 7;timeout=60\r\nContent-Length: 2\r\n\r\nv="
    assert relayed([packet + answer + b"\r\n" + packet + b"$\0\0\1x" + packet]) == packet + told + packet * 2
    assert relayed([b"OPTIONS rtsp://x RTSP/1.0\r\nCSeq: 1\r\n\r\n"]).startswith(b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n")


@pytest.mark.parametrize(
    "said",
    [b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 70000, b"RTSP/1.0 200 OK\r\nContent-Length: 99999999\r\n\r\n",
     b"RTSP/1.0 200 OK\r\nContent-Length: -1\r\n\r\n",
     b"RTSP/1.0 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"],
)  # fmt: skip
def test_what_cannot_be_understood_ends_the_connection(said: bytes) -> None:
    with pytest.raises(CameraRefused):
        list(Answers().passed(said))


def test_nobody_but_the_first_is_relayed() -> None:
    with Liar() as liar:
        relay = Relay(lambda: socket.create_connection(("127.0.0.1", liar.port)))
        with socket.create_connection(("127.0.0.1", relay.port)):
            wait_until(lambda: liar.connections == 1, "the first")
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", relay.port))
        wait_until(lambda: not relays(), "the end of the relay")
    assert relay.reason is None


def test_a_camera_that_is_off_is_waited_for() -> None:
    with watched(SourcePolicy(["127.0.0.1"]), f"rtsp://127.0.0.1:{free_port()}/x") as watch:
        watch.sees("connection refused (attempt 2)")
