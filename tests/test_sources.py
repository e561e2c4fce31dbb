"""Sources against real videos whose frames show their own time."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import PictureType
from PIL import Image
from videos import (
    constant_times,
    cut_bytes,
    draw_clock,
    read_clock,
    variable_times,
    write_audio,
    write_images,
    write_video,
)

from vstream.sources import CameraSource, DecordSource, DirectorySource, FileSource, PushSource, Source, open_source
from vstream.sources.base import fit_image, fitted_size
from vstream.sources.file import StreamClock
from vstream.types import Frame

FORMATS = {
    "h264-mp4": ("libx264", ".mp4"),
    "h264-mkv": ("libx264", ".mkv"),
    "h264-ts": ("libx264", ".ts"),
    "hevc-mp4": ("libx265", ".mp4"),
    "hevc-ts": ("libx265", ".ts"),
    "vp9-webm": ("libvpx-vp9", ".webm"),
    "av1-mp4": ("libsvtav1", ".mp4"),
    "av1-mkv": ("libsvtav1", ".mkv"),
    "mpeg4-avi": ("mpeg4", ".avi"),
}
DECORD_REFUSES = {"av1-mp4", "av1-mkv", "h264-ts", "hevc-ts"}
READERS = ["av", "decord"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def videos(folder: Path) -> dict[str, tuple[Path, list[float]]]:
    """One video with variable frame rate per format (AVI has none), and its frame times."""
    made = {}
    for name, (codec, suffix) in FORMATS.items():
        times = constant_times(40, 25) if suffix == ".avi" else variable_times(40, seed=len(made))
        made[name] = (write_video(folder / f"{name}{suffix}", times, codec=codec), times)
    return made


def open_with(reader: str, path: Path, max_side: int = 640) -> Source:
    if reader == "decord":
        pytest.importorskip("decord")
    return open_source(path, max_side=max_side, reader=reader)


def all_frames(source: Source) -> list[Frame]:
    with source:
        return list(source.frames(lambda pts_seconds: True))


def clock_errors(frames: list[Frame]) -> list[float]:
    """How much later each frame claims to be than its picture shows."""
    return [frame.pts_seconds - read_clock(frame.image) for frame in frames]


# Files


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", FORMATS)
def test_every_frame_comes_once_at_the_time_it_shows(name, reader, videos):
    path, times = videos[name]
    if reader == "decord" and name in DECORD_REFUSES:
        pytest.importorskip("decord")
        with pytest.raises(ValueError, match=rf"{path.name} cannot be read by decord"):
            open_source(path, max_side=640, reader="decord")
        return
    source = open_with(reader, path)
    frames = all_frames(source)
    assert [frame.pts_seconds for frame in frames] == pytest.approx(times, abs=1e-3)
    assert clock_errors(frames) == pytest.approx([0] * len(times), abs=1e-3)
    assert (source.decoded, source.errors, source.warning) == (len(times), 0, None)
    assert source.duration_seconds == pytest.approx(times[-1], abs=0.5)
    assert (source.name, source.is_live, source.epoch_seconds) == (path.name, False, None)
    assert {frame.epoch_seconds for frame in frames} == {None}
    assert (source.state, source.gaps, source.num_gaps) == ("", (), 0)


def test_the_videos_are_as_hard_as_they_claim(videos):
    """Negative control: B-frames are there, and index / fps would be wrong by far."""
    for name in ("h264-mp4", "hevc-mp4", "h264-ts"):
        path, times = videos[name]
        with av.open(str(path)) as container:
            kinds = [PictureType(frame.pict_type).name for frame in container.decode(video=0)]
        assert "B" in kinds
        by_index = np.arange(len(times)) * times[-1] / (len(times) - 1)
        assert np.abs(by_index - times).max() > 0.2
    noise = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    for wrong in (draw_clock(1.5)[::-1], np.rot90(draw_clock(1.5), 2), np.full((120, 160, 3), 30, np.uint8), noise):
        with pytest.raises(ValueError, match="no valid clock"):
            read_clock(np.ascontiguousarray(wrong))


@pytest.mark.parametrize("reader", READERS)
def test_only_wanted_frames_are_converted_but_all_are_counted(reader, videos, monkeypatch):
    path, times = videos["h264-mp4"]
    source = open_with(reader, path)
    converted = []
    image = source._image
    monkeypatch.setattr(source, "_image", lambda *args: converted.append(1) or image(*args))
    asked = []
    with source:
        frames = list(source.frames(lambda pts_seconds: asked.append(pts_seconds) or len(asked) % 7 == 3))
    assert asked == pytest.approx(times, abs=1e-3)
    assert [read_clock(frame.image) for frame in frames] == times[2::7]
    assert len(converted) == len(frames)
    assert source.decoded == len(times)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_rotated_files_come_upright(rotation, reader, folder):
    path = write_video(folder / f"turned{rotation}.mp4", constant_times(6), rotation=rotation)
    frames = all_frames(open_with(reader, path))
    assert frames[0].image.shape == ((120, 160, 3) if rotation % 180 == 0 else (160, 120, 3))
    assert clock_errors(frames) == pytest.approx([0] * 6, abs=1e-3)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("max_side", "shape"), [(80, (60, 80, 3)), (160, (120, 160, 3)), (4000, (120, 160, 3))])
def test_frames_are_shrunk_to_max_side_but_never_enlarged(max_side, shape, reader, videos):
    frames = all_frames(open_with(reader, videos["h264-mp4"][0], max_side))
    assert {frame.image.shape for frame in frames} == {shape}
    assert clock_errors(frames) == pytest.approx([0] * len(frames), abs=1e-3)


@pytest.mark.parametrize("reader", READERS)
def test_colours_are_red_green_blue(reader, folder):
    colours = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200]], np.uint8)
    bars = np.repeat(np.repeat(colours[None], 120, axis=0), 64, axis=1)
    path = write_video(folder / "bars.mp4", [0.0, 0.1], size=(192, 120), draw=lambda seconds: bars)
    image = all_frames(open_with(reader, path))[1].image.astype(int)
    assert np.abs(image[60, [32, 96, 160]] - colours).max() < 16


def test_a_shrunk_size_keeps_the_aspect():
    assert fitted_size(1920, 1080, 640) == (640, 360)
    assert fitted_size(1080, 1920, 640) == (360, 640)
    assert fitted_size(10, 10_000, 100) == (1, 100)
    assert fit_image(np.zeros((40, 20, 3), np.uint8), 10).shape == (10, 5, 3)


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_a_transport_stream_cut_in_the_middle_starts_at_its_first_whole_picture(codec, folder):
    whole = write_video(folder / f"{codec}-whole.ts", variable_times(80), codec=codec)
    for start, align in [(0.1, 188), (0.3, 188), (0.3, 1)]:
        source = open_source(cut_bytes(whole, folder / f"{codec}-cut.ts", start=start, align=align), max_side=640)
        frames = all_frames(source)
        late = clock_errors(frames)
        assert 20 < len(frames) < 80
        assert late == pytest.approx([late[0]] * len(late), abs=2e-3), "all frames are late by the same"
        assert read_clock(frames[-1].image) == variable_times(80)[-1]
        assert 0 <= frames[0].pts_seconds < 10


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("end", [0.6, 0.7, 0.8])
@pytest.mark.parametrize("kind", ["fragmented.mp4", "truncated.ts", "truncated.mkv"])
def test_truncated_files_give_every_readable_frame_and_then_end(kind, end, codec, folder):
    times = variable_times(80)
    options = {"movflags": "frag_keyframe+empty_moov"} if kind.endswith("mp4") else {}
    whole = write_video(folder / f"{codec}-{kind}", times, codec=codec, container_options=options)
    cut = cut_bytes(whole, folder / f"{codec}-cut-{kind}", end=end)
    frames = all_frames(open_source(cut, max_side=640))
    assert 80 * (end - 0.15) < len(frames) < 80
    whole_frames = frames[:-1]  # the very last may be damaged
    assert clock_errors(whole_frames) == pytest.approx([0] * len(whole_frames), abs=1e-3)
    settled = len(frames) - 4  # before it every frame is there; the last B-frames may lie behind the cut
    assert [read_clock(frame.image) for frame in frames[:settled]] == times[:settled]


@pytest.mark.parametrize("kind", ["fragmented.mp4", "truncated.ts"])
def test_decord_refuses_truncated_files_in_one_sentence(kind, folder):
    pytest.importorskip("decord")
    options = {"movflags": "frag_keyframe+empty_moov"} if kind.endswith("mp4") else {}
    whole = write_video(folder / kind, variable_times(80), container_options=options)
    cut = cut_bytes(whole, folder / f"decord-cut-{kind}", end=0.7)
    with pytest.raises(ValueError, match=rf"{cut.name} cannot be read by decord.*; use reader='av'$"):
        open_source(cut, max_side=640, reader="decord")


def test_a_file_that_breaks_off_in_a_fragment_header_still_opens(folder):
    times = variable_times(80)
    whole = write_video(folder / "parts.mp4", times, container_options={"movflags": "frag_keyframe+empty_moov"})
    data = whole.read_bytes()
    cut, refused = folder / "cut-header.mp4", 0
    for length in range(40, 300, 20):
        cut.write_bytes(data[: data.rindex(b"moof") + length])
        try:
            av.open(str(cut)).close()
        except av.FFmpegError:
            refused += 1
        frames = all_frames(open_source(cut, max_side=640))
        assert len(frames) >= 55
        assert clock_errors(frames) == pytest.approx([0] * len(frames), abs=1e-3)
    assert refused > 0, "the plain way fails for some"


def test_damage_in_the_middle_is_counted_and_told(folder):
    times = constant_times(80)
    path = write_video(folder / "damaged.mp4", times)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = bytes(400)
    path.write_bytes(bytes(data))
    source = open_source(path, max_side=640)
    frames = all_frames(source)
    assert source.errors > 0
    assert source.warning == f"damaged.mp4: {source.errors} damaged part{'s' * (source.errors > 1)} left out."
    assert read_clock(frames[0].image) == 0
    assert read_clock(frames[-1].image) == times[-1], "after the damage it goes on"
    assert len(frames) < source.decoded + source.errors


def test_frames_without_pts_come_one_average_interval_apart(folder):
    times = constant_times(40, 25)
    path = write_video(folder / "raw.h264", times)
    with av.open(str(path)) as container:
        assert {frame.pts for frame in container.decode(video=0)} == {None}
    frames = all_frames(open_source(path, max_side=640))
    assert len(frames) == 40
    assert clock_errors(frames) == pytest.approx([0] * 40, abs=1e-3)


def test_joined_recordings_go_on_after_the_clock_began_anew(folder):
    times = constant_times(40)
    part = write_video(folder / "part.ts", times)
    joined = folder / "joined.ts"
    joined.write_bytes(part.read_bytes() * 2)
    source = open_source(joined, max_side=640)
    frames = all_frames(source)
    assert [read_clock(frame.image) for frame in frames] == times * 2
    late = clock_errors(frames)
    assert late[:40] == pytest.approx([0] * 40, abs=2e-3)
    assert late[40:] == pytest.approx([late[40]] * 40, abs=2e-3)
    assert late[40] > times[-1]
    assert "clock began anew (1 x)" in source.warning


def test_the_stream_clock_by_hand():
    from fractions import Fraction

    clock = StreamClock(start_pts=None, time_base=Fraction(1, 10), interval_seconds=0.5)
    assert [clock.seconds(pts) for pts in (100, 105, 103, None, 130)] == [0.0, 0.5, 0.3, 0.8, 3.0]
    assert clock.jumps == 0
    assert [clock.seconds(pts) for pts in (100, 110)] == [3.5, 4.5]
    assert clock.jumps == 1


def test_frames_whose_time_does_not_rise_are_counted_but_not_offered():
    class Jumbled(Source):
        def _pictures(self):
            yield from [(-0.5, 0), (0.0, 1), (0.4, 2), (0.4, 3), (0.2, 4), (0.5, 5)]

        def _image(self, picture, max_side):
            return np.full((2, 2, 3), picture, np.uint8)

    source = Jumbled("jumbled", max_side=10)
    asked = []
    frames = list(source.frames(lambda pts_seconds: asked.append(pts_seconds) or True))
    assert asked == [0.0, 0.4, 0.5]
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [1, 2, 5]
    assert source.decoded == 6


def test_an_audio_track_does_not_disturb(folder):
    path = write_video(folder / "sound.mp4", constant_times(20), with_audio=True)
    assert clock_errors(all_frames(open_source(path, max_side=640))) == pytest.approx([0] * 20, abs=1e-3)


def test_what_is_no_video_is_refused_in_one_sentence(folder):
    (folder / "zero.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("this is no video\n" * 50)
    (folder / "text.txt").write_text("this is no video\n" * 50)
    whole = write_video(folder / "whole.mp4", constant_times(20))
    cut_bytes(whole, folder / "no-index.mp4", end=0.6)
    write_audio(folder / "sound.m4a")
    write_audio(folder / "cover.mp3", cover=True)
    for name, why in {
        "zero.mp4": r"is empty \(0 bytes\)",
        "text.mp4": "cannot be read as a video",
        "text.txt": "holds no video, only text",
        "no-index.mp4": "cannot be read as a video",
        "sound.m4a": "holds no video, only audio",
        "cover.mp3": "holds no video, only audio and cover art",
    }.items():
        for reader in READERS:
            with pytest.raises(ValueError, match=rf"{name} {why}") as caught:
                open_source(folder / name, max_side=640, reader=reader)
            assert "\n" not in str(caught.value)


def test_a_video_without_one_decodable_frame_is_refused_when_opened(folder):
    path = write_video(folder / "undecodable.mp4", constant_times(20), container_options={"movflags": "faststart"})
    data = path.read_bytes()
    start = data.index(b"mdat") + 4
    path.write_bytes(data[:start] + bytes(len(data) - start))
    with pytest.raises(ValueError, match=r"undecodable.mp4 is damaged: not one frame"):
        open_source(path, max_side=640)


def test_a_missing_file_and_a_folder_given_as_a_file_are_named(tmp_path):
    for reader in READERS:
        with pytest.raises(FileNotFoundError, match=r"there is no file .*nothing\.mp4"):
            open_source(tmp_path / "nothing.mp4", max_side=640, reader=reader)
    with pytest.raises(ValueError, match="is not a regular file"):
        FileSource(tmp_path, max_side=640)


def test_odd_file_names_are_no_urls_or_patterns(folder, videos):
    for name in ("rtsp:x.mp4", "100%d.mp4", "a b?#ü.mp4", "-i.mp4"):
        path = folder / name
        path.write_bytes(videos["h264-mp4"][0].read_bytes())
        assert len(all_frames(open_source(path, max_side=64))) == 40


@pytest.mark.parametrize("url", ["http://user:secret@host/a.mp4", "RTMP://user:secret@host/1", "file:///tmp/a.mp4"])
def test_other_urls_are_refused_without_showing_credentials(url):
    with pytest.raises(ValueError, match=rf"^{url.split(':')[0]}:// is not supported: give a file, a fol") as caught:
        open_source(url, max_side=640)
    assert "secret" not in str(caught.value)


def test_open_source_chooses(tmp_path, videos):
    push = PushSource()
    assert open_source(push, max_side=10) is push
    write_images(tmp_path, [("a.png", draw_clock(0))])
    with open_source(str(tmp_path), max_side=640) as source:
        assert isinstance(source, DirectorySource)
    with open_source(videos["h264-mp4"][0], max_side=640) as source:
        assert isinstance(source, FileSource)
    with open_with("decord", videos["h264-mp4"][0]) as source:
        assert isinstance(source, DecordSource)
    for camera in ("rtsp://host/stream", "webcam:0", "/dev/video0", "lavfi:testsrc2,realtime"):
        with open_source(camera, max_side=640) as source:
            assert isinstance(source, CameraSource)
    with pytest.raises(ValueError, match="reader must be one of av, decord, got 'opencv'"):
        open_source(videos["h264-mp4"][0], max_side=640, reader="opencv")
    with pytest.raises(ValueError, match="max_side must be at least 1 pixel, got 0"):
        open_source(videos["h264-mp4"][0], max_side=0)


def test_a_missing_decord_is_named(videos, monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(ValueError, match=r"pip install 'vstream\[decord\]'"):
        open_source(videos["h264-mp4"][0], max_side=640, reader="decord")


@pytest.mark.parametrize("reader", READERS)
def test_interrupt_ends_the_frames(reader, videos):
    source = open_with(reader, videos["h264-mp4"][0])
    frames = source.frames(lambda pts_seconds: True)
    assert next(frames).pts_seconds == 0
    source.interrupt()
    assert list(frames) == []
    source.close()
    source.close()


def test_a_source_is_read_once(videos):
    with open_source(videos["h264-mp4"][0], max_side=64) as source:
        source.frames(lambda pts_seconds: True)
        with pytest.raises(AssertionError, match="read once"):
            source.frames(lambda pts_seconds: True)


# Folders of pictures


def test_a_folder_gives_its_pictures_in_natural_order_at_index_over_fps(tmp_path):
    names = ["frame10.png", "frame2.PNG", "Frame1.png", "frame3.bmp", "frame4.webp", "frame5.jpg", "frame6.jpeg"]
    order = ["Frame1.png", "frame2.PNG", "frame3.bmp", "frame4.webp", "frame5.jpg", "frame6.jpeg", "frame10.png"]
    sizes = {name: (160 + 8 * k, 120) for k, name in enumerate(names)}
    write_images(tmp_path, [(name, draw_clock(order.index(name) / 2, sizes[name])) for name in names])
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "frame0.png").mkdir()
    source = open_source(tmp_path, max_side=640, directory_fps=2.0)
    assert (source.name, source.is_live, source.duration_seconds) == (tmp_path.name, False, 3.5)
    frames = all_frames(source)
    assert [frame.pts_seconds for frame in frames] == [0, 0.5, 1, 1.5, 2, 2.5, 3]
    assert clock_errors(frames) == [0] * 7
    assert [frame.image.shape[1] for frame in frames] == [sizes[name][0] for name in order]
    assert (source.decoded, source.errors, source.warning) == (7, 0, None)


def test_pictures_are_turned_by_exif_and_shrunk(tmp_path):
    stored = np.ascontiguousarray(np.rot90(draw_clock(7.25, (300, 400))))  # orientation 6: turn clockwise to see it
    write_images(tmp_path, [("a.jpg", stored)], exif_orientation=6)
    (frame,) = all_frames(open_source(tmp_path, max_side=100))
    assert frame.image.shape == (100, 75, 3)
    assert read_clock(frame.image) == 7.25


def test_grey_and_transparent_pictures_become_rgb(tmp_path):
    Image.new("L", (8, 6), 90).save(tmp_path / "a.png")
    Image.new("RGBA", (8, 6), (10, 20, 30, 255)).save(tmp_path / "b.png")
    Image.new("P", (8, 6)).save(tmp_path / "c.png")
    grey, clear, _ = all_frames(open_source(tmp_path, max_side=640))
    assert grey.image[0, 0].tolist() == [90, 90, 90]
    assert clear.image[0, 0].tolist() == [10, 20, 30]


def test_grey_of_16_bits_keeps_its_shades(tmp_path):
    shades = np.array([[0, 255, 256, 90 * 257, 65535]] * 2, dtype=np.uint16)
    Image.fromarray(shades).save(tmp_path / "a.png")
    (frame,) = all_frames(open_source(tmp_path, max_side=640))
    assert frame.image[0, :, 0].tolist() == [0, 0, 1, 90, 255]


def test_an_unreadable_picture_is_left_out_counted_and_named(tmp_path):
    write_images(tmp_path, [(f"{k}.png", draw_clock(float(k))) for k in range(4)])
    (tmp_path / "1.png").write_bytes(b"not a picture")
    cut_bytes(tmp_path / "2.png", tmp_path / "2.png", end=0.5)
    source = open_source(tmp_path, max_side=640)
    frames = all_frames(source)
    assert [frame.pts_seconds for frame in frames] == [0, 3], "the times of the others stay"
    assert clock_errors(frames) == [0, 0]
    assert (source.decoded, source.errors) == (2, 2)
    assert source.warning == f"{tmp_path.name}: 1.png and 1 more left out, as unreadable."


def test_a_folder_without_readable_pictures_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no pictures \(\.bmp, \.jpeg"):
        open_source(tmp_path, max_side=640)
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="none of the 1 pictures in the folder"):
        open_source(tmp_path, max_side=640)
    for fps in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"directory_fps must be a finite number above 0, got {fps}"):
            open_source(tmp_path, max_side=640, directory_fps=fps)


# Pushed frames


def picture(value: int) -> np.ndarray:
    return np.full((4, 6, 3), value, np.uint8)


def in_thread(work) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_pushed_frames_come_in_order_and_then_the_end():
    source = PushSource("program", capacity=2)

    def push_all():
        reused = picture(0)
        for k in range(20):
            reused[:] = k
            source.push(reused, k / 4)
        source.end()

    thread = in_thread(push_all)
    frames = list(source.frames(lambda pts_seconds: pts_seconds != 1.0))
    thread.join()
    assert [frame.pts_seconds for frame in frames] == [k / 4 for k in range(20) if k != 4]
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [k for k in range(20) if k != 4], (
        "pushed pixels are copied"
    )
    assert (source.is_live, source.decoded, source.name) == (True, 20, "program")


def test_pushed_times_are_the_time_since_the_first_push():
    source = PushSource(capacity=3)
    assert source.epoch_seconds is None
    before = time.time()
    source.push(picture(0))
    time.sleep(0.05)
    source.push(picture(1))
    source.end()
    frames = list(source.frames(lambda pts_seconds: True))
    times = [frame.pts_seconds for frame in frames]
    assert {frame.epoch_seconds for frame in frames} == {source.epoch_seconds}
    assert times[0] == 0
    assert 0.05 <= times[1] < 2
    assert before <= source.epoch_seconds <= time.time()


def test_wrong_pushes_are_refused_and_change_nothing():
    source = PushSource(capacity=9)
    source.push(picture(0), 2.0)
    with pytest.raises(ValueError, match=r"frame times must rise: 2\.0 s was pushed after 2\.0 s"):
        source.push(picture(1), 2.0)
    with pytest.raises(ValueError, match=r"frame times must rise: 1\.5 s was pushed after 2\.0 s"):
        source.push(picture(1), 1.5)
    with pytest.raises(ValueError, match="finite number >= 0, got nan"):
        source.push(picture(1), float("nan"))
    with pytest.raises(ValueError, match=r"got \[4, 6\] uint8"):
        source.push(picture(1)[:, :, 0], 3.0)
    source.push(picture(2), 3.0)
    source.end()
    source.end()
    with pytest.raises(ValueError, match="'push' has ended"):
        source.push(picture(3), 4.0)
    assert [frame.pts_seconds for frame in source.frames(lambda pts_seconds: True)] == [2.0, 3.0]
    with pytest.raises(ValueError, match="capacity must be at least 1 frame, got 0"):
        PushSource(capacity=0)


def test_features_pass_unchanged_and_pictures_are_shrunk():
    source = PushSource(max_side=40, capacity=2)
    features = np.random.default_rng(0).normal(size=(3, 100)).astype(np.float32)
    source.push(features, 0.0)
    source.push(np.zeros((50, 80, 3), np.uint8), 1.0)
    source.end()
    first, second = source.frames(lambda pts_seconds: True)
    assert np.array_equal(first.image, features)
    assert second.image.shape == (25, 40, 3)


def test_a_push_waits_for_room_and_an_interrupt_frees_both_sides():
    source = PushSource(capacity=1)
    source.push(picture(0), 0.0)
    caught = []

    def push_more():
        try:
            source.push(picture(1), 1.0)
        except ValueError as error:
            caught.append(error)

    thread = in_thread(push_more)
    thread.join(0.1)
    assert thread.is_alive(), "no room"
    source.interrupt()
    thread.join(5)
    assert not thread.is_alive()
    assert "has ended" in str(caught[0])
    assert list(source.frames(lambda pts_seconds: True)) == []

    empty = PushSource()
    reader = in_thread(lambda: list(empty.frames(lambda pts_seconds: True)))
    reader.join(0.1)
    assert reader.is_alive(), "waits for a push"
    empty.close()
    reader.join(5)
    assert not reader.is_alive()


def test_who_looks_on_sees_pictures_of_another_size_and_changes_nothing(videos):
    path, times = videos["h264-mp4"]

    class Onlooker:
        max_side = 40

        def __init__(self):
            self.shown = []

        def wants(self, pts_seconds):
            return pts_seconds >= times[3]

        def show(self, pts_seconds, image):
            self.shown.append((pts_seconds, image.shape))

    alone = [frame.image for frame in all_frames(open_source(path, max_side=80))]
    source, onlooker = open_source(path, max_side=80), Onlooker()
    source.viewer = onlooker
    watched = [frame.image for frame in all_frames(source)]
    assert all(np.array_equal(a, b) for a, b in zip(alone, watched, strict=True))
    assert [seconds for seconds, _ in onlooker.shown] == pytest.approx(times[3:], abs=1e-3)
    assert {shape for _, shape in onlooker.shown} == {(30, 40, 3)}
