"""Cameras against a real RTSP server that is killed, stalled and restarted, with every frame accounted for."""

from __future__ import annotations

import random
import threading
import time
import warnings
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path

import av
import pytest
from rtsp_server import BlackHole, RtspServer, free_port, require_gstreamer
from videos import constant_times, read_clock, write_video

from vstream.ingest import Ingest
from vstream.sources import open_source
from vstream.sources.base import KEPT_GAPS, Source
from vstream.sources.camera import MAX_WAIT_SECONDS, CameraSource, wait_seconds
from vstream.types import Frame, Gap

FRAME_SECONDS = 0.05
SYNTHETIC = "lavfi:testsrc2=size=320x240:rate=10,realtime"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A minute, and two seconds, of frames that show their own time."""
    require_gstreamer()
    folder = tmp_path_factory.mktemp("clips")
    long = write_video(folder / "long.mp4", constant_times(1200, 20), options={"bf": "0"})
    reordered = write_video(folder / "reordered.mp4", constant_times(200, 20), codec="libx265")
    return {"long": long, "short": write_video(folder / "short.mp4", constant_times(40, 20)), "reordered": reordered}


def wait_until(condition, what: str, seconds: float = 20.0) -> float:
    """Waits for a condition and returns how long that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"took too long: {what}"
        time.sleep(0.01)
    return time.monotonic() - began


class Watch:
    """A camera read by a real ingest thread, with a worker that takes clips and keeps what it was given."""

    def __init__(self, url: str, **options: str) -> None:
        self.camera = open_source(url, max_side=160, **options)
        self.ingest = Ingest(self.camera, fps=None, clip_frames=5, max_queue_frames=400)
        self.frames: list[Frame] = []
        self._worker = threading.Thread(target=self._work)
        self._over = threading.Event()

    def __enter__(self) -> Watch:
        self.ingest.start()
        self._worker.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ingest.stop()
        self._over.set()
        self._worker.join()
        self._take(flush=True)

    def _work(self) -> None:
        while not self._over.wait(0.02):
            self._take(flush=False)

    def _take(self, flush: bool) -> None:
        while clip := self.ingest.take_clip(flush=flush):
            assert {frame.epoch_seconds for frame in clip.frames} == {clip.epoch_seconds}
            self.frames += clip.frames
            self.ingest.commit(clip)
            assert self.ingest.counters().received >= len(self.frames)

    def watches_for(self, seconds: float) -> None:
        """Waits until the camera is watched again, and that long on."""
        wait_until(lambda: self.camera.state == "watching", f"{self.camera.state}, {self.camera.gaps}")
        time.sleep(seconds)

    def wait_for_break(self) -> float:
        return wait_until(lambda: self.camera.state != "watching", "the break was not noticed")

    def epochs(self) -> list[list[Frame]]:
        return [list(frames) for _, frames in groupby(self.frames, lambda frame: frame.epoch_seconds)]


def account(watch: Watch, breaks: int) -> None:
    """Every frame that the decoder gave is there once, in order, and every break is one gap between two epochs."""
    camera, counters, epochs = watch.camera, watch.ingest.counters(), watch.epochs()
    assert counters.decoded == counters.received == counters.encoded == len(watch.frames) == camera.decoded
    assert (counters.dropped, counters.queued, camera.errors) == (0, 0, 0)
    assert all(a.pts_seconds < b.pts_seconds for a, b in pairwise(watch.frames))
    assert len(epochs) == breaks + 1
    for frames in epochs:
        shown = [read_clock(frame.image) for frame in frames]
        assert shown[0] == 0, "the first that the server sent"
        assert shown == [pytest.approx(k * FRAME_SECONDS) for k in range(len(shown))], "none missing, none twice"
        since = [frame.pts_seconds - frames[0].pts_seconds for frame in frames]
        assert since == pytest.approx(shown, abs=FRAME_SECONDS / 2), "the first of a connection has no time of its own"
        steps = [b.pts_seconds - a.pts_seconds for a, b in pairwise(frames[1:])]
        assert steps == pytest.approx([FRAME_SECONDS] * len(steps), abs=1e-3)
    assert camera.num_gaps == breaks
    between = [(a[-1].pts_seconds, b[0].pts_seconds) for a, b in pairwise(epochs)]
    assert [(gap.start_seconds, gap.end_seconds) for gap in camera.gaps] == between


