"""What strangers may open: attacks with real files, links and playlists, each with a control that shows the attack."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from videos import constant_times, draw_clock, write_images, write_video

from vstream.app.serve import allowed
from vstream.app.serve.allowed import SourcePolicy, SourceRefused
from vstream.app.serve.synthetic import SOURCES
from vstream.sources import CameraSource, DirectorySource, open_source
from vstream.sources.base import Source
from vstream.sources.file import UNTRUSTED

SYNTHETIC = "lavfi:testsrc2=size=320x240:rate=10,realtime"
PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{url}\n#EXT-X-ENDLIST\n"


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds, outside of all allowed folders."""
    return write_video(tmp_path_factory.mktemp("secret") / "secret.mp4", constant_times(20))


@pytest.fixture
def videos(tmp_path: Path, video: Path) -> Path:
    """The allowed folder, with one video."""
    folder = tmp_path / "videos"
    (folder / "deeper").mkdir(parents=True)
    (folder / "deeper" / "ours.mp4").write_bytes(video.read_bytes())
    return folder


def num_frames(source: Source) -> int:
    with source:
        return len(list(source.frames(lambda seconds: True)))


def refusal(policy: SourcePolicy, text: str) -> str:
    with pytest.raises(SourceRefused) as refused:
        policy.open(text, max_side=64)
    sentence = str(refused.value)
    assert "\n" not in sentence
    return sentence


# Folders


def test_files_and_folders_below_an_allowed_folder_open(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = SourcePolicy([str(videos)])
    ours = videos / "deeper" / "ours.mp4"
    for text in (str(ours), "deeper/ours.mp4", f"{videos}/../videos/deeper/ours.mp4", f"  {ours} "):
        opened = policy.open(text, max_side=64)
        assert (opened.file, opened.given) == (ours, str(ours))
        assert num_frames(opened.source) == 20
        assert num_frames(policy.open(opened.given, max_side=64).source) == 20
    write_images(videos / "pictures", [("a.png", draw_clock(1.0)), ("b.jpg", draw_clock(2.0))])
    opened = policy.open("pictures", max_side=64)
    assert (opened.file, num_frames(opened.source)) == (None, 2)
    monkeypatch.chdir(videos / "deeper")
    assert policy.open("ours.mp4", max_side=64).file == ours
    with pytest.raises(FileNotFoundError, match=r"there is no file other\.mp4"):
        policy.open("other.mp4", max_side=64)


def test_a_refused_path_does_not_tell_whether_it_exists(videos: Path, video: Path) -> None:
    policy = SourcePolicy([str(videos)], videos / "deeper")
    (videos / "link.mp4").symlink_to(video)
    (videos / "out").symlink_to(video.parent)
    (videos / "nowhere.mp4").symlink_to(video.parent / "nothing.mp4")
    pairs = [
        (video, video.parent / "nothing.mp4"),
        (videos / "link.mp4", videos / "nowhere.mp4"),
        (videos / "out" / "secret.mp4", videos / "out" / "nothing.mp4"),
        (videos / ".." / ".." / video.parent.name / "secret.mp4", videos / ".." / "nothing.mp4"),
        ("/etc/passwd", "/etc/nothing"),
        ("/", "/nothing"),
    ]
    for there, missing in pairs:
        said = [refusal(policy, str(path)) for path in (there, missing)]
        neutral = [text.replace(repr(str(path)), "PATH") for text, path in zip(said, (there, missing), strict=True)]
        assert neutral[0].split("--allow")[0] == neutral[1].split("--allow")[0]
        assert f"the sample, uploads, synthetic cameras and {videos}" in said[0]
    assert f"--allow {video.parent}" in refusal(policy, str(video))
    with open_source(videos / "link.mp4", max_side=64) as followed:
        assert followed.name == "link.mp4", "without the policy the link leads out"


def test_what_is_opened_is_what_was_checked(videos: Path) -> None:
    """A link that stays inside is resolved, so that turning it around later changes nothing."""
    (videos / "link.mp4").symlink_to(videos / "deeper" / "ours.mp4")
    assert SourcePolicy([str(videos)]).open("link.mp4", max_side=64).file == videos / "deeper" / "ours.mp4"


def test_devices_pipes_and_system_folders_are_refused(videos: Path) -> None:
    os.mkfifo(videos / "pipe.mp4")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(videos / "s.mp4"))
        for name in ("pipe.mp4", "s.mp4"):
            assert "neither a file nor a folder" in refusal(SourcePolicy([str(videos)]), str(videos / name))
    everything = SourcePolicy(["/"])
    for text in ("/dev/zero", "/dev/stdin", "/proc/self/environ", "/proc/1/cwd/etc/passwd", "/sys"):
        assert "is not in a folder that this server may read" in refusal(everything, text)
    assert everything.open(str(videos / "deeper" / "ours.mp4"), max_side=64).file
    for folder in ("/proc", "/proc/self/fd", "/sys"):
        with pytest.raises(ValueError, match="is a recording"):
            SourcePolicy([folder])


