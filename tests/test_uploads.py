"""Uploads: real videos in pieces, what is no video, limits, names that try to escape, and room for the newest."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from videos import constant_times, cut_bytes, write_audio, write_video

from vstream.app.serve.uploads import MIB, PART, UploadRefused, Uploads, UploadTooLarge, file_name
from vstream.sources import open_source


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds."""
    return write_video(tmp_path_factory.mktemp("video") / "clock.mp4", constant_times(20, 5.0))


async def pieces(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def save(uploads: Uploads, name: str, file: Path) -> Path:
    return asyncio.run(uploads.save(name, pieces(file.read_bytes())))


def files(uploads: Uploads) -> list[str]:
    return sorted(path.name for path in uploads.folder.rglob("*"))


def sized(video: Path, tmp_path: Path, mib: float) -> Path:
    """The video, padded to a size."""
    padded = tmp_path / f"{mib}.mp4"
    size = int(mib * MIB) - video.stat().st_size
    padded.write_bytes(video.read_bytes() + size.to_bytes(4, "big") + b"free" + bytes(size - 8))
    return padded


def test_a_video_is_kept_as_it_is_and_opens(video: Path, tmp_path: Path) -> None:
    uploads = Uploads(tmp_path / "deep" / "uploads")
    first, second, third = [save(uploads, "My holiday.mp4", video) for _ in range(3)]
    assert files(uploads) == ["My_holiday-2.mp4", "My_holiday-3.mp4", "My_holiday.mp4"]
    assert first == uploads.folder / "My_holiday.mp4"
    assert first.read_bytes() == second.read_bytes() == third.read_bytes() == video.read_bytes()
    assert uploads.folder.stat().st_mode & 0o777 == 0o700
    with open_source(first, max_side=64, trusted=False) as source:
        assert source.name == "My_holiday.mp4"
        assert len(list(source.frames(lambda seconds: True))) == 20


def test_the_suffix_tells_what_the_file_is_whatever_its_name_says(video: Path, tmp_path: Path) -> None:
    uploads = Uploads(tmp_path / "uploads")
    other = write_video(tmp_path / "v.mkv", constant_times(5, 5.0))
    assert save(uploads, "page.html", video).name == "page.mp4"
    assert save(uploads, "video.mov", video).suffix == ".mov"
    assert save(uploads, "video.MP4", other).suffix == ".mkv"
    assert save(uploads, "video.webm", other).suffix == ".webm"


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("../../etc/cron.d/x.mp4", "x.mp4"),
        ("..\\..\\boot.mp4", "boot.mp4"),
        ("/", "video.mp4"),
        ("", "video.mp4"),
        ("..", "video.mp4"),
        (".hidden", "hidden.mp4"),
        (".bashrc.mp4", "bashrc.mp4"),
        ("a\0b\nc\u202e.mp4", "a_b_c.mp4"),
        ("-rf.mp4", "rf.mp4"),
        ("<script>.mp4", "script.mp4"),
        ("Straße é.mp4", "Straße_é.mp4"),
        ("x" * 5000 + ".mp4", "x" * 60 + ".mp4"),
    ],
)
def test_names_cannot_escape(name: str, kept: str) -> None:
    assert file_name(name, ".mp4") == kept
    assert Path("/uploads", file_name(name, ".mp4")).parent == Path("/uploads")


def test_a_wide_name_fits_the_disk(video: Path, tmp_path: Path) -> None:
    assert save(Uploads(tmp_path / "uploads"), "\U00020000" * 300, video).is_file()