@pytest.mark.slow
def test_a_server_that_is_killed_and_started_again_costs_one_gap(clips):
    threads = set(threading.enumerate())
    with RtspServer(clips["long"]) as server, Watch(server.url()) as watch:
        watch.watches_for(1.5)
        server.kill()
        assert watch.wait_for_break() < 2
        wait_until(lambda: "connection refused (attempt 2)" in watch.camera.state, "another attempt")
        server.start()
        watch.watches_for(1.5)
    account(watch, breaks=1)
    assert [gap.reason for gap in watch.camera.gaps] == ["the camera ended the stream"]
    assert watch.camera.state == ""
    assert set(threading.enumerate()) == threads


@pytest.mark.slow
def test_a_stream_that_ends_is_watched_again_and_each_time_whole(clips):
    with RtspServer(clips["short"]) as server, Watch(server.url()) as watch:
        wait_until(lambda: watch.camera.num_gaps == 2, "two ends")
    account(watch, breaks=2)
    assert [len(frames) for frames in watch.epochs()[:2]] == [40, 40], "to the last frame"
    watch.frames[7] = replace(watch.frames[7], image=watch.frames[8].image)
    with pytest.raises(AssertionError, match="none missing, none twice"):
        account(watch, breaks=2)


@pytest.mark.slow
def test_ten_kills_stalls_and_restarts_lose_and_repeat_nothing(clips):
    rng = random.Random(0)
    noticed = []
    with RtspServer(clips["long"]) as server, Watch(server.url()) as watch:
        for how in ["kill", "stall", "kill", "restart", "stall", "kill", "stall", "restart", "kill", "kill", "restart"]:
            watch.watches_for(rng.uniform(0.5, 2.0))
            if how == "stall":
                server.stall()
                noticed.append(watch.wait_for_break())
                server.go_on()
            else:
                server.kill()
                watch.wait_for_break()
                time.sleep(1.0 if how == "restart" else 0.0)
                server.start()
        watch.watches_for(1.0)
    account(watch, breaks=11)
    assert max(noticed) <= 6, noticed
    reasons = [gap.reason for gap in watch.camera.gaps]
    assert reasons.count("stalled") == len(noticed) == 3
    print(f"stalls were noticed after {[round(seconds, 1) for seconds in noticed]} s, {len(watch.frames)} frames")


@pytest.mark.slow
def test_a_short_stall_is_no_break_and_no_loss(clips):
    with RtspServer(clips["long"]) as server, Watch(server.url()) as watch:
        watch.watches_for(0.5)
        server.stall()
        time.sleep(1.0)
        server.go_on()
        watch.watches_for(1.0)
    account(watch, breaks=0)


@pytest.mark.slow
def test_reordered_frames_come_in_order(clips):
    with RtspServer(clips["reordered"], codec="h265") as server, Watch(server.url()) as watch:
        watch.watches_for(1.5)
    account(watch, breaks=0)


@pytest.mark.slow
def test_udp_works(clips):
    with RtspServer(clips["long"]) as server, Watch(server.url(), transport="udp") as watch:
        watch.watches_for(1.5)
        server.kill()
        watch.wait_for_break()
        server.start()
        watch.watches_for(1.0)
    times = [frame.pts_seconds for frame in watch.frames]
    assert times == sorted(set(times))
    assert [len(frames) > 10 for frames in watch.epochs()] == [True, True]
    assert watch.ingest.counters().received == watch.camera.decoded