def test_a_file_that_may_not_be_read_is_one_sentence(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> Source:
        raise PermissionError(13, "Permission denied")  # tests may run as root, to whom nothing is denied

    monkeypatch.setattr(allowed, "open_source", denied)
    assert "may not be read by this server" in refusal(SourcePolicy([str(videos)]), "deeper/ours.mp4")


def test_uploads_and_the_sample_are_always_allowed(videos: Path, tmp_path: Path) -> None:
    policy = SourcePolicy([], videos)
    assert policy.open(str(videos / "deeper" / "ours.mp4"), max_side=64).file
    opened = policy.open("sample", max_side=64)
    assert opened.given == "sample"
    assert opened.file == Path(__file__).parents[1] / "samples" / "sample.mp4"
    assert opened.source.duration_seconds == pytest.approx(74, abs=1)
    opened.source.close()
    policy.sample = None
    assert "the sample video is not installed" in refusal(policy, "sample")
    assert str(videos) not in policy.describe()


def test_uploads_are_named_by_their_names(videos: Path, video: Path) -> None:
    policy = SourcePolicy([], videos / "deeper")
    opened = policy.open("upload:ours.mp4", max_side=64)
    assert (opened.given, opened.file) == ("upload:ours.mp4", videos / "deeper" / "ours.mp4")
    opened.source.close()
    (videos / "deeper" / "link.mp4").symlink_to(video)
    for text in (
        "upload:nothing.mp4",
        f"upload:{video}",
        "upload:../../secret.mp4",
        "upload:",
        "upload:..",
        "upload:link.mp4",
    ):
        with pytest.raises(FileNotFoundError, match="there is no upload"):
            policy.open(text, max_side=64)
    assert "takes no uploads" in refusal(SourcePolicy([]), "upload:ours.mp4")


@pytest.mark.parametrize("text", ["", "  ", "a\0b", "a\nb", "/" * 5000, "\ud800"])
def test_texts_that_name_nothing_are_refused(text: str, videos: Path) -> None:
    assert "1 to 4096 printable characters" in refusal(SourcePolicy([str(videos)]), text)


@pytest.mark.parametrize(
    "text",
    ["http://169.254.169.254/", "https://u:Secr3t@host/", "file:///etc/passwd", "FTP://u:Secr3t@h/", "rtmp://h/", "udp://@:1",
     "concat://a", "unix://x", "tls://h", "rtp://h", "srt://h", "sftp://h", "gopher://h", "ipfs://h", "data://x"],
)  # fmt: skip
def test_other_protocols_are_refused_without_their_credentials(text: str) -> None:
    sentence = refusal(SourcePolicy(["/"]), text)
    assert f"{text.split(':')[0]}:// is not opened by this server" in sentence
    assert "Secr3t" not in sentence


@pytest.mark.parametrize(
    "name", ["concat:a|b", "subfile,,start,0,end,0,,:x", "data:text,x", "pipe:0", "fd:0", "%03d.mp4"]
)
def test_what_ffmpeg_takes_for_a_url_is_a_file_name(name: str, videos: Path) -> None:
    policy = SourcePolicy([str(videos)])
    with pytest.raises(FileNotFoundError):
        policy.open(name, max_side=64)
    (videos / name).write_bytes((videos / "deeper" / "ours.mp4").read_bytes())
    assert num_frames(policy.open(name, max_side=64).source) == 20


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "--allow takes a folder"),
        ("/no/such/folder", "--allow takes a folder"),
        ("rtsp://u:Secr3t@host/x", "--allow takes a folder"),
        ("*", "--allow takes a folder"),
        ("host:0", "a port is a number from 1 to 65535"),
        ("host:70000", "a port is a number from 1 to 65535"),
        ("169.254.169.254", "link-local addresses are never connected to"),
        ("[fe80::1]:554", "link-local addresses are never connected to"),
        ("0.0.0.0", "unspecified addresses are never"),
        ("fd00:ec2::254", "cloud metadata addresses are never"),
    ],
)
def test_what_cannot_be_allowed_is_refused_at_the_start(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as refused:
        SourcePolicy([text])
    assert "Secr3t" not in str(refused.value)


# Cameras of this machine, and synthetic ones


def test_only_the_allowed_camera_of_this_machine() -> None:
    policy = SourcePolicy(["webcam:0"])
    opened = policy.open("/dev/video0", max_side=64)
    assert isinstance(opened.source, CameraSource)
    assert (opened.file, opened.given) == (None, "/dev/video0")
    for text in ("webcam:1", "/dev/video1", "/dev/video0/../sda", "/dev/video0x", "webcam:/etc/passwd"):
        assert "is not allowed here" in refusal(policy, text)
    assert "--allow webcam:0" in refusal(SourcePolicy([]), "webcam:0")


@pytest.mark.parametrize("source", SOURCES)
def test_every_synthetic_camera_gives_pictures(source: str) -> None:
    with SourcePolicy([]).open(f"lavfi:{source}=s=64x48:r=30,realtime", max_side=64).source as camera:
        assert next(camera.frames(lambda seconds: True)).image.shape == (48, 64, 3)


@pytest.mark.parametrize(
    "graph",
    ["movie={video}", "amovie={video}", "movie=/etc/passwd[a];[a]", "life=filename={video}", "life={video}",
     "cellauto=f={video}", "testsrc2,movie={video}", "testsrc2;movie={video}", "testsrc2=s=64x48[a];movie={video}[b]",
     "testsrc2=rate=10\\", "testsrc2='x'", "testsrc2,realtime=speed=100", "", "testsrc2=,", "testsrc2=size=9999x9999",
     "testsrc2=rate=1000", "testsrc2=rate=10/0", "color=c=red@0.5,drawtext=textfile={video}", "testsrc2=size=320x240\n",
     "testsrc2 ", "sendcmd=f={video}", "testsrc2=size=64x48:"],
)  # fmt: skip
def test_other_graphs_are_refused(graph: str, video: Path) -> None:
    policy, graph = SourcePolicy(["/"]), graph.format(video=video)
    for text in (f"lavfi:{graph},realtime", f"lavfi:realtime,{graph}", f"lavfi:{graph}"):
        with pytest.raises(SourceRefused):
            policy.open(text, max_side=64)


def test_a_graph_reads_files_without_protection(video: Path) -> None:
    with open_source(f"lavfi:movie={video},realtime", max_side=64) as camera:
        assert next(camera.frames(lambda seconds: True)).image.shape == (48, 64, 3)


# Files that name other files


@pytest.mark.parametrize(
    ("name", "codec"),
    [("v.mp4", "libx264"), ("v.mov", "libx264"), ("v.mkv", "libx265"), ("v.webm", "libvpx-vp9"), ("v.avi", "mpeg4"),
     ("v.ts", "libx264"), ("v.mpg", "mpeg2video"), ("v.flv", "flv"), ("v.wmv", "wmv2"), ("v.ogv", "libvpx"),
     ("v.gif", "gif"), ("v.mjpeg", "mjpeg"), ("v.h264", "libx264"), ("v.hevc", "libx265"), ("v.wtv", "mpeg2video"),
     ("v.mxf", "mpeg2video"), ("v.nut", "libx264"), ("v.ivf", "libvpx-vp9"), ("v.m4v", "mpeg4"), ("v.3gp", "mpeg4")],
)  # fmt: skip
def test_real_containers_open_as_ever(name: str, codec: str, videos: Path) -> None:
    with av.open(str(videos / name), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = 176, 144
        stream.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        for k in range(25):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(draw_clock(k / 25, (176, 144)), format="rgb24")))
        container.mux(stream.encode(None))
    trusted = num_frames(open_source(videos / name, max_side=64))
    assert num_frames(SourcePolicy([str(videos)]).open(name, max_side=64).source) == trusted >= 20


