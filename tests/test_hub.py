"""Streams and memories by id, as page and API use them: the real `tiny`, real files, no HTTP."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from serving import make_hub, write_video

from vstream.app.serve.busy import BusyError
from vstream.app.serve.hub import PUSH, Hub, OpenAlreadyError
from vstream.app.serve.library import CARD, UnknownStreamError, without_folders

ANSWER_SECONDS = 60


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_video(tmp_path / "clip.mp4")


@pytest.fixture
def hub(tmp_path: Path):
    hub = make_hub(tmp_path / "memories")
    yield hub
    hub.close()


def answered(turn) -> str:
    return turn.answer.text(ANSWER_SECONDS)


def test_a_file_is_watched_asked_and_seen(hub: Hub, video: Path) -> None:
    stream = hub.open(str(video))
    assert answered(stream.ask("what is there now?"))
    assert stream.card.title == "clip.mp4"
    assert stream.state == "over"
    assert stream.file == video
    assert [turn.number for turn in stream.turns] == [1]
    spans = stream.spans()
    assert spans[0].start_seconds == 0.0
    assert spans[-1].end_seconds == pytest.approx(11.0)
    jpeg, seconds = stream.picture(5.0)
    assert jpeg[:2] == b"\xff\xd8"
    assert abs(seconds - 5.0) <= 4
    assert stream.view.newest() is not None


def test_what_is_kept_is_resumed_with_its_conversation(hub: Hub, video: Path, tmp_path: Path) -> None:
    stream = hub.open(str(video), kept=True, title="A door")
    said = answered(stream.ask("what is there now?"))
    hub.close_stream(stream.id)
    assert [(kept.card.title, kept.turns) for kept in hub.memories()] == [("A door", 1)]
    with pytest.raises(UnknownStreamError, match="no open stream"):
        hub.stream(stream.id)
    again = hub.resume(stream.id)
    assert again.id == stream.id
    assert [(turn.answer.question, turn.answer.text_so_far) for turn in again.turns] == [("what is there now?", said)]
    earlier = again.turns[0].answer
    assert earlier.ttft_seconds is None
    assert all(one.level and one.picture_seconds is not None for one in earlier.evidence)
    assert answered(again.ask("what is there now?")) == said
    assert [turn.number for turn in again.turns] == [1, 2]


def test_a_memory_whose_source_is_gone_is_asked_alone(hub: Hub, video: Path) -> None:
    stream = hub.open(str(video), kept=True)
    said = answered(stream.ask("what is there now?"))
    hub.close_stream(stream.id)
    video.unlink()
    again = hub.resume(stream.id)
    assert again.state == "memory"
    assert "clip.mp4" in again.note
    assert answered(again.ask("what is there now?")) == said


def test_what_is_not_kept_goes_with_its_stream(hub: Hub, video: Path, tmp_path: Path) -> None:
    stream = hub.open(str(video))
    answered(stream.ask("what is there now?"))
    folder = tmp_path / "memories" / stream.id
    assert folder.exists()
    hub.close_stream(stream.id)
    assert not folder.exists()
    assert hub.memories() == []


def test_a_stream_may_be_saved_and_renamed_while_it_is_watched(hub: Hub, video: Path) -> None:
    stream = hub.open(str(video))
    hub.keep(stream.id)
    hub.rename(stream.id, "  Front \n door ")
    answered(stream.ask("what is there now?"))
    assert stream.card.title == "Front door"
    hub.close_stream(stream.id)
    assert [kept.card.title for kept in hub.memories()] == ["Front door"]
    hub.delete(stream.id)
    assert hub.memories() == []


def test_the_server_may_stop_at_any_time_and_nothing_is_lost(video: Path, tmp_path: Path) -> None:
    hub = make_hub(tmp_path / "memories")
    stream = hub.open(str(video))
    answered(stream.ask("what is there now?"))
    hub.close()
    hub = make_hub(tmp_path / "memories")
    try:
        assert [kept.card.id for kept in hub.memories()] == [stream.id]
        assert len(hub.resume(stream.id).turns) == 1
    finally:
        hub.close()


def test_pushed_frames_are_watched(hub: Hub) -> None:
    stream = hub.open(PUSH, title="mine", kept=True)
    for second in range(8):
        stream.source.push(np.full((64, 96, 3), 20 * second, np.uint8), float(second))
    assert answered(stream.ask("what is there now?"))
    assert stream.is_live
    hub.close_stream(stream.id)
    assert hub.resume(stream.id).state == "memory"


def test_a_long_conversation_holds_the_pictures_of_its_latest_turns(hub: Hub, video: Path, monkeypatch) -> None:
    monkeypatch.setattr("vstream.app.serve.stream.PICTURED_TURNS", 2)
    stream = hub.open(str(video))
    for _ in range(4):
        answered(stream.ask("what is there now?"))
    pictured = [[bool(one.picture) for one in turn.answer.evidence] for turn in stream.turns]
    assert not any(pictured[0] + pictured[1])
    assert all(pictured[2] + pictured[3])
    assert all(turn.answer.evidence for turn in stream.turns)


def test_no_card_holds_a_password(hub: Hub, tmp_path: Path) -> None:
    stream = hub.open("rtsp://me:hunter2@127.0.0.1:9/door", kept=True)
    written = (tmp_path / "memories" / stream.id / CARD).read_text()
    assert "hunter2" not in written
    assert json.loads(written)["reopens"] is False
    assert "hunter2" not in stream.card.title


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"preset": "oracle"}, "a preset must be one of"),
        ({"model": "nonsense"}, "model must be one of tiny"),
        ({"title": " "}, "a title has 1 to 100"),
        ({"fps": -1.0}, "fps must be"),
    ],
)
def test_bad_settings_are_refused_and_leave_nothing(hub: Hub, video: Path, tmp_path: Path, wrong, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        hub.open(str(video), **{"title": None, **wrong})
    assert hub.streams() == []
    assert list((tmp_path / "memories").iterdir()) == []


def test_no_more_streams_than_there_is_room_for(video: Path, tmp_path: Path) -> None:
    hub = make_hub(tmp_path / "memories", max_streams=1)
    first = hub.open(str(video))
    with pytest.raises(BusyError, match="close one first"):
        hub.open(str(video))
    hub.close_stream(first.id)
    hub.open(str(video))
    hub.close()


def test_ids_are_no_paths(hub: Hub) -> None:
    for wrong in ("..", "../../etc", "", "a" * 12 + "/", "ABCDEF012345"):
        with pytest.raises(UnknownStreamError):
            hub.resume(wrong)
        with pytest.raises(UnknownStreamError):
            hub.delete(wrong)


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage", ["{", '{"title": 5}', '{"created": "x"}', '{"created": 5}', '{"fps": "a"}', '{"kept": "x"}', "[]"]
)
def test_a_damaged_card_hides_one_memory_and_no_other(hub: Hub, video: Path, tmp_path: Path, damage: str) -> None:
    for _ in range(2):
        stream = hub.open(str(video), kept=True)
        answered(stream.ask("what is there now?"))
        hub.close_stream(stream.id)
    card = tmp_path / "memories" / stream.id / CARD
    whole = damage.startswith('{"')
    card.write_text(json.dumps(json.loads(card.read_text()) | json.loads(damage)) if whole else damage)
    assert len(hub.memories()) == 1
    with pytest.raises(UnknownStreamError):
        hub.resume(stream.id)


def test_open_memories_are_not_opened_twice(hub: Hub, video: Path) -> None:
    stream = hub.open(str(video), kept=True)
    with pytest.raises(OpenAlreadyError, match="open already"):
        hub.resume(stream.id)


def test_listeners_are_told_of_the_end_and_after_unsubscribing_of_nothing(hub: Hub, video: Path) -> None:
    stream, heard, silent = hub.open(str(video)), threading.Event(), threading.Event()
    answer = stream.ask("what is there now?", at=6.0).answer
    answer.subscribe(silent.set)
    answer.unsubscribe(silent.set)
    answer.subscribe(heard.set)
    assert heard.wait(ANSWER_SECONDS)
    assert answer.wait(ANSWER_SECONDS)
    assert not silent.is_set()


def test_what_is_kept_while_a_stream_is_opened_stays_kept(hub: Hub, video: Path) -> None:
    """Resuming reads the card first; whoever changes it meanwhile must not be overheard."""
    stream = hub.open(str(video))
    answered(stream.ask("what is there now?"))
    hub.close()
    again = make_hub(video.parent / "memories")
    try:
        session = again._session

        def slow_session(*arguments, **more):
            again.keep(stream.id)
            again.rename(stream.id, "Renamed meanwhile")
            return session(*arguments, **more)

        again._session = slow_session
        assert again.resume(stream.id).card.title == "Renamed meanwhile"
        again.close_stream(stream.id)
        assert [one.card.kept for one in again.memories()] == [True]
    finally:
        again.close()


def test_nobody_opens_changes_or_deletes_what_is_being_closed(hub: Hub, video: Path) -> None:
    """A stream that was resumed in that moment would lose its memory under its feet."""
    stream = hub.open(str(video))
    answered(stream.ask("what is there now?"))
    close, refused = stream.session.close, []

    def slow_close() -> None:
        stream.session.close = close
        close()
        for change in (hub.resume, hub.keep, hub.delete):
            with pytest.raises(OpenAlreadyError, match="is being closed") as caught:
                change(stream.id)
            refused.append(caught.value)
        with pytest.raises(UnknownStreamError):
            hub.close_stream(stream.id)

    stream.session.close = slow_close
    hub.close_stream(stream.id)
    assert len(refused) == 3
    assert hub.memories() == []


def test_changes_at_once_are_all_made(hub: Hub, video: Path) -> None:
    stream = hub.open(str(video))
    for number in range(40):
        hub.keep(stream.id, False)
        threads = [
            threading.Thread(target=hub.keep, args=(stream.id,)),
            threading.Thread(target=hub.rename, args=(stream.id, f"Title {number}")),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (stream.card.kept, stream.card.title) == (True, f"Title {number}")


def test_a_memory_that_another_server_has_open_is_not_deleted(hub: Hub, video: Path, tmp_path: Path) -> None:
    stream = hub.open(str(video), kept=True)
    said = answered(stream.ask("what is there now?"))
    other = make_hub(tmp_path / "memories")
    for change in (other.delete, other.resume):
        with pytest.raises(BlockingIOError, match="another process"):
            change(stream.id)
    assert answered(stream.ask("what is there now?")) == said
    hub.close_stream(stream.id)
    other.delete(stream.id)
    assert hub.memories() == []


def test_long_names_of_sources_make_titles(hub: Hub, tmp_path: Path) -> None:
    stream = hub.open(str(write_video(tmp_path / f"{'long' * 40}.mp4", seconds=1)))
    assert len(stream.card.title) == 100
    assert stream.card.title.endswith("…")


@pytest.mark.parametrize(
    ("question", "sentence"), [("what " * 5000, "may have 20000 characters"), ("what \ud83d?", "half of a character")]
)
def test_questions_that_no_model_can_read_are_refused(hub: Hub, video: Path, question: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        hub.open(str(video)).ask(question)


def test_strangers_are_not_told_where_memories_lie() -> None:
    where = "/home/me/my videos/memories/streams/0123456789ab/memory"
    told = without_folders(f"could not write to the memory in {where} (5/7 left), nor '{where}/data.mdb'")
    assert told == "could not write to the memory in 0123456789ab (5/7 left), nor '0123456789ab/data.mdb'"
    assert without_folders("the file /videos/a.mp4 and/or 1/2") == "the file /videos/a.mp4 and/or 1/2"
