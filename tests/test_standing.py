"""Standing questions: events at the right times, the rule behind them, the budget, and that nothing else is changed.

Everything but the rule alone goes through sessions of the real `tiny` model that watch the synthetic world.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from streams import ListSource, feature_frames, small_config

from vstream.app.lab.render import WorldSource
from vstream.app.lab.world import Sighting, Thing, World
from vstream.engine import Engine
from vstream.lookout import Budget
from vstream.models.random import RandomLlama
from vstream.session import Session
from vstream.standing import Alert, AlertOptions, Event, Judge
from vstream.yes_no import YesNo, asked

HEART, STAR = Thing("red", "plain", "heart"), Thing("blue", "plain", "star")
SHOWN = (Sighting(HEART, 13, 19, 0), Sighting(STAR, 30, 34, 1), Sighting(HEART, 42, 45, 3))
WORLD = World(31, 60, SHOWN)
IS_HEART, IS_STAR, IS_OTHER = "was there a red heart?", "was there a blue star?", "was there a green heart?"
PLAIN = AlertOptions(on=0.0, off=-2.0, cool_down_seconds=0.0, calibrate=0)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """With `tiny`, on one thread."""
    torch.set_num_threads(1)
    with Engine.load("tiny") as engine:
        yield engine


def opened(engine: Engine, world: World = WORLD, source: type[WorldSource] = WorldSource, **settings: Any) -> Session:
    return engine.open(source(world, side=96), start=False, **{**engine.adapter.settings, **settings})


def drain(session: Session) -> None:
    while session.step():
        pass


def watch(session: Session, seconds: int = 10**6, each: Callable[[], object] = lambda: None) -> None:
    """Frames up to a time, clip by clip, looked at before the next one comes; `each` is called after every clip."""
    assert session.ingest is not None
    while not session.ingest.drained and (session.memory.last_seconds or 0) + 1 < seconds:
        before = session.memory.last_seconds
        session.ingest.pump(session.config.clip_frames)
        drain(session)
        if session.memory.last_seconds != before:
            each()


def said(engine: Engine, text: str, world: World = WORLD, **settings: Any) -> list[float]:
    """Log-odds of a standing question in each clip of a stream."""
    session, heard = opened(engine, world, **settings), list[float]()
    alert = session.alert(text, AlertOptions(uses_memory=False))
    watch(session, each=lambda: heard.append(alert.log_odds or 0.0))
    session.close()
    return heard


def spans(events: Sequence[Event]) -> list[tuple[float, float | None]]:
    return [(event.start_seconds, event.end_seconds) for event in events]


# The rule ---------------------------------------------------------------------------------------------------------


def judged(options: AlertOptions, scores: Sequence[float], clip_seconds: int = 4) -> str:
    """A letter for each clip: b where an event begins, e where one ends, + while it goes on, - else."""
    judge, found = Judge(options), ""
    for number, score in enumerate(scores):
        change = judge.hear(score, clip_seconds * number, clip_seconds * number + 3)
        found += {"begins": "b", "ends": "e", None: "+" if judge.on else "-"}[change]
    return found


def test_an_event_begins_above_on_and_ends_below_off() -> None:
    scores = [-5, -1, 0, 0.1, -1, -2, 0, -2.1, -1, 1, -5]
    assert judged(PLAIN, scores) == "---b+++e-be"
    flat = AlertOptions(on=0.0, off=-1e-9, cool_down_seconds=0.0, calibrate=0)
    assert judged(flat, scores) == "---be---" + "-be", "without hysteresis it would have ended at once"


def test_none_begins_soon_after_the_one_before() -> None:
    scores = [5, -5, 5, 5, 5, 5, -5]
    assert judged(PLAIN, scores) == "beb+++e"
    cooled = AlertOptions(on=0.0, off=-2.0, cool_down_seconds=10, calibrate=0)
    assert judged(cooled, scores) == "be--" + "b+e", "it ended at 3 s, so one may begin at 13 s or later"


def test_a_baseline_takes_the_wordings_leaning_out() -> None:
    """The same question, put so that the model always leans to yes."""
    scores = [-5.0, -5.2, -4.9, 4, 3, -5, -5.1]
    calibrated = AlertOptions(on=4.0, off=2.0, cool_down_seconds=0.0, calibrate=8)

    def by(options: AlertOptions, leaning: float) -> str:
        return judged(options, [score + leaning for score in scores])

    assert by(PLAIN, 0) == "---b+e-"
    assert by(PLAIN, 8) == "b++++" + "++", "negative control: it begins at once and never ends"
    judge = Judge(calibrated)
    judge.start(3.0)
    changes = [judge.hear(score + 8, 4 * n, 4 * n + 3) for n, score in enumerate(scores)]
    assert changes == [None, None, None, "begins", None, "ends", None]


def test_what_goes_on_does_not_move_the_baseline() -> None:
    judge = Judge(AlertOptions(calibrate=16))
    judge.start(-5.0)
    for clip in range(100):
        judge.hear(5.0, 4 * clip, 4 * clip + 3)
    assert judge.on
    assert judge.score_of(-5.0) == 0


def test_a_confidence_is_a_half_where_an_event_may_begin() -> None:
    judge = Judge(AlertOptions(on=3.0, off=1.0, calibrate=0))
    for score, confidence in ((3.0, 0.5), (3.0 + 1.0986123, 0.75), (-1e4, 0.0), (1e4, 1.0)):
        judge.hear(score, 0, 3)
        assert judge.confidence == pytest.approx(confidence, abs=1e-6)


@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        ({"on": 1.0, "off": 1.0}, "off must be below on"),
        ({"on": float("nan")}, "off must be below on, and both finite"),
        ({"cool_down_seconds": -1.0}, "cool_down_seconds must be a finite number >= 0, got -1.0"),
        ({"cool_down_seconds": float("inf")}, "cool_down_seconds must be a finite number"),
        ({"calibrate": -1}, "calibrate must be a whole number from 0 to 10000, got -1"),
        ({"calibrate": True}, "calibrate must be a whole number"),
    ],
)
def test_options_are_checked(given: dict[str, Any], allowed: str) -> None:
    with pytest.raises(ValueError, match=allowed):
        AlertOptions(**given)


# What is asked ----------------------------------------------------------------------------------------------------


def test_a_question_is_asked_as_it_is_and_a_condition_as_a_question() -> None:
    assert asked(" was there a red heart? ") == IS_HEART
    assert asked("a cat appears.") == 'Is this true of what is shown right now: "a cat appears"? Answer yes or no.'


def test_yes_and_no_in_every_form_and_nothing_unknown(engine: Engine) -> None:
    tokens = YesNo(engine.adapter)
    read = [{engine.adapter.text([token]) for token in side} for side in (tokens._yes, tokens._no)]
    assert read == [{"yes", "Yes"}, {"no", "No"}], '"YES" is no word of it, and must not count as one'
    letters = YesNo(RandomLlama())
    assert {chr(token) for token in letters._yes} == {"y", "Y"}
    logits = torch.zeros(257)
    logits[list(b"yY")] = 2.0
    assert letters.log_odds(logits) == pytest.approx(2.0)
    assert letters.log_odds(-logits) == pytest.approx(-2.0)


def test_a_model_without_these_words_is_refused() -> None:
    class Mute(RandomLlama):
        def token_ids(self, text: str) -> list[int]:
            return [7]

    session = Session(Mute(), ListSource(feature_frames(4)), small_config())
    with pytest.raises(ValueError, match="no tokens for yes and no"):
        session.alert("a cat appears")
    assert session.alerts == ()
    session.close()


# Events -----------------------------------------------------------------------------------------------------------


def test_events_have_their_times_and_pictures(engine: Engine) -> None:
    session, told = opened(engine), list[Event]()
    heart, star, other = (session.alert(text) for text in (IS_HEART, IS_STAR, IS_OTHER))
    heart.subscribe(told.append)
    watch(session)
    assert spans(heart.events) == [(13.0, 19.0), (42.0, 47.0)], "the first frame, and the end of the last clip"
    assert spans(star.events) == [(30.0, 35.0)]
    assert other.events == ()
    for event, shown in zip(heart.events, (SHOWN[0], SHOWN[2]), strict=True):
        assert shown.start_seconds <= event.seconds < shown.end_seconds, "the picture shows it"
        assert Image.open(io.BytesIO(event.picture)).size == (96, 96)
        assert 0.5 < event.confidence <= 1
        assert (event.text, event.alert_id, event.wall_clock) == (IS_HEART, heart.id, None)
    assert [(event.id, event.end_seconds) for event in told] == [
        (heart.events[0].id, None),
        (heart.events[0].id, 19.0),
        (heart.events[1].id, None),
        (heart.events[1].id, 47.0),
    ]
    assert (heart.looked, heart.skipped) == (15, 0)
    session.close()


def test_an_event_is_told_right_after_its_clip(engine: Engine) -> None:
    session, told = opened(engine), list[tuple[float, float | None]]()
    session.alert(IS_HEART).subscribe(lambda event: told.append((session.memory.last_seconds or 0, event.end_seconds)))
    watch(session, 28)
    assert told == [(15.0, None), (23.0, 19.0)]
    session.close()


def test_who_listens_may_look_at_the_session(engine: Engine) -> None:
    """It is told without the session's locks, which are not reentrant."""
    session, seen = opened(engine), list[float | None]()
    session.alert(IS_HEART).subscribe(lambda event: seen.append(session.status().last_seconds))
    watch(session, 24)
    assert seen == [15.0, 23.0]
    session.close()