LISTS = {
    "m3u8": PLAYLIST.format(url="{url}"),
    "ffconcat": "ffconcat version 1.0\nfile '{url}'\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
    "mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT2S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1" '
    'bandwidth="1"><BaseURL>{url}</BaseURL>'
    "</Representation></AdaptationSet></Period></MPD>",
    "asx": '<asx version="3.0"><entry><ref href="{url}"/></entry></asx>',
    "xspf": '<playlist version="1" xmlns="x"><trackList><track><location>{url}</location></track></trackList>'
    "</playlist>",
    "pls": "[playlist]\nFile1={url}\n",
    "rtsp": "RTSPtext\nrtsp://127.0.0.1:{port}/x\n",
    "ram": "rtsp://127.0.0.1:{port}/x\n",
}  # fmt: skip


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("as_mp4", [False, True])
def test_playlists_open_nothing(kind: str, as_mp4: bool, videos: Path, video: Path) -> None:
    name = f"list.{'mp4' if as_mp4 else kind}"
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.setblocking(False)
        port = trap.getsockname()[1]
        inside = videos / "deeper" / "ours.mp4"
        for url in (
            video,
            f"file://{video}",
            "file:///etc/passwd",
            "deeper/ours.mp4",
            inside,
            f"http://127.0.0.1:{port}/x.ts",
        ):
            (videos / name).write_text(LISTS[kind].format(url=url, port=port))
            with pytest.raises(ValueError, match="cannot be read as a video"):
                SourcePolicy([str(videos)]).open(name, max_side=64)
        with pytest.raises(BlockingIOError):
            trap.accept()


