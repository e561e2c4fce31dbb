"""Answers, written by one thread and read by many."""

import threading
import time

import pytest

from vstream.answer import Answer, Evidence
from vstream.types import format_seconds


def reader(read):
    """A thread that reads; what it got, or the error it got, is in `.result`."""

    def run():
        try:
            thread.result = read()
        except Exception as error:
            thread.result = error

    thread = threading.Thread(target=run, daemon=True)
    thread.result = None
    thread.start()
    return thread


def joined(threads):
    for thread in threads:
        thread.join(timeout=10)
        assert not thread.is_alive(), "a reader still waits"
    return [thread.result for thread in threads]


def finished(*pieces, reason="stop"):
    answer = Answer("what?", 1.0)
    for count, piece in enumerate(pieces, start=1):
        answer.add(piece, num_tokens=count)
    answer.finish(reason)
    return answer


def test_many_readers_get_the_same_pieces():
    """Some start before the first piece, some in the middle, some after the end."""
    answer, pieces = Answer("what?", 1.0), [f"{i} " for i in range(200)]
    threads = [reader(lambda: list(answer)) for _ in range(4)] + [reader(answer.text)]
    for count, piece in enumerate(pieces, start=1):
        answer.add(piece, num_tokens=count)
        if count % 50 == 0:
            threads.append(reader(lambda: list(answer)))
            time.sleep(0.001)
    answer.finish("length")
    threads.append(reader(lambda: list(answer)))
    results = joined(threads)
    assert results.pop(4) == "".join(pieces)
    assert results == [pieces] * len(results)


def test_pieces_are_there_before_the_end():
    answer = Answer("what?", 1.0)
    stream = iter(answer)
    answer.add("a", num_tokens=1)
    assert next(stream) == "a"
    answer.add("b", num_tokens=2)
    assert next(stream) == "b"
    answer.finish("stop")
    assert list(stream) == []
    assert list(answer) == ["a", "b"], "reading does not use it up"


def test_empty_pieces_are_not_read():
    assert list(finished("", "a", "", "b", "")) == ["a", "b"]


def test_an_answer_without_text_is_empty():
    answer = finished()
    assert list(answer) == []
    assert answer.text() == ""
    assert answer.ttft_seconds is None


def test_text_does_not_wait_for_ever():
    answer = Answer("where is it?", 1.0)
    answer.add("half", num_tokens=1)
    with pytest.raises(TimeoutError, match=r"no answer within 0\.01 s to 'where is it\?'"):
        answer.text(timeout_seconds=0.01)
    assert not answer.wait(0)
    answer.finish("stop")
    assert answer.wait(0)
    assert answer.text(timeout_seconds=0) == "half"


def test_an_error_reaches_every_reader_after_the_text():
    answer, error = Answer("what?", 1.0), RuntimeError("the memory is damaged")
    read = []

    def follow():
        for piece in answer:
            read.append(piece)

    threads = [reader(follow), reader(answer.text), reader(lambda: answer.text(timeout_seconds=5))]
    answer.add("so far", num_tokens=1)
    answer.fail(error)
    assert joined(threads) == [error] * 3
    assert read == ["so far"]
    for _ in range(2):
        with pytest.raises(RuntimeError, match="damaged"):
            answer.text()
    assert (answer.error, answer.done, answer.finish_reason) == (error, True, None)


def test_waiting_for_a_failed_answer_ends():
    answer = Answer("what?", 1.0)
    thread = reader(answer.wait)
    answer.fail(ValueError("no"))
    assert joined([thread]) == [True]


def test_the_first_end_counts():
    answer = finished("a")
    answer.fail(RuntimeError("too late"))
    answer.finish("cancelled")
    assert (answer.error, answer.finish_reason, answer.text()) == (None, "stop", "a")
    failed = Answer("what?", 1.0)
    failed.fail(RuntimeError("first"))
    failed.finish("stop")
    failed.fail(RuntimeError("second"))
    assert failed.finish_reason is None
    with pytest.raises(RuntimeError, match="first"):
        failed.text()


def test_cancel_is_a_wish_until_it_is_ended():
    answer = Answer("what?", 1.0)
    thread = reader(lambda: list(answer))
    answer.add("a", num_tokens=1)
    answer.cancel()
    answer.cancel()
    assert answer.cancelled
    assert not answer.done
    answer.finish("cancelled")
    assert joined([thread]) == [["a"]]
    assert answer.finish_reason == "cancelled"


def test_cancel_after_the_end_changes_nothing():
    answer = finished("a")
    answer.cancel()
    assert (answer.finish_reason, answer.text()) == ("stop", "a")


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests move by hand."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_time_to_the_first_token(clock):
    answer = Answer("what?", 1.0)
    assert answer.ttft_seconds is None
    clock[0] = 100.5
    answer.add("", num_tokens=1)
    clock[0] = 103.0
    answer.add("text", num_tokens=2)
    assert answer.ttft_seconds == 0.5, "the first token counts, though its text came later"


def test_the_clock_starts_when_a_question_is_due(clock):
    answer = Answer("what?", 60.0)
    clock[0] = 160.0
    answer.mark_received()
    clock[0] = 160.25
    answer.add("a", num_tokens=1)
    assert answer.ttft_seconds == 0.25


def test_speed_is_counted_after_the_first_token(clock):
    answer = Answer("what?", 1.0)
    clock[0] = 130.0
    answer.add("a", num_tokens=1)
    for count in range(2, 6):
        clock[0] += 0.5
        answer.add("b", num_tokens=count)
    assert answer.tokens_per_second is None, "it is not over"
    answer.finish("length")
    clock[0] = 999.0
    assert answer.tokens_per_second == 2.0


@pytest.mark.parametrize("count", [0, 1])
def test_no_speed_for_fewer_than_two_tokens(count, clock):
    answer = Answer("what?", 1.0)
    answer.add("Nothing has been seen yet.", num_tokens=count)
    clock[0] += 1
    answer.finish("nothing-seen")
    assert answer.tokens_per_second is None


def test_a_failed_answer_has_no_first_token(clock):
    answer = Answer("what?", 1.0)
    answer.fail(RuntimeError("no"))
    assert answer.ttft_seconds is None
    assert answer.tokens_per_second is None


def test_repr_says_how_it_stands():
    answer = Answer("what?", None)
    assert repr(answer) == "Answer('what?', running, 0 tokens)"
    assert repr(finished("a")) == "Answer('what?', stop, 1 tokens)"
    answer.fail(RuntimeError("no"))
    assert repr(answer) == "Answer('what?', failed, 0 tokens)"


def test_evidence_shows_sizes_not_pictures():
    evidence = Evidence(61.0, 75.5, 0.25, "detail", 7, bytes(1234), 62.0)
    assert repr(evidence) == "Evidence(01:01-01:15, score 0.250, detail, picture 1234 bytes)"
    assert format_seconds(61.0) == "01:01"