@pytest.mark.parametrize("kind", ["text", "empty", "audio", "playlist", "cut"])
def test_what_is_no_video_is_refused_and_gone(kind: str, video: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("Not a video.\n" * 100)
    if kind == "empty":
        file.write_bytes(b"")
    elif kind == "audio":
        file = write_audio(tmp_path / "tone.m4a")
    elif kind == "playlist":
        file = tmp_path / "list.m3u8"
        file.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{video}\n#EXT-X-ENDLIST\n")
        with open_source(file, max_side=8) as followed:
            assert len(list(followed.frames(lambda seconds: True))) == 20, "without protection"
    elif kind == "cut":
        file = cut_bytes(video, file, end=0.1)
    uploads = Uploads(tmp_path / "uploads")
    with pytest.raises(UploadRefused, match=r"'evil\.mp4'") as refused:
        save(uploads, "evil.mp4", file)
    assert str(tmp_path) not in str(refused.value)
    assert files(uploads) == []


def test_a_truncated_video_that_can_be_watched_is_taken(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "v.ts", constant_times(40, 10.0))
    uploads = Uploads(tmp_path / "uploads")
    assert save(uploads, "v.ts", cut_bytes(whole, tmp_path / "cut.ts", end=0.6)).suffix == ".ts"


def test_too_many_bytes_are_refused_before_they_all_came(video: Path, tmp_path: Path) -> None:
    asked = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal asked
        while True:
            asked += 1
            yield bytes(MIB // 4)

    uploads = Uploads(tmp_path / "uploads", max_mib=2)
    with pytest.raises(UploadTooLarge, match="may have 2 MiB, and this has more"):
        asyncio.run(uploads.save("v.mp4", endless()))
    assert asked == 9
    assert files(uploads) == []
    assert save(uploads, "v.mp4", sized(video, tmp_path, 2)).stat().st_size == 2 * MIB, "exactly so many are taken"


def test_too_long_videos_are_refused_though_their_headers_lie(video: Path, tmp_path: Path) -> None:
    lying = tmp_path / "lying.mp4"
    data = bytearray(video.read_bytes())
    for box, at in ((b"mvhd", 20), (b"tkhd", 24), (b"mdhd", 20)):  # version 0: the duration is there
        place = data.index(box) + at
        data[place : place + 4] = (1).to_bytes(4, "big")
    lying.write_bytes(bytes(data))
    with open_source(lying, max_side=8) as source:
        assert source.duration_seconds is not None
        assert source.duration_seconds < 0.1
    unknown = write_video(tmp_path / "v.h264", constant_times(40, 5.0))  # a raw stream has no length at all
    short, long = Uploads(tmp_path / "short", max_hours=1 / 3600), Uploads(tmp_path / "long", max_hours=4 / 3600)
    for file in (video, lying, unknown):
        with pytest.raises(UploadRefused, match=r"longer than 0\.000277778 hours"):
            save(short, "v.mp4", file)
        assert save(long, "v.mp4", file).is_file()
    assert files(short) == []


@pytest.mark.parametrize("how", ["cancelled", "gone"])
def test_an_upload_that_breaks_off_leaves_nothing(how: str, video: Path, tmp_path: Path) -> None:
    uploads = Uploads(tmp_path / "uploads")

    async def breaking() -> AsyncIterator[bytes]:
        yield video.read_bytes()
        if how == "gone":
            raise ConnectionResetError("the sender has gone")
        await asyncio.sleep(60)

    async def run() -> None:
        task = asyncio.create_task(uploads.save("v.mp4", breaking()))
        await asyncio.sleep(0.2)
        if how == "cancelled":
            assert [Path(name).suffix for name in files(uploads)] == [PART]
            task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError if how == "cancelled" else ConnectionResetError):
        asyncio.run(run())
    assert files(uploads) == []


def test_the_oldest_unused_makes_room(video: Path, tmp_path: Path) -> None:
    used: set[Path | str] = set()
    uploads = Uploads(tmp_path / "uploads", max_mib=1, budget_mib=3, in_use=lambda: used)
    one = sized(video, tmp_path, 1)
    saved = [save(uploads, f"{k}.mp4", one) for k in range(3)]
    for age, path in enumerate(saved):
        os.utime(path, (0, 1000 + age))
    used.add(saved[0])
    saved.append(save(uploads, "3.mp4", one))
    assert [path.exists() for path in saved] == [True, False, True, True]
    used.update(saved)
    with pytest.raises(UploadRefused, match="no room: streams use all 3 MiB that uploads may have"):
        save(uploads, "4.mp4", one)
    assert [path.exists() for path in saved] == [True, False, True, True]
    used.discard(saved[2])
    used.discard(saved[3])
    used.add("upload:3.mp4")
    assert save(uploads, "5.mp4", one).exists()
    assert not saved[2].exists()
    assert saved[3].exists()


def test_uploads_at_the_same_time_stay_within_the_budget(video: Path, tmp_path: Path) -> None:
    uploads = Uploads(tmp_path / "uploads", max_mib=2, budget_mib=3)
    data = sized(video, tmp_path, 2).read_bytes()

    async def run() -> list[Path | BaseException]:
        saves = [uploads.save(f"{k}.mp4", pieces(data, MIB // 8)) for k in range(3)]
        return await asyncio.gather(*saves, return_exceptions=True)

    outcomes = asyncio.run(run())
    assert sum(path.stat().st_size for path in uploads.folder.rglob("*") if path.is_file()) <= 3 * MIB
    assert any(isinstance(outcome, UploadRefused) for outcome in outcomes)
    assert all(isinstance(outcome, (Path, UploadRefused)) for outcome in outcomes), outcomes
    assert not [name for name in files(uploads) if name.endswith(PART)]


def test_a_full_disk_is_one_sentence(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uploads = Uploads(tmp_path / "uploads")
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("COULD NOT TEST a full disk: this machine has no /dev/full")
    made = tempfile.mkstemp

    def on_the_full_disk(**options: object) -> tuple[int, str]:
        handle, path = made(**options)
        os.close(handle)
        return os.open(full, os.O_WRONLY), path

    monkeypatch.setattr(tempfile, "mkstemp", on_the_full_disk)
    with pytest.raises(UploadRefused, match="could not be written: no space left on device"):
        save(uploads, "v.mp4", video)


def test_parts_of_a_killed_server_are_removed(video: Path, tmp_path: Path) -> None:
    uploads = Uploads(tmp_path / "uploads")
    kept = save(uploads, "v.mp4", video)
    for name, age in (("killed", 7200.0), ("another's", 60.0)):
        part = uploads.folder / f"{name}{PART}"
        part.write_bytes(b"half")
        os.utime(part, (time.time() - age,) * 2)
    Uploads(tmp_path / "uploads")
    assert files(uploads) == [f"another's{PART}", kept.name]


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        ({"max_mib": 0}, "--max-upload-mib must be a number above 0, got 0"),
        ({"max_hours": float("nan")}, "--max-upload-hours must be a number above 0, got nan"),
        ({"max_mib": 20, "budget_mib": 10}, "need room for at least one of 20 MiB, got 10 MiB in all"),
    ],
)
def test_limits_that_cannot_be_are_refused(limits: dict[str, float], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        Uploads(tmp_path / "uploads", **limits)
