"""A camera's clock by hand, and how cameras are named: no camera is needed."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vstream.sources import CameraSource, open_source
from vstream.sources.camera_address import _webcam, camera_address
from vstream.sources.camera_clock import STEP_SECONDS, CameraClock


class Bench:
    """A clock whose monotonic and wall-clock time are set by hand; the wall clock is 1,000,000 s ahead."""

    def __init__(self) -> None:
        self.now = 50.0
        self.wall_offset = 1e6
        self.clock = CameraClock(monotonic=lambda: self.now, wall=lambda: self.now + self.wall_offset)

    def frame(self, now: float, camera_seconds: float | None) -> float:
        self.now = now
        return self.clock.seconds(camera_seconds)

    def reconnect(self, interval_seconds: float = 0.1) -> None:
        self.clock.reconnect(interval_seconds)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_time_is_the_camera_s_within_a_connection_and_ours_between(bench):
    bench.reconnect()
    assert [bench.frame(50 + late, 7 + k) for k, late in enumerate([0, 1.3, 2.1, 3.0])] == [0, 1, 2, 3]
    assert bench.clock.epoch_seconds == pytest.approx(1e6 + 50)
    bench.reconnect()
    bench.wall_offset += 3600  # the clock on the wall was put right meanwhile
    assert [bench.frame(now, camera) for now, camera in [(70.0, 0.5), (71.0, 1.5)]] == [20.0, 21.0]
    assert bench.clock.epoch_seconds == pytest.approx(1e6 + 3650)


@pytest.mark.parametrize("jumped", [-100.0, 10.0, 13.0, 1e6, -1e300])
def test_a_camera_clock_that_jumps_begins_an_epoch_at_our_time(bench, jumped):
    bench.reconnect()
    assert [bench.frame(50, 10.0), bench.frame(50.1, 10.1)] == pytest.approx([0, 0.1])
    before = bench.clock.epoch_seconds
    bench.wall_offset += 5
    times = [bench.frame(50.2 + k / 10, 10.1 + jumped + k / 10) for k in range(3)]
    if jumped != -1e300:
        assert times == pytest.approx([0.2, 0.3, 0.4])
    assert bench.clock.epoch_seconds == pytest.approx(before + 5)


def test_late_frames_keep_their_times_but_a_slow_clock_is_set_right(bench):
    bench.reconnect()
    bench.frame(50, 0.0)
    assert [bench.frame(58 + k / 100, 1.0 + k) for k in range(8)] == [1.0 + k for k in range(8)], (
        "eight seconds at once"
    )
    bench.wall_offset += 5  # not looked at before the next epoch
    times = [bench.frame(60 + k, 10 + k * 0.9) for k in range(60)]
    assert bench.clock.epoch_seconds == pytest.approx(1e6 + 55)
    assert all(a < b for a, b in pairwise(times))
    assert all(times[k] == pytest.approx(10 + k, abs=3.2) for k in range(60))


def test_two_epochs_in_a_row_differ_in_their_wall_clock(bench):
    epochs = []
    for k in range(5):
        bench.reconnect()
        bench.frame(50.0 + k, 0.0)
        epochs.append(bench.clock.epoch_seconds)
    assert all(a != b for a, b in pairwise(epochs))
    assert epochs == pytest.approx([1e6 + 50] * 5, abs=1e-6)


def test_a_fast_clock_is_set_right(bench):
    bench.reconnect()
    epochs = set()
    for k in range(1000):
        seconds = bench.frame(50 + k, k * 1.01)
        epochs.add(bench.clock.epoch_seconds)
        assert bench.clock.epoch_seconds + seconds == pytest.approx(1e6 + bench.now, abs=2.01)
    assert 3 < len(epochs) < 8


def test_a_burst_of_old_frames_at_the_start_costs_few_epochs(bench):
    bench.reconnect()
    epochs = set()
    times = []
    for k in range(200):  # eight seconds that the server had kept
        times.append(bench.frame(50 + k / 1000, k / 25))
        epochs.add(bench.clock.epoch_seconds)
    assert all(a < b for a, b in pairwise(times))
    assert len(epochs) <= 5


def test_frames_without_a_time_follow_at_the_usual_distance(bench):
    bench.reconnect(0.25)
    times = [bench.frame(50, None), bench.frame(50, 9.0), bench.frame(50.2, 9.25), bench.frame(50.5, None)]
    assert times == [0, 0.25, 0.5, 0.75]
    assert bench.frame(50.9, 10.0) == 1.25
    assert bench.clock.epoch_seconds == pytest.approx(1e6 + 50)


def test_a_resumed_clock_goes_on_by_the_wall(bench):
    bench.clock.resume_after(300.0, 1e6 + 50 - 1000)
    bench.reconnect()
    assert [bench.frame(50, 4.0), bench.frame(51, 5.0)] == [1300, 1301]


@pytest.mark.parametrize("wall_seconds", [None, 1e6 + 50, 2e6])
def test_without_wall_clock_time_passed_a_resumed_clock_goes_on_at_once(bench, wall_seconds):
    bench.clock.resume_after(300.0, wall_seconds)
    bench.reconnect()
    assert bench.frame(50, 4.0) == 300 + STEP_SECONDS


def test_a_time_to_resume_after_is_finite():
    camera = open_source("lavfi:testsrc2,realtime", max_side=160)
    for seconds, wall_seconds in [(float("nan"), None), (1.0, float("inf")), (float("inf"), 0.0)]:
        with pytest.raises(ValueError, match="resumes after finite times"):
            camera.resume_after(seconds, wall_seconds)


moments = st.tuples(st.floats(0, 20), st.none() | st.floats(-1e6, 1e6), st.booleans())


@given(st.lists(moments, max_size=60))
def test_times_rise_whatever_the_camera_says(steps):
    bench, latest = Bench(), -1.0
    bench.reconnect()
    for step, camera_seconds, reconnects in steps:
        if reconnects:
            bench.reconnect()
        seconds = bench.frame(bench.now + step, camera_seconds)
        assert seconds > latest
        assert seconds - (bench.now - 50) < 2 + 61 * 2.1, "never far ahead of us"
        latest = seconds


# Addresses


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("rtsp://cam", "rtsp://cam"),
        ("RTSP://cam:8554/a/b%20c", "rtsp://cam:8554/a/b%20c"),
        ("rtsps://user:S3cret@10.0.0.7/a", "rtsps://10.0.0.7/a"),
        ("rtsp://S3cret@cam/a", "rtsp://cam/a"),
        ("rtsp://us@er:S3c:re@t@cam:554/a?key=S3cret#S3cret", "rtsp://cam:554/a"),
        ("rtsp://user:S3cret%40%2f@[::1]:554?S3cret", "rtsp://[::1]:554"),
    ],
)
def test_a_network_camera_is_named_without_its_secrets(text, name):
    camera = open_source(text, max_side=160)
    assert isinstance(camera, CameraSource)
    assert (camera.name, camera.is_live, camera.state) == (name, True, "")
    shown = repr(vars(camera)) + repr(camera) + str(camera._address)
    assert "S3c" not in shown
    assert "t@" not in shown


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("rtsp://", r"is not rtsp://\[user:password@\]host"),
        ("rtsp:///S3cret", "is not rtsp://"),
        ("rtsp://u:S3cret@/a", "is not rtsp://"),
        ("rtsp://u:S3cret@cam:0/a", "port from 1 to 65535"),
        ("rtsp://u:S3cret@cam:65536/a", "port from 1 to 65535"),
        ("rtsp://u:S3cret@cam:S3cret/a", "port from 1 to 65535"),
        ("rtsp://u:S3c/ret@cam/a", "write @ / [?] # in a password or path as %40 %2F %3F %23"),
        ("rtsp://u:12/S3cret@cam/a", "write @ / [?] #"),
        ("rtsp://u:12?S3cret@cam/a", "write @ / [?] #"),
        ("rtsp://u:12#S3cret@cam/a", "write @ / [?] #"),
        ("rtsp://[::1/S3cret", "is not rtsp://"),
        ("rtsp://u:S3cret@cam/a\r\nX: y", "holds spaces or control characters"),
        ("rtsp://u:S3 cret@cam/a", "holds spaces or control characters"),
        ("rtsp://u:S3cret\x00@cam/a", "holds spaces or control characters"),
        ("webcam:", "needs a number, a name or a device path"),
        ("webcam:front", "a webcam is a number or a device path, .*got 'front'"),
        ("lavfi:testsrc2", "a filter graph with 'realtime' in it.* got 'testsrc2'"),
    ],
)
def test_a_malformed_camera_is_refused_in_one_sentence_without_its_secrets(text, why):
    with pytest.raises(ValueError, match=why) as refused:
        open_source(text, max_side=160)
    assert "S3c" not in str(refused.value)
    assert "\n" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_webcams_are_devices_of_their_platform():
    assert [(a.url, a.format) for a in map(camera_address, ["webcam:2", "/dev/video1", "/dev/v4l/by-id/usb"])] == [
        ("/dev/video2", "v4l2"),
        ("/dev/video1", "v4l2"),
        ("/dev/v4l/by-id/usb", "v4l2"),
    ]
    mac, windows = _webcam("0", "darwin"), _webcam("Front camera", "win32")
    assert (mac.url, mac.format, windows.url, windows.format) == ("0", "avfoundation", "video=Front camera", "dshow")
    with pytest.raises(ValueError, match=r"on Windows a webcam has a name: give webcam:NAME, got webcam:0"):
        _webcam("0", "win32")


def test_what_is_no_camera_is_left_to_others():
    assert camera_address("film.mp4") is None
    assert camera_address("./rtsp:/x.mp4") is None
    with pytest.raises(ValueError, match="transport must be 'tcp' or 'udp', got 'ftp'"):
        open_source("rtsp://cam/a", max_side=160, transport="ftp")
    with pytest.raises(ValueError, match="max_side must be at least 1 pixel, got 0"):
        open_source("rtsp://cam/a", max_side=0)