def test_what_goes_on_at_the_end_of_a_stream_is_over(engine: Engine) -> None:
    session, told = opened(engine, World(31, 18, (Sighting(HEART, 13, 18, 0),))), list[Event]()
    alert = session.alert(IS_HEART)
    alert.subscribe(told.append)
    watch(session, 16)
    assert spans(alert.events) == [(13.0, None)]
    watch(session)
    assert spans(alert.events) == [(13.0, 17.0)]
    assert spans(told) == [(13.0, None), (13.0, 17.0)]
    session.close()


def test_the_newest_clip_alone_tells_now_from_before(engine: Engine) -> None:
    """With what memory brings back, "was there" stays true."""
    session = opened(engine)
    now, ever = session.alert(IS_HEART, PLAIN), session.alert(IS_HEART, AlertOptions(calibrate=0, uses_memory=True))
    heard: dict[Alert, list[bool]] = {now: [], ever: []}
    watch(session, each=lambda: [heard[one].append((one.log_odds or 0) > 0) for one in heard])
    assert heard[now] == [clip in (3, 4, 10, 11) for clip in range(15)]
    assert heard[ever] == [clip >= 3 for clip in range(15)]
    assert (now.id, ever.id) == (ever.id.removesuffix("-2"), f"{now.id}-2")
    session.close()