@pytest.mark.slow
def test_frames_carry_the_wall_clock_over_breaks_and_resumed_runs(clips):
    yesterday = time.time() - 86_400
    with RtspServer(clips["short"]) as server, open_source(server.url(), max_side=160) as camera:
        camera.resume_after(100.0, yesterday)
        errors, epochs = [], set()
        for frame in camera.frames(lambda pts_seconds: True):
            errors.append(frame.epoch_seconds + frame.pts_seconds - time.time())
            epochs.add(frame.epoch_seconds)
            if len(epochs) == 2 and len(errors) > 50:
                break
    assert max(map(abs, errors)) < 1
    before, ended = camera.gaps
    assert (before.start_seconds, before.reason) == (100.0, "not watching")
    assert before.end_seconds == pytest.approx(86_500, abs=10)
    assert ended.start_seconds == pytest.approx(before.end_seconds + 1.95, abs=0.01)


# Ending, whatever it does


def ends_after_interrupt(camera: Source, ready) -> float:
    """Reads in a thread until `ready`, interrupts, and returns the seconds until the thread has ended."""
    thread = threading.Thread(target=lambda: list(camera.frames(lambda pts_seconds: False)))
    thread.start()
    ready()
    began = time.monotonic()
    camera.interrupt()
    thread.join(20)
    assert not thread.is_alive()
    camera.close()
    camera.close()
    return time.monotonic() - began


def test_an_interrupt_ends_a_wait_at_once():
    camera = open_source(f"rtsp://127.0.0.1:{free_port()}/test", max_side=160)
    waiting = lambda: wait_until(lambda: "connection refused (attempt 2)" in camera.state, camera.state)  # noqa: E731
    assert ends_after_interrupt(camera, waiting) < 0.5


@pytest.mark.slow
def test_an_interrupt_ends_watching_a_stall_and_connecting_within_five_seconds(clips):
    with RtspServer(clips["long"]) as server:

        def watching() -> None:
            wait_until(lambda: camera.state == "watching", camera.state)

        def stalled() -> None:
            watching()
            server.stall()
            time.sleep(0.5)

        camera = open_source(server.url(), max_side=160)
        assert ends_after_interrupt(camera, watching) < 1
        camera = open_source(server.url(), max_side=160)
        assert ends_after_interrupt(camera, stalled) < 5
    with BlackHole() as port:
        camera = open_source(f"rtsp://127.0.0.1:{port}/test", max_side=160)
        assert ends_after_interrupt(camera, lambda: time.sleep(0.3)) < 5
        camera = open_source(f"rtsp://127.0.0.1:{port}/test", max_side=160)
        refused = lambda: wait_until(lambda: "no answer (attempt 1)" in camera.state, camera.state)  # noqa: E731
        assert ends_after_interrupt(camera, refused) < 0.5


# Credentials


def test_a_right_password_with_odd_characters_is_taken(clips):
    server = RtspServer(clips["long"], user="us er", password="p@:/%w")
    with server, Watch(server.url("us%20er:p%40%3A%2F%25w")) as watch:
        watch.watches_for(0.5)
    account(watch, breaks=0)


@pytest.mark.parametrize("server_is", ["there", "off"])
def test_a_wrong_password_is_told_but_never_shown(server_is, clips, capfd, caplog, monkeypatch):
    caplog.set_level(0)
    av.logging.set_level(av.logging.DEBUG)
    with (
        RtspServer(clips["long"], user="watcher", password="right") as server,
        warnings.catch_warnings(record=True) as w,
    ):
        if server_is == "off":
            server.kill()
        camera = open_source(server.url("Iwatch:S3cr%40t:W%2Frd", "token=T0ken"), max_side=160)
        thread = threading.Thread(target=lambda: list(camera.frames(lambda pts_seconds: True)))
        thread.start()
        reason = "not authorised" if server_is == "there" else "connection refused"
        wait_until(lambda: reason in camera.state, camera.state)
        shown = [repr(camera), camera.state, camera.warning, repr(camera.gaps), repr(vars(camera))]
        shown += [f"{value!r} {value!s}" for value in vars(camera).values()]
        camera.interrupt()
        thread.join()
    av.logging.set_level(None)
    assert camera.name == f"rtsp://127.0.0.1:{server.port}/test"
    said = "".join(map(str, [*shown, *capfd.readouterr(), caplog.text, *w]))
    assert "rtsp://" in said
    for secret in ("Iwatch", "S3cr", "W%2F", "W/rd", "T0ken"):
        assert secret not in said
    if server_is == "there":
        seconds = float(shown[1].split()[1])
        assert seconds >= MAX_WAIT_SECONDS / 2, "slowly: cameras lock out those who guess"


