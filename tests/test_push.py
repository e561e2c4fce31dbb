"""Frames that clients send, by HTTP and on a WebSocket, to a real server; and pictures that are none, or bombs."""

from __future__ import annotations

import io
import json
import struct
import threading
import time
import zlib

import numpy as np
import pytest
from PIL import Image
from serving import QUESTION, Served, make_hub, serve, wait_for
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from vstream.app.serve import pictures
from vstream.app.serve.pictures import decode_picture
from vstream.app.serve.stopping import Stopping


@pytest.fixture(scope="module")
def stopping() -> Stopping:
    return Stopping()


@pytest.fixture(scope="module")
def served(tmp_path_factory, stopping: Stopping):
    with serve(make_hub(tmp_path_factory.mktemp("push")), stopping=stopping) as served:
        yield served


@pytest.fixture
def stream_id(served: Served):
    yield served.open("push", fps=2)
    served.close_all()


def picture(shade: int = 90, size: tuple[int, int] = (96, 64), kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade, shade, shade)).save(buffer, kind, **options)
    return buffer.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """A small PNG whose head says it is huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )


def send(served: Served, stream_id: str, data: bytes, kind: str = "image/jpeg", **params):
    url = f"/v1/streams/{stream_id}/frames"
    return served.http.post(url, content=data, headers={"content-type": kind}, params=params)


def error_of(response) -> dict:
    return response.json()["error"]


# Pictures


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_pictures_are_decoded_upright_and_shrunk(kind: str) -> None:
    image = decode_picture(picture(90, (400, 200), kind), max_side=100)
    assert image.shape == (50, 100, 3)
    assert image.dtype == np.uint8
    assert abs(int(image.mean()) - 90) <= 2


def test_a_turned_picture_stands_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a phone held upright
    assert decode_picture(picture(90, (80, 40), exif=exif), max_side=100).shape == (80, 40, 3)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16"])
def test_pictures_of_other_colours_become_rgb(mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (20, 10)).save(buffer, "JPEG" if mode == "CMYK" else "PNG")
    assert decode_picture(buffer.getvalue(), max_side=100).shape == (10, 20, 3)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "0 bytes"),
        (b"hello", "no JPEG, PNG or WebP"),
        (b"<svg xmlns='a'/>", "no JPEG, PNG or WebP"),
        (b"GIF89a" + b"\0" * 50, "no JPEG, PNG or WebP"),
        (picture(kind="TIFF"), "no JPEG, PNG or WebP"),
        (cut(picture(size=(600, 400), kind="PNG")), "damaged"),
        (cut(picture(size=(600, 400))), "damaged"),
        (b"\0" * (pictures.MAX_BYTES + 1), "may have"),
        (png_that_claims(60_000, 60_000), "too many pixels"),
        (png_that_claims(6_000, 6_000), "6000x6000, which is too many pixels"),
        (png_that_claims(20_000, 1), "20000x1, which is too many"),
        (png_that_claims(0, 1), "no JPEG, PNG or WebP"),
        (png_that_claims(500, 500), "damaged"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_sentence(data: bytes, sentence: str) -> None:
    began = time.process_time()
    with pytest.raises(ValueError, match=sentence) as raised:
        decode_picture(data, max_side=100)
    assert "\n" not in str(raised.value)
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize("seed", range(150))
def test_damaged_pictures_are_pictures_or_refused(seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(picture(seed, (64, 48), ("JPEG", "PNG", "WEBP")[seed % 3]))
    for _ in range(1 + seed % 8):
        data[rng.integers(len(data))] = rng.integers(256)
    problems = []
    try:
        image = decode_picture(bytes(data), max_side=64)
        problems = [] if image.ndim == 3 and max(image.shape) <= 64 else [image.shape]
    except ValueError as error:
        problems = [str(error)] if "\n" in str(error) else []
    assert not problems


# By HTTP


def test_frames_are_pushed_watched_and_asked(served: Served, stream_id: str) -> None:
    for number in range(8):
        reply = send(served, stream_id, picture(20 * number), seconds=number / 2)
        assert reply.status_code == 200, reply.text
        assert reply.json()["dropped"] == 0
    turn = served.http.post(f"/v1/streams/{stream_id}/ask", json=QUESTION).json()
    assert turn.get("snapshot_seconds") == 3.5, turn


def test_a_frame_without_a_time_has_that_of_its_coming(served: Served, stream_id: str) -> None:
    for _ in range(2):
        assert send(served, stream_id, picture()).status_code == 200
        time.sleep(0.3)
    ingest = served.hub.stream(stream_id).session.ingest
    wait_for(lambda: ingest.counters().decoded == 2)
    assert 0.29 < ingest.clock_seconds < 5


def test_the_end_is_told_and_nothing_more_is_taken(served: Served, stream_id: str) -> None:
    send(served, stream_id, picture(), seconds=0)
    assert served.http.post(f"/v1/streams/{stream_id}/end").status_code == 200
    turn = served.http.post(f"/v1/streams/{stream_id}/ask", json=QUESTION | {"at": "end"}).json()
    assert turn["snapshot_seconds"] == 0.0
    late = send(served, stream_id, picture(), seconds=1)
    assert late.status_code == 409
    assert "has ended" in error_of(late)["message"]


@pytest.mark.parametrize(
    ("data", "kind", "params", "status", "sentence"),
    [
        (b"no picture", "image/jpeg", {}, 400, "no JPEG"),
        (picture(), "text/plain", {}, 415, "image/jpeg, image/png, image/webp"),
        (picture(), "", {}, 415, "got none"),
        (b"x" * (pictures.MAX_BYTES + 1), "image/jpeg", {}, 413, f"{pictures.MAX_BYTES} bytes"),
        (png_that_claims(50_000, 50_000), "image/png", {}, 400, "too many pixels"),
        (picture(), "image/jpeg", {"seconds": -1}, 422, "greater than or equal to 0"),
        (picture(), "image/jpeg", {"seconds": "nan"}, 422, "finite"),
        (picture(), "image/jpeg", {"seconds": 1.0}, 400, "times must rise"),
    ],
)
def test_frames_that_will_not_do_are_refused_and_the_stream_goes_on(
    served: Served, stream_id: str, data: bytes, kind: str, params: dict, status: int, sentence: str
) -> None:
    assert send(served, stream_id, picture(), seconds=1.0).status_code == 200
    reply = send(served, stream_id, data, kind, **params)
    assert reply.status_code == status, reply.text
    assert sentence in error_of(reply)["message"]
    assert send(served, stream_id, picture(), seconds=2.0).status_code == 200


def test_streams_that_take_no_frames_say_so(served: Served) -> None:
    stream_id = served.open("lavfi:testsrc2=size=64x48:rate=5,realtime")
    for reply in (send(served, stream_id, picture()), served.http.post(f"/v1/streams/{stream_id}/end")):
        assert reply.status_code == 409
        assert '{"source": "push"}' in error_of(reply)["message"]
    assert send(served, "0" * 12, picture()).status_code == 404
    served.close_all()


def test_many_at_once_hold_nobody_up(served: Served, stream_id: str) -> None:
    data, replies = picture(size=(1200, 900)), []
    threads = [
        threading.Thread(target=lambda: replies.append(send(served, stream_id, data).status_code)) for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    assert served.http.get("/healthz").status_code == 200
    assert time.monotonic() - began < 2
    for thread in threads:
        thread.join(30)
    assert set(replies) <= {200, 400}  # two may have the same time
    assert replies.count(200) >= 6


# On a WebSocket


def socket_to(served: Served, stream_id: str, **options):
    return connect(f"{served.socket_url}/v1/streams/{stream_id}/push", **options)


def told(socket, holds, seconds: float = 20.0) -> dict:
    """The first message for which `holds` is true."""
    until = time.monotonic() + seconds
    while True:
        message = json.loads(socket.recv(max(0.0, until - time.monotonic())))
        if holds(message):
            return message


def test_a_socket_takes_pictures_at_their_times_and_tells_what_came(served: Served, stream_id: str) -> None:
    with socket_to(served, stream_id) as socket:
        for number in range(8):
            socket.send(json.dumps({"seconds": number / 2}))
            socket.send(picture(20 * number))
            time.sleep(0.02)
        counts = told(socket, lambda message: message.get("received") == 8)
    stream = served.hub.stream(stream_id)
    wait_for(lambda: stream.session.ingest.counters().received + counts["dropped"] >= 8)
    turn = served.http.post(f"/v1/streams/{stream_id}/ask", json=QUESTION).json()
    assert turn["snapshot_seconds"] == 3.5
    assert stream.state == "watching"  # the socket was closed, the stream was not


@pytest.mark.slow
def test_pictures_without_a_time_have_that_of_their_coming(served: Served, stream_id: str) -> None:
    stream = served.hub.stream(stream_id)
    with socket_to(served, stream_id) as socket:
        for _ in range(3):
            socket.send(picture())
            time.sleep(0.55)
        told(socket, lambda message: message.get("received") == 3)
    wait_for(lambda: (stream.session.ingest.clock_seconds or 0) > 0.9)
    assert stream.session.ingest.clock_seconds < 5


def test_what_came_last_is_taken_before_the_socket_is_gone(served: Served, stream_id: str) -> None:
    with socket_to(served, stream_id) as socket:
        socket.send(json.dumps({"seconds": 7.5}))
        socket.send(picture())
    wait_for(lambda: served.hub.stream(stream_id).session.ingest.clock_seconds == 7.5)


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (b"no picture", "no JPEG"),
        (png_that_claims(50_000, 50_000), "too many pixels"),
        ("hello", '{"seconds": s}'),
        ('{"seconds": "1"}', '{"seconds": s}'),
        ('{"seconds": NaN}', '{"seconds": s}'),
        ('{"seconds": -1}', '{"seconds": s}'),
        ('{"seconds": true}', '{"seconds": s}'),
        ("[1]", '{"seconds": s}'),
    ],
)
def test_a_bad_message_is_answered_and_the_next_picture_taken(
    served: Served, stream_id: str, message: bytes | str, sentence: str
) -> None:
    with socket_to(served, stream_id) as socket:
        socket.send(message)
        assert sentence in told(socket, lambda one: "error" in one)["error"]["message"]
        socket.send(json.dumps({"seconds": 3.0}))
        socket.send(picture())
        wait_for(lambda: served.hub.stream(stream_id).session.ingest.clock_seconds == 3.0)


def test_of_pictures_that_come_too_fast_the_oldest_are_dropped(
    served: Served, stream_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(data: bytes, *, max_side: int):
        time.sleep(0.2)
        return decode_picture(data, max_side=max_side)

    monkeypatch.setattr(pictures, "decode_picture", slow)
    with socket_to(served, stream_id) as socket:
        began = time.monotonic()
        for number in range(60):
            socket.send(json.dumps({"seconds": number / 2}))
            socket.send(picture())
        assert time.monotonic() - began < 5  # the sender is not held up
        began = time.monotonic()
        assert served.http.get("/healthz").status_code == 200
        assert time.monotonic() - began < 1  # nor is anybody else
        counts = told(socket, lambda message: message.get("received") == 60)
        assert counts["dropped"] >= 50
        wait_for(lambda: served.hub.stream(stream_id).session.ingest.clock_seconds == 29.5)  # the newest is not dropped


def test_sockets_that_lead_nowhere_are_refused_with_a_reason(served: Served) -> None:
    live = served.open("lavfi:testsrc2=size=64x48:rate=5,realtime")
    for stream_id, status, sentence in (("0" * 12, 404, "no open stream"), (live, 409, "takes no frames")):
        with pytest.raises(InvalidStatus) as refused:
            socket_to(served, stream_id)
        assert refused.value.response.status_code == status
        assert sentence in json.loads(refused.value.response.body)["error"]["message"]
    served.close_all()


def test_a_stream_that_is_closed_closes_its_socket(served: Served, stream_id: str) -> None:
    with socket_to(served, stream_id) as socket:
        socket.send(picture())
        told(socket, lambda message: message.get("received") == 1)
        served.http.delete(f"/v1/streams/{stream_id}")
        with pytest.raises(ConnectionClosed) as closed:
            told(socket, lambda message: False, 5)
        assert closed.value.rcvd.reason == "the stream has ended"


def test_a_server_that_stops_closes_its_sockets(served: Served, stream_id: str, stopping: Stopping) -> None:
    """The last test of this file: nothing follows a stop."""
    with socket_to(served, stream_id) as socket:
        socket.send(picture())
        told(socket, lambda message: message.get("received") == 1)
        stopping.set()
        with pytest.raises(ConnectionClosed) as closed:
            told(socket, lambda message: False, 5)
        assert closed.value.rcvd.code == 1012
    assert served.hub.stream(stream_id).state == "watching"