def test_a_served_stream_has_the_same_events(engine: Engine) -> None:
    session, expected = opened(engine), opened(engine)
    alert, other = session.alert(IS_HEART), expected.alert(IS_HEART)
    engine.serve(session)
    deadline = time.monotonic() + 60
    while not session.status().ended and time.monotonic() < deadline:
        time.sleep(0.02)
    session.close()
    watch(expected)
    assert alert.events == other.events
    assert len(alert.events) == 2
    expected.close()


# Nothing else is changed ------------------------------------------------------------------------------------------


def test_what_comes_later_changes_no_score(engine: Engine) -> None:
    future = World(31, 60, (SHOWN[0], Sighting(Thing("green", "plain", "star"), 30, 34, 1), SHOWN[2]))
    one, other = said(engine, IS_STAR), said(engine, IS_STAR, future)
    assert one[:7] == other[:7], "to the last bit"
    assert one[7] != other[7], "negative control"


@pytest.mark.slow
def test_the_same_stream_gives_the_same_events_whoever_else_asks(engine: Engine) -> None:
    alone, among = opened(engine), opened(engine)
    one = alone.alert(IS_HEART)
    several = [among.alert(text) for text in (IS_OTHER, IS_HEART, IS_STAR, IS_HEART)]
    watch(alone)
    watch(among, each=lambda: among.ask("what is there now?", at="now"))
    assert one.state() == several[1].state()
    assert [(event.start_seconds, event.confidence) for event in one.events] == [
        (event.start_seconds, event.confidence) for event in several[1].events
    ]
    assert one.events == several[1].events
    alone.close()
    among.close()