# Without a server


@pytest.mark.slow
def test_a_synthetic_camera_is_watched_in_its_own_time():
    with open_source(SYNTHETIC, max_side=160) as camera:
        assert (camera.is_live, camera.state, camera.decoded) == (True, "", 0)
        frames, began = [], time.monotonic()
        for frame in camera.frames(lambda pts_seconds: True):
            frames.append(frame)
            if len(frames) == 15:
                break
    assert 1.0 < time.monotonic() - began < 5
    assert [frame.pts_seconds for frame in frames] == pytest.approx([k / 10 for k in range(15)], abs=1e-6)
    assert frames[0].image.shape == (120, 160, 3)
    assert (camera.decoded, camera.errors, camera.warning, camera.num_gaps) == (15, 0, None, 0)


def test_only_wanted_frames_are_converted(monkeypatch):
    with open_source(SYNTHETIC, max_side=160) as camera:
        converted = []
        image = camera._image
        monkeypatch.setattr(camera, "_image", lambda *args: converted.append(1) or image(*args))
        for frame in camera.frames(lambda pts_seconds: pts_seconds >= 0.45):
            assert frame.pts_seconds == pytest.approx(0.5)
            break
    assert (len(converted), camera.decoded) == (1, 6)


@pytest.mark.slow
def test_a_camera_that_gives_packets_but_no_pictures_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr("vstream.sources.camera.PICTURELESS_SECONDS", 0.5)
    camera = open_source(SYNTHETIC, max_side=160)
    monkeypatch.setattr(camera, "_decode_packet", lambda stream, packet: [])
    given_up = lambda: wait_until(lambda: "packets, but no pictures (attempt 2)" in camera.state, camera.state)  # noqa: E731
    assert ends_after_interrupt(camera, given_up) < 0.5
    assert camera.decoded == 0


def test_waits_double_from_half_a_second_to_half_a_minute():
    rng = random.Random(0)
    waits = [[wait_seconds(failures, rng) for _ in range(200)] for failures in [*range(1, 12), 10**9]]
    assert all(0.5 <= seconds <= 30 for many in waits for seconds in many)
    assert max(waits[0]) <= 1
    assert min(waits[6]) >= 15
    assert all(max(many) > 1.3 * min(many) for many in waits), "spread by chance"
    assert [wait_seconds(3, random.Random(7)) for _ in range(2)] == [wait_seconds(3, random.Random(7))] * 2


def test_gaps_are_bounded_for_ever():
    camera = open_source(SYNTHETIC, max_side=160)
    for k in range(KEPT_GAPS + 50):
        camera._add_gap(Gap(k, k + 0.5, "stalled"))
    assert camera.num_gaps == KEPT_GAPS + 50
    assert camera.gaps == tuple(Gap(k, k + 0.5, "stalled") for k in range(50, KEPT_GAPS + 50))


def test_a_camera_does_not_connect_before_it_is_read():
    with BlackHole() as port:
        began = time.monotonic()
        camera = open_source(f"rtsp://127.0.0.1:{port}/test", max_side=160)
        assert isinstance(camera, CameraSource)
        camera.close()
        assert time.monotonic() - began < 0.5
