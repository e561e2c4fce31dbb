"""Our needle in a video haystack: what is planted and asked, films that are whole or made again, marks, and a run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from bench_roots import items_of, lay_out, mark, run

from vstream.app.bench import haystack as haystacks
from vstream.app.bench.base import Item, Mark
from vstream.app.bench.disk import Disk
from vstream.app.bench.haystack import DEPTHS, Haystack, film_whole
from vstream.app.bench.needle import PLAN, Needle
from vstream.app.lab.render import draw

VSTREAM = Path(sys.executable).with_name("vstream")
DAY = 24 * 3600


def planned(root: Path, *seconds: int, seeds: tuple[int, ...] = (0,)) -> Path:
    return lay_out(root, {PLAN: {"seconds": list(seconds), "seeds": list(seeds)}}, [])


def item_of(root: Path, ending: str) -> tuple[int, Item]:
    """The first item whose name ends so, with its number."""
    return next((number, one) for number, one in enumerate(items_of(Needle, root)) if one.id.endswith(ending))


# What there is ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [10, 29, 60, 3600, DAY])
def test_needles_lie_at_their_depths_and_nothing_else_is_like_them(seconds: int) -> None:
    haystack = Haystack(seconds)
    shown = haystack.needles[0].end_seconds
    assert shown == (4 if seconds >= 60 else 1)
    assert [one.start_seconds for one in haystack.needles] == [
        pytest.approx(depth * (seconds - shown) / 100, abs=0.5) for depth in DEPTHS
    ]
    assert haystack.needles[-1].end_seconds == seconds
    for needle in haystack.needles:
        seen = {shown.thing for at in (needle.start_seconds, needle.end_seconds - 1) for shown in haystack.world.at(at)}
        assert seen == {needle.thing}
    kinds = Counter(one.thing.kind for one in haystack.world.sightings(min(seconds, 3600) - 1))
    assert not set(kinds) & set(haystack.absent)
    rare = [one.thing.kind for one in haystack.needles if one.start_seconds < 3600]
    assert all(kinds[kind] == 1 for kind in rare)


def test_haystacks_differ_and_each_is_always_the_same() -> None:
    first = Haystack(60).world
    assert first == Haystack(60).world
    assert len({Haystack(seconds, seed).world.seed for seconds in (10, 60, DAY) for seed in (0, 1, 2)}) == 9
    for seconds in (9, DAY + 1):
        with pytest.raises(ValueError, match=rf"a haystack must last 10 to 86400 s, got {seconds}"):
            Haystack(seconds)
    with pytest.raises(ValueError, match="seed must be 0 or more, got -1"):
        Haystack(60, -1)


def test_every_needle_is_asked_for_at_the_end_and_before_it_comes(tmp_path: Path) -> None:
    items = items_of(Needle, planned(tmp_path, 60, 600, seeds=(0, 1)))
    groups = Counter(one.group for one in items)
    rows = [*(f"at {depth}%" for depth in DEPTHS), "nowhere", "to come"]
    assert list(groups) == [(length, row) for length in ("01:00", "10:00") for row in rows]
    assert set(groups.values()) == {12, 16}  # two videos: three questions in both forms, but four needles are to come
    assert len({one.id for one in items}) == len(items)
    needle = {haystack.name: haystack.needles for haystack in (Haystack(60), Haystack(60, 1))}
    for one in items:
        (ask,) = one.asks
        assert (ask.at == "end") == (one.group[1] != "to come")
        right = ask.choices[ord(one.gold) - ord("A")] if ask.choices else one.gold
        assert (right == "not seen") == (one.group[1] in ("nowhere", "to come"))
        assert not ask.choices or (len(set(ask.choices)) == 4 and "not seen" in ask.choices)
        if one.group == ("01:00", "to come"):
            (of_it,) = (
                thing for thing in needle[one.video] if ask.question == f"what colour was the {thing.thing.kind}?"
            )
            assert ask.at == of_it.start_seconds - 1
    golds = Counter(one.gold for one in items if one.asks[0].choices)
    assert set(golds) == set("ABCD")


def test_the_plan_says_which_videos_there_are(tmp_path: Path) -> None:
    assert {one.video for one in items_of(Needle, tmp_path)} == {
        Haystack(seconds, seed).name for seconds in (60, 600, 3600) for seed in (0, 1)
    }
    assert {one.video for one in items_of(Needle, planned(tmp_path, DAY, DAY))} == {Haystack(DAY).name}
    for wrong in ([], 60, ["60"], [60.0], [True]):
        with pytest.raises(ValueError, match=r"needle\.json: seconds must be a list of whole numbers, got"):
            items_of(Needle, lay_out(tmp_path, {PLAN: {"seconds": wrong}}, []))
    with pytest.raises(ValueError, match="a haystack must last 10 to 86400 s, got 5"):
        items_of(Needle, planned(tmp_path, 5))
    with pytest.raises(ValueError, match=r"needle\.json may have seconds and seeds, got 'second'"):
        items_of(Needle, lay_out(tmp_path, {PLAN: {"second": [60]}}, []))


# Films --------------------------------------------------------------------------------------------------------------


def pictures(path: Path) -> list[Any]:
    with av.open(str(path)) as film:
        return [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]


def test_only_what_is_asked_about_is_filmed_and_only_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark = Needle(Disk(planned(tmp_path, 10, 20)))
    items = [one for one in benchmark.items() if one.video == Haystack(10).name]
    benchmark.prepare(items)
    assert capsys.readouterr().err.count("filming") == 1
    assert [path.name for path in tmp_path.glob("*.mkv")] == [Haystack(10).name]
    assert benchmark.disk.video(Haystack(10).name) == Haystack(10).name
    before = (tmp_path / Haystack(10).name).stat()
    benchmark.prepare(items)
    assert capsys.readouterr().err == ""
    assert (tmp_path / Haystack(10).name).stat() == before
    frames = pictures(tmp_path / Haystack(10).name)
    assert len(frames) == 10
    off = [np.abs(frame.astype(int) - draw(Haystack(10).world, at, side=96)).mean() for at, frame in enumerate(frames)]
    assert max(off) < 3  # what is lost is only colour at half the resolution


def test_two_runs_make_one_film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filmed = []
    film = haystacks.film

    def counting(*arguments: Any, **more: Any) -> None:
        filmed.append(arguments)
        film(*arguments, **more)

    monkeypatch.setattr(haystacks, "film", counting)
    threads = [threading.Thread(target=film_whole, args=(Haystack(10), tmp_path)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(filmed) == 1
    assert len(pictures(tmp_path / Haystack(10).name)) == 10


@pytest.mark.slow
def test_a_film_cut_short_is_not_taken_for_whole(tmp_path: Path) -> None:
    haystack = Haystack(600)
    part = planned(tmp_path, 600) / ".filming" / haystack.name
    command = [VSTREAM, "bench", "needle", "--root", tmp_path, "--out", tmp_path / "out.jsonl", "--model", "tiny"]
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (part.exists() and part.stat().st_size > 100_000):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert part.stat().st_size > 100_000, "killed on the way"
    assert Disk(tmp_path).video(haystack.name) is None
    Needle(Disk(tmp_path)).prepare(items_of(Needle, tmp_path))
    assert Disk(tmp_path).video(haystack.name) == haystack.name
    assert len(pictures(tmp_path / haystack.name)) == 600
    assert not part.exists()


# Marks --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "official", "strict"),
    [
        ("{}", 1, 1),
        (" {}.", 1, 1),
        ("{} and something else", 1, 0),  # whatever comes behind it
        ("{}ish", 1, 0),
        ("it was {}", 0, 0),  # but nothing before it
        ("not seen", 0, 0),
        ("", 0, 0),
        (None, 0, 0),
    ],
)
def test_an_answer_in_words_begins_with_the_right_one_or_is_it(
    tmp_path: Path, said: str | None, official: float, strict: float
) -> None:
    number, item = item_of(planned(tmp_path, 60), "25-colour-words")
    for gold in (item.gold, item.gold.upper()):
        said_so = None if said is None else said.format(gold)
        assert mark(Needle, tmp_path, [said_so], number, "words") == Mark(official, strict)


@pytest.mark.parametrize(
    ("said", "official", "strict"),
    [
        ("{letter}", 1, 1),
        ("{letter}. {words}", 1, 1),
        ("{letter}lue and the like", 1, 0),  # any word that begins so
        ("{letter} or {other}", 1, 0),
        ("({letter})", 0, 1),
        ("{words}", 0, 1),  # the option's own words do not begin with its letter
        ("{other}", 0, 0),
        ("the answer is {letter}", 0, 0),
        (None, 0, 0),
    ],
)
def test_an_answer_by_letter_begins_with_it(tmp_path: Path, said: str | None, official: float, strict: float) -> None:
    number, item = item_of(planned(tmp_path, 60), "25-texture-letters")
    words = item.asks[0].choices[ord(item.gold) - ord("A")]
    other = next(letter for letter in "ABCD" if letter != item.gold)
    said_so = None if said is None else said.format(letter=item.gold, other=other, words=words)
    assert mark(Needle, tmp_path, [said_so], number, "letters") == Mark(official, strict)


def test_what_is_nowhere_was_not_seen(tmp_path: Path) -> None:
    number, item = next(
        (number, one) for number, one in enumerate(items_of(Needle, planned(tmp_path, 60))) if one.group[1] == "nowhere"
    )
    assert item.gold == "not seen"
    assert mark(Needle, tmp_path, ["Not seen."], number, "words") == Mark(1, 1)
    assert mark(Needle, tmp_path, ["red"], number, "words") == Mark(0, 0)


# All of it ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_memory_finds_the_needles_and_the_last_frames_only_the_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned(tmp_path, 60)

    def shares(*more: str) -> dict[str, float]:
        assert run("needle", tmp_path, tmp_path / f"{len(more)}.jsonl", *more) == 0
        scores = json.loads(capsys.readouterr().out)["scores"]
        return {
            one["group"][1]: one["strict"] for one in scores if len(one["group"]) == 2 and one["measure"] == "words"
        }

    remembered, last = shares(), shares("--preset", "last-frames")
    assert set(remembered.values()) == {1}
    assert last == {row: float(row in ("at 100%", "nowhere", "to come")) for row in remembered}