@torch.inference_mode()
def kept(session: Session) -> dict[int, torch.Tensor]:
    store = session.memory.store
    return {meta.id: store.gather([meta.id]) for meta in store.metas()}


@pytest.mark.slow
def test_looking_changes_nothing_that_is_remembered_or_answered(engine: Engine) -> None:
    plain, looked = opened(engine), opened(engine)
    for uses_memory in (False, True):
        looked.alert(IS_HEART, AlertOptions(uses_memory=uses_memory))
    answers = []
    for session in (plain, looked):
        early = session.ask("when did the red heart appear?", at=25.0)
        watch(session)
        late = session.ask("what came after the red heart?", at=35.0)
        drain(session)
        answers.append([(one.text(), one.evidence, one.recalled) for one in (early, late)])
    assert answers[0] == answers[1]
    ours, theirs = kept(plain), kept(looked)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[block_id], theirs[block_id]) for block_id in ours)
    for mine, other in zip(plain.memory.cache.spans, looked.memory.cache.spans, strict=True):
        assert all(map(torch.equal, mine.view(), other.view()))
    assert looked.looking.seconds > 10 * plain.looking.seconds
    plain.close()
    looked.close()


# Time -------------------------------------------------------------------------------------------------------------


class LiveWorld(WorldSource):
    """A world that does not wait."""

    is_live = True


class Ticking:
    """A clock by which every look takes as long."""

    def __init__(self, seconds: float) -> None:
        self.now, self.step = 0.0, seconds

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def test_a_budget_owes_what_was_spent_too_much() -> None:
    budget = Budget(0.5)
    assert not budget.is_left
    budget.grant(4)
    budget.spend(5)
    assert not budget.is_left
    left = []
    for _ in range(3):
        budget.grant(4)
        left.append(budget.is_left)
    assert left == [False, True, True]
    budget.grant(400)
    budget.grant(4)
    budget.spend(2)
    assert not budget.is_left, "what was not needed for one clip is not kept for later ones"


def test_on_a_live_stream_looks_take_their_share_in_rotation(engine: Engine) -> None:
    """A look takes 1.5 s, a clip of four seconds leaves one: two of three clips are looked at, by one of three."""
    session = opened(engine, source=LiveWorld, alert_share=0.25)
    session._lookout._clock = Ticking(1.5)
    alerts = [session.alert(text) for text in (IS_HEART, IS_STAR, IS_OTHER)]
    looks = list[int]()
    watch(session, each=lambda: looks.append(sum(alert.looked for alert in alerts)))
    assert looks[-1] == 10
    assert all(1.5 * count <= 0.25 * 4 * clips + 1.5 for clips, count in enumerate(looks, start=1))
    assert all(later - earlier <= 1 for earlier, later in pairwise(looks))
    assert sorted(alert.looked for alert in alerts) == [3, 3, 4]
    assert all(alert.looked + alert.skipped == 15 for alert in alerts)
    session.close()


def test_with_hardly_any_time_hardly_anything_is_looked_at(engine: Engine) -> None:
    session = opened(engine, source=LiveWorld, alert_share=1e-6)
    alerts = [session.alert(IS_HEART), session.alert(IS_STAR)]
    watch(session)
    assert [(alert.looked, alert.skipped) for alert in alerts] == [(1, 14), (0, 15)]
    assert session.status().last_seconds == 59
    session.close()


def test_a_live_stream_that_is_behind_is_watched_and_not_looked_at(engine: Engine) -> None:
    session = opened(engine, source=LiveWorld, alert_share=1.0)
    alert = session.alert(IS_HEART)
    assert session.ingest
    session.ingest.pump(20)
    drain(session)
    assert session.memory.last_seconds == 19
    assert (alert.looked, alert.skipped) == (1, 4), "of five clips, the newest"
    session.close()


