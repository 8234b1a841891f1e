"""Calls from signal handlers, `__del__` and callbacks, at any moment; signals that end the process."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from harness import DEADLINE, eventually, first_is_quick, run, start, whose
from programs import reentrance

from letterapp import Letter, LetterError
from letterapp.testing import Hold, status


@pytest.mark.slow
def test_a_signal_handler_that_tracks_while_the_program_tracks(letter_api: Any, tmp_path: Path) -> None:
    finished = run(reentrance.handler_that_tracks, letter_api.url, tmp_path)
    assert finished.code == 0, finished
    program, handler = map(int, finished.output.split())
    came = whose(letter_api)
    assert came["program"] == list(range(program))
    # A handler may be interrupted by the next one between its call and its count: compare what came, not the order.
    assert sorted(came["handler"])[-1] <= handler and letter_api.repeated() == {}
    assert len([item for item in letter_api.events if item["userId"] == "handler"]) >= handler


def test_a_destructor_that_tracks_whenever_the_collector_runs(letter_api: Any, tmp_path: Path) -> None:
    finished = run(reentrance.destructor_that_tracks, letter_api.url, tmp_path)
    assert finished.code == 0, finished
    assert whose(letter_api)["program"] == list(range(3000))
    destructors = [item for item in letter_api.events if item["userId"] == "destructor"]
    assert len({item["messageId"] for item in destructors}) == 3000


def test_on_error_may_track_flush_and_close_on_the_senders_thread(letter_api: Any) -> None:
    answers: list[Any] = []

    def on_error(error: LetterError) -> None:
        letter.track("u", "from on_error")
        answers.append(letter.flush(DEADLINE))
        answers.append(letter.close(DEADLINE))

    letter_api.plan(status(400))
    letter: Letter = Letter("k", letter_api.url, on_error=on_error, flush_at=1)
    letter.track("u", "refused")
    assert letter_api.wait_for(1)
    assert answers == [False, False]  # the sender's thread cannot wait for itself
    assert letter.close() is True
    assert [item["event"] for item in letter_api.events] == ["from on_error"]


def test_on_error_may_flush_in_the_caller_of_a_refused_event(make: Any, letter_api: Any) -> None:
    answers: list[bool] = []
    letter: Letter = make(on_error=lambda error: answers.append(letter.flush()), flush_interval=30)
    letter.track("u", "good")
    letter.track("u", "bad", {"x": object()})
    assert answers == [True] and letter_api.distinct == 1


def test_an_on_error_that_raises_is_reported_and_survived(
    make: Any, letter_api: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    def on_error(error: LetterError) -> None:
        raise RuntimeError("of my own")

    letter_api.plan(status(400))
    letter = make(on_error=on_error, flush_at=1)
    letter.track("u", "refused")
    letter.flush()
    letter.track("u", "next")
    assert letter.flush() and letter_api.distinct == 1
    assert "on_error raised RuntimeError('of my own')" in capfd.readouterr().err


def test_a_call_after_close_is_reported_and_counted_and_never_raises(make: Any, errors: list[LetterError]) -> None:
    letter = make()
    letter.close()
    letter.track("u", "late")
    assert letter.stats()["lost"] == {"closed": 1} and letter.stats()["accepted"] == 1
    assert errors[0].cause == "closed" and errors[0].events[0]["event"] == "late"
    assert letter.close() is True and letter.flush() is True


# exit_signals


def test_sigterm_without_exit_signals_loses_waiting_events(letter_api: Any, tmp_path: Path) -> None:
    # What the option is for; should this fail one day, the option can go.
    with start(reentrance.terminated, letter_api.url, tmp_path, "none") as program:
        assert eventually(lambda: program.output, lambda text: "tracked" in text)
        program.signal(signal.SIGTERM)
        assert program.finish().code == -signal.SIGTERM
    assert whose(letter_api) == {}


def test_with_exit_signals_waiting_events_are_sent_and_the_signal_still_ends_the_process(
    letter_api: Any, tmp_path: Path
) -> None:
    with start(reentrance.terminated, letter_api.url, tmp_path, "SIGTERM") as program:
        assert eventually(lambda: program.output, lambda text: "tracked" in text)
        program.signal(signal.SIGTERM)
        assert program.finish().code == -signal.SIGTERM
    assert whose(letter_api) == {"program": list(range(100))}


@first_is_quick("attempt", range(4))
def test_the_signal_may_come_in_the_middle_of_any_call(attempt: int, letter_api: Any, tmp_path: Path) -> None:
    book = tmp_path / "book"
    with start(reentrance.terminated_in_a_call, letter_api.url, tmp_path, book) as program:
        assert eventually(lambda: program.output, lambda text: "tracking" in text)
        assert letter_api.wait_for(100 + 37 * attempt)
        program.signal(signal.SIGTERM)
        assert program.finish().code == -signal.SIGTERM
    last = int(book.read_text())
    came = whose(letter_api)["program"]
    assert came == list(range(len(came))) and last < len(came) <= last + 2


def test_a_signal_inside_the_queues_lock_is_handled_when_the_call_has_released_it(
    letter_api: Any, tmp_path: Path
) -> None:
    # The queue asks its clock under its lock, for the first event: there the signal comes.
    finished = run(reentrance.terminated_inside_the_lock, letter_api.url, tmp_path)
    assert finished.code == -signal.SIGTERM and finished.seconds < 30, finished
    assert whose(letter_api) == {"program": [0]}


def test_the_previous_handler_is_called_afterwards_and_the_program_may_continue(
    letter_api: Any, tmp_path: Path
) -> None:
    finished = run(reentrance.handler_before, letter_api.url, tmp_path)
    assert finished.output == "before 0\nafter 20\n", finished
    assert whose(letter_api) == {"program": list(range(20))}


def test_an_ignored_signal_stays_ignored(letter_api: Any, tmp_path: Path) -> None:
    assert run(reentrance.ignored_signal, letter_api.url, tmp_path).output == "alive 10\n"


def test_a_forked_child_keeps_its_exit_signals(letter_api: Any, tmp_path: Path) -> None:
    assert run(reentrance.child_terminated, letter_api.url, tmp_path).code == 0
    assert whose(letter_api) == {"child": list(range(10))}


def test_an_exit_while_the_api_is_silent_is_bounded_and_reported(letter_api: Any, tmp_path: Path) -> None:
    letter_api.rule = lambda request: Hold()
    finished = run(reentrance.terminated_with_the_api_silent, letter_api.url, tmp_path)
    letter_api.rule = None
    assert finished.code == -signal.SIGTERM and "10 events given up" in finished.output, finished


def test_an_event_tracked_inside_a_closed_queue_is_reported(
    make: Any, errors: list[LetterError], letter_api: Any
) -> None:
    # As a `__del__` may track it, in the middle of another call of a client that has been closed.
    letter = make()
    assert letter.close(DEADLINE)
    with letter._delivery._queue._lock:
        letter.track("u", "inside")
    letter.flush(DEADLINE)
    assert eventually(lambda: errors, bool)
    (error,) = errors
    assert error.cause == "closed" and [event["event"] for event in error.events] == ["inside"]
    assert letter.stats()["lost"] == {"closed": 1}


def test_an_event_tracked_inside_a_queue_without_a_slot_is_sent(make: Any, letter_api: Any) -> None:
    # Its slot was lost with the descriptor that locks it, as to a daemon that closes what it has inherited.
    letter = make(flush_interval=3600, exit_timeout=DEADLINE)
    letter.track("u", "before")
    assert letter.flush(DEADLINE)
    letter._delivery._queue._ring.slot.is_own = lambda: False
    with letter._delivery._queue._lock:
        letter.track("u", "inside")
    assert letter.flush(DEADLINE)
    assert [event["event"] for event in letter_api.events] == ["before", "inside"]