def test_playlists_are_followed_without_protection(videos: Path, video: Path) -> None:
    (videos / "list.m3u8").write_text(PLAYLIST.format(url=f"file://{video}"))
    assert num_frames(open_source(videos / "list.m3u8", max_side=64)) == 20
    (videos / "list.mp4").write_text("ffconcat version 1.0\nfile 'deeper/ours.mp4'\n")
    assert num_frames(open_source(videos / "list.mp4", max_side=64)) == 20


def with_external_data(source: Path, path: Path, secret: Path) -> Path:
    """An mp4 whose samples are in another file: its data reference is an absolute path."""
    data = source.read_bytes()
    place = data.index(b"dref") - 4
    old = int.from_bytes(data[place : place + 4], "big")
    name = secret.name.encode()
    where = str(secret).encode()
    body = bytes(10) + bytes(28) + bytes(12) + bytes([len(name)]) + name.ljust(63, b"\0") + bytes(16)
    body += bytes(4 + 16)
    body += (2).to_bytes(2, "big") + len(where).to_bytes(2, "big") + where + b"\0" * (len(where) % 2)
    body += b"\xff\xff\0\0"
    entry = (12 + len(body)).to_bytes(4, "big") + b"alis" + bytes(4) + body
    new = (16 + len(entry)).to_bytes(4, "big") + b"dref" + bytes(4) + (1).to_bytes(4, "big") + entry
    out = bytearray(data[:place] + new + data[place + old :])
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        at = out.index(box) - 4
        size = int.from_bytes(out[at : at + 4], "big")
        out[at : at + 4] = (size + len(new) - old).to_bytes(4, "big")
    path.write_bytes(bytes(out))
    return path