def test_a_stream_that_waits_is_looked_at_whatever_it_takes(engine: Engine) -> None:
    session = opened(engine, alert_share=1e-6)
    alert = session.alert(IS_HEART)
    assert session.ingest
    session.ingest.pump(20)
    drain(session)
    assert (alert.looked, alert.skipped) == (5, 0)
    session.close()


# Ending, and going on ---------------------------------------------------------------------------------------------


def test_a_cancelled_alert_looks_no_more_and_ends_its_event(engine: Engine) -> None:
    session, told = opened(engine), list[Event]()
    alert, other = session.alert(IS_HEART), session.alert(IS_STAR)
    alert.subscribe(told.append)
    watch(session, 16)
    alert.cancel()
    assert alert.cancelled
    assert session.alerts == (other,)
    drain(session)
    assert spans(told) == [(13.0, None), (13.0, 15.0)]
    watch(session)
    assert (alert.looked, other.looked) == (4, 15)
    assert len(alert.events) == 1
    session.close()


def test_who_listens_no_more_is_told_no_more(engine: Engine) -> None:
    session, told = opened(engine), list[Event]()
    alert = session.alert(IS_HEART)
    alert.subscribe(told.append)
    watch(session, 16)
    alert.unsubscribe(told.append)
    watch(session, 24)
    assert spans(told) == [(13.0, None)]
    with pytest.raises(ValueError, match="not in list"):
        alert.unsubscribe(told.append)
    session.close()


def test_closing_leaves_what_goes_on_as_it_is(engine: Engine) -> None:
    session = opened(engine)
    alert = session.alert(IS_HEART)
    watch(session, 16)
    session.close()
    assert spans(alert.events) == [(13.0, None)]
    assert alert.state()["event"]["id"] == alert.events[0].id
    with pytest.raises(RuntimeError, match="the session has ended"):
        session.alert(IS_STAR)


def test_a_resumed_stream_goes_on_with_its_events(engine: Engine, tmp_path: Path) -> None:
    whole = opened(engine)
    expected = whole.alert(IS_HEART)
    watch(whole)
    whole.close()

    def resumed() -> Session:
        source, settings = WorldSource(WORLD, side=96), {**engine.adapter.settings, "host_bytes": 1 << 24}
        return engine.open(source, memory=tmp_path / "memory", start=False, **settings)

    first = resumed()
    alert = first.alert(IS_HEART)
    watch(first, 16)
    first.close()
    state = json.loads(json.dumps(alert.state()))
    second = resumed()
    again = second.alert(IS_HEART)
    again.restore(state)
    watch(second)
    assert [(event.id, *span) for event, span in zip(again.events, spans(again.events), strict=True)] == [
        (event.id, *span) for event, span in zip(expected.events, spans(expected.events), strict=True)
    ]
    assert again.state() == expected.state()
    with pytest.raises(ValueError, match="give its own"):
        second.alert(IS_STAR).restore(state)
    second.close()


def test_what_cannot_be_asked_is_refused(engine: Engine, tmp_path: Path) -> None:
    session = opened(engine, max_question_tokens=12)
    with pytest.raises(ValueError, match="the question is empty"):
        session.alert("  ")
    with pytest.raises(ValueError, match="at most 12 fit"):
        session.alert("was there a red heart and then a blue star and then a green ring?")
    assert session.alerts == ()
    session.close()
    original = opened(engine, positions="original")
    with pytest.raises(ValueError, match="uses_memory needs positions='contiguous'"):
        original.alert(IS_HEART, AlertOptions(uses_memory=True))
    original.close()
    kept = engine.open(WorldSource(World(1, 8), side=96), memory=tmp_path / "memory", start=False)
    watch(kept)
    kept.close()
    alone = engine.open(None, memory=tmp_path / "memory", start=False)
    with pytest.raises(ValueError, match="give a source, not a memory alone"):
        alone.alert(IS_HEART)
    alone.close()