def test_an_mp4_whose_samples_lie_in_another_file_does_not_open_it(videos: Path, video: Path) -> None:
    outer = with_external_data(video, videos / "outer.mp4", video)

    def opened(options: dict[str, str]) -> list[str]:
        before = set(os.listdir("/proc/self/fd"))
        with av.open(f"file:{outer}", options=options):
            held = [Path("/proc/self/fd", fd) for fd in set(os.listdir("/proc/self/fd")) - before]
            return [os.readlink(fd) for fd in held if os.path.lexists(fd)]

    assert str(video) in opened({"enable_drefs": "1", "use_absolute_path": "1"}), "the attack, where it is allowed"
    assert str(video) not in opened(UNTRUSTED)
    assert str(video) not in opened({**UNTRUSTED, "use_absolute_path": "1"})


def test_huge_pictures_are_refused_before_they_are_decoded(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = SourcePolicy([str(videos)])
    monkeypatch.setattr("vstream.sources.file.MAX_PIXELS", 160 * 120 - 1)
    with pytest.raises(ValueError, match="has pictures of more than"):
        policy.open("deeper/ours.mp4", max_side=64)
    monkeypatch.setattr("vstream.sources.file.MAX_PIXELS", 192 * 160)
    assert num_frames(policy.open("deeper/ours.mp4", max_side=64).source) == 20


def test_only_one_reader_is_safe(videos: Path) -> None:
    with pytest.raises(ValueError, match="only reader='av' is safe"):
        open_source(videos / "deeper" / "ours.mp4", max_side=64, reader="decord", trusted=False)


# Folders of pictures


def test_a_folder_shows_no_pictures_of_others(videos: Path, tmp_path: Path) -> None:
    outside = write_images(tmp_path / "outside", [("secret.png", draw_clock(7.0))])
    folder = write_images(videos / "pictures", [("a.png", draw_clock(1.0))])
    (folder / "b.png").symlink_to(outside / "secret.png")
    (folder / "c.png").symlink_to(folder / "a.png")
    assert num_frames(DirectorySource(folder, max_side=160)) == 3, "the control"
    source = SourcePolicy([str(videos)]).open("pictures", max_side=160).source
    assert num_frames(source) == 2
    assert source.warning == "pictures: b.png left out, as unreadable."


def test_bombs_and_other_kinds_of_files_are_left_out(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_images(videos / "pictures", [("a.png", draw_clock(1.0))])
    Image.new("1", (9000, 9000)).save(folder / "bomb.png")
    assert (folder / "bomb.png").stat().st_size < 100_000
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "script.jpg", format="EPS")
    assert Image.open(folder / "script.jpg").format == "EPS", "PIL would run a program for it"
    decoded: list[tuple[int, int]] = []
    load = Image.Image.load
    monkeypatch.setattr(Image.Image, "load", lambda image: decoded.append(image.size) or load(image))
    source = SourcePolicy([str(videos)]).open("pictures", max_side=64).source
    assert (num_frames(source), source.errors) == (1, 2)
    assert (9000, 9000) not in decoded


def test_threads_are_not_left(videos: Path) -> None:
    threads = set(threading.enumerate())
    policy = SourcePolicy([str(videos), "127.0.0.1"])
    policy.open("rtsp://127.0.0.1:9/x", max_side=64).source.close()
    assert set(threading.enumerate()) == threads
