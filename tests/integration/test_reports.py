"""What is reported to `on_error`, by which thread and when, and what is imported for it."""

from __future__ import annotations

import inspect
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from harness import DEADLINE, Program, environment, start
from programs import reports

from letterapp import LetterError
from letterapp._reporter import Reporter
from letterapp.testing import Hold, IngestionServer, status


def test_on_error_may_track(letter_api: IngestionServer, make: Any) -> None:
    letter_api.plan(status(400))
    letter: Any = make(on_error=lambda error: letter.track("u", "Reported", {"lost": error.lost}))
    letter.track("u", "E")
    assert letter_api.wait_for(1)
    assert [(item["event"], item["properties"]) for item in letter_api.events] == [("Reported", {"lost": 1})]


def test_flush_in_on_error_on_the_senders_thread_returns_at_once(letter_api: IngestionServer, make: Any) -> None:
    # With more events behind it, which only the thread that asks can send.
    answers: list[bool] = []
    hold = Hold(status(400))
    letter_api.plan(hold)
    letter: Any = make(flush_at=1, on_error=lambda error: answers.append(letter.flush(600)))
    letter.track("u", "Refused")
    assert hold.arrived.wait(DEADLINE)
    letter.track("u", "Behind it")
    hold.release()
    assert letter.flush(DEADLINE) is True
    assert answers == [False]
    assert [item["event"] for item in letter_api.events] == ["Behind it"]


def test_on_error_may_close_and_accepted_events_are_still_sent(letter_api: IngestionServer, make: Any) -> None:
    answers: list[bool] = []
    hold = Hold(status(400))
    letter_api.plan(hold)
    letter: Any = make(flush_at=1, on_error=lambda error: answers.append(letter.close(600)) if not answers else None)
    letter.track("u", "Refused")
    assert hold.arrived.wait(DEADLINE)
    letter.track("u", "Behind it")
    hold.release()
    assert letter_api.wait_for(1)
    assert letter.close(DEADLINE) is True
    assert answers == [False]
    assert [item["event"] for item in letter_api.events] == ["Behind it"]
    letter.track("u", "Too late")
    assert letter.stats()["lost"] == {"rejected": 1, "closed": 1}


@pytest.mark.parametrize("failure", [ValueError("mine"), LetterError("mine"), RecursionError("mine")])
def test_an_on_error_that_raises_is_reported_and_the_sender_continues(
    failure: Exception, letter_api: IngestionServer, make: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def on_error(error: LetterError) -> None:
        raise failure

    letter_api.plan(status(400))
    letter = make(on_error=on_error)
    for _ in range(2):
        letter.track("u", "E")
        assert letter.flush() is True
    assert letter_api.distinct == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "on_error raised" in line and "mine" in line and "answered 400" in line


@pytest.mark.parametrize(
    "body",
    [b"", b"one", b"two\nlines", b"two\r\nlines", b"a\rb\x0bc\x0cd", "a\u2028b\u0085c".encode(), b"\x1b[31mred\x1b[0m"],
)
def test_a_failure_is_one_line_on_stderr_by_default(
    body: bytes, letter_api: IngestionServer, make: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    letter_api.plan(status(400, body))
    letter = make(on_error=None)
    letter.track("u", "E")
    assert letter.flush() is True
    text = capsys.readouterr().err
    (line,) = text.splitlines()
    assert text.endswith("\n")
    assert line.startswith("letterapp: 1 event lost: the API answered 400: ")
    assert line.isprintable(), "an answer must not be able to steer a terminal"


def test_a_closed_or_missing_stderr_has_no_effect(
    letter_api: IngestionServer, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    letter = make(on_error=None)
    for stream in (None, object()):
        monkeypatch.setattr("sys.stderr", stream)
        letter_api.plan(status(400))
        letter.track("u", "E")
        assert letter.flush() is True
    letter.track("u", "E")
    assert letter.flush() is True
    assert letter_api.distinct == 1


def test_on_error_does_not_block_other_threads(letter_api: IngestionServer, make: Any) -> None:
    inside, leave = threading.Event(), threading.Event()

    def on_error(error: LetterError) -> None:
        inside.set()
        leave.wait(DEADLINE)

    letter_api.plan(status(400))
    letter = make(flush_at=1, on_error=on_error)
    letter.track("u", "Refused")
    assert inside.wait(DEADLINE)
    for _ in range(1000):
        letter.track("u", "E")
    assert letter.stats()["waiting"] == 1000
    assert "waiting=1,000" in repr(letter)
    assert letter.flush(0) is False
    leave.set()
    assert letter.flush(DEADLINE) is True
    assert letter_api.distinct == 1000


# Imports.

HEAVY = ["ssl", "http.client", "urllib.request", "json", "multiprocessing", "logging", "asyncio", "uuid"]


@pytest.mark.parametrize(
    "code, heavy",
    [
        ("import letterapp", HEAVY),
        (
            "import letterapp; letter = letterapp.Letter('k', API, flush_interval=600, flush_at=1000)\n"
            "letter.track('u', 'E', {'a': [1, 2.5, None, True, 'x']}); letter.identify('u'); letter.group('u', 'a')\n"
            "assert letter.stats()['waiting'] == 3",
            ["ssl", "http.client", "urllib.request"],
        ),
    ],
    ids=["the package", "a client that has sent nothing yet"],
)
def test_nothing_heavy_is_imported_by(code: str, heavy: list[str], letter_api: IngestionServer, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        f"import os, sys\nbefore = set(sys.modules)\nAPI = os.environ['TEST_API']\n{code}\n"
        f"print(sorted(set({heavy!r}) & (set(sys.modules) - before)), flush=True)\n"
    )
    with Program([sys.executable, str(script)], environment(letter_api.url), tmp_path) as program:
        finished = program.finish()
    assert (finished.code, finished.output) == (0, "[]\n"), finished


def test_a_failed_scan_for_orphans_has_no_other_effect(
    letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    def breaks() -> None:
        raise ZeroDivisionError("ours")

    one = driven()
    one.sender._recovery._backends.orphans = breaks
    for _ in range(3):
        one.track()
        one.settle()
        one.now += 10
    assert letter_api.distinct == 3
    assert ["ZeroDivisionError" in str(error) for error in errors] == [True], "said once"


# What `flush` and `close` answer.


def test_flush_is_true_when_all_was_delivered_or_reported(
    letter_api: IngestionServer, make: Any, errors: list[LetterError]
) -> None:
    letter_api.plan(status(401))
    letter = make()
    letter.track("u", "Refused")
    assert letter.flush(DEADLINE) is True
    assert (letter.stats()["waiting"], letter.stats()["lost"]) == (0, {"rejected": 1})
    assert [error.lost for error in errors] == [1], "reported by then"
    letter_api.plan(status(401))
    letter.track("u", "Refused too")
    assert letter.close(DEADLINE) is True and letter.close(DEADLINE) is True
    assert len(errors) == 2


@pytest.mark.parametrize("again", ["close", "with", "flush"])
def test_a_close_that_gave_up_events_is_false_and_so_is_each_later_one(
    again: str, letter_api: IngestionServer, make: Any, errors: list[LetterError]
) -> None:
    hold = Hold()
    letter_api.plan(hold)
    letter = make(flush_at=1)
    for _ in range(20):
        letter.track("u", "E")
    assert hold.arrived.wait(DEADLINE)
    assert letter.flush(0) is False
    assert letter.close(0) is False
    assert letter.stats()["lost"] == {"closed": 20} and [error.lost for error in errors] == [20]
    hold.release()
    if again == "with":
        with letter:
            pass
    if again == "flush":
        assert letter.flush(DEADLINE) is True, "nothing waits"
    for _ in range(2):
        assert letter.close(DEADLINE) is False
    assert sum(letter.stats()["lost"].values()) == 20


def test_with_a_spool_a_later_close_is_true_when_the_rest_is_delivered(
    letter_api: IngestionServer, make: Any, errors: list[LetterError], tmp_path: Path
) -> None:
    hold = Hold()
    letter_api.plan(hold)
    letter = make(flush_at=1, spool=tmp_path / "spool")
    letter.track("u", "E")
    assert hold.arrived.wait(DEADLINE)
    assert letter.close(0) is False
    hold.release()
    assert letter_api.wait_for(1)
    assert letter.close(DEADLINE) is True
    assert letter.stats()["lost"] == {} and errors == []


def test_the_result_of_a_childs_close_concerns_only_the_child(letter_api: IngestionServer, tmp_path: Path) -> None:
    hold = Hold()
    letter_api.rule = lambda request: hold
    with start(reports.close_in_a_child, letter_api.url, tmp_path) as program:
        assert hold.arrived.wait(DEADLINE)
        (tmp_path / "arrived").touch()
        assert program.finish().code == 0
    hold.release()


# An `on_error` that tracks.


def own_lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if "(tracked by on_error itself)" in line]


REFUSED: dict[str, Any] = {
    "closed": lambda letter: letter.track("u", "Lost", {"n": 1}),
    "invalid": lambda letter: letter.track("u", "Lost", {"n": object()}),
}


@pytest.mark.parametrize("cause", REFUSED)
@pytest.mark.parametrize("times", [1, 2, 7])
def test_an_event_of_on_error_that_is_lost_at_once_is_printed_and_not_reported(
    times: int, cause: str, letter_api: IngestionServer, make: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    reported: list[LetterError] = []
    depths: list[int] = []

    def on_error(error: LetterError) -> None:
        reported.append(error)
        for _ in range(times):
            REFUSED[cause](letter)
        depths.append(sum(frame.function == "on_error" for frame in inspect.stack(0)))

    letter = make(on_error=on_error)
    letter.close()
    for _ in range(3):
        REFUSED[cause](letter)
    assert [error.cause for error in reported] == [cause] * 3 and depths == [1] * 3
    assert letter.stats()["lost"] == {cause: 3 + 3 * times}
    assert len(own_lines(capsys)) == 3 * times


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("options", [{}, {"flush_at": 1, "flush_interval": 0}], ids=["batches", "one by one"])
def test_an_event_of_on_error_that_is_lost_later_is_not_reported_either(
    options: dict[str, Any], times: int, letter_api: IngestionServer, make: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    reported: list[LetterError] = []

    def on_error(error: LetterError) -> None:
        reported.append(error)
        for _ in range(times):
            letter.track("u", "Lost", {"of": error.lost})

    letter_api.rule = lambda request: status(401)
    letter = make(on_error=on_error, **options)
    for _ in range(3):
        letter.track("u", "E")
        while letter.stats()["waiting"]:  # `flush` alone would not wait for what comes meanwhile
            assert letter.flush(DEADLINE)
    assert sum(error.lost for error in reported) == 3
    assert letter.stats()["lost"] == {"rejected": 3 + times * len(reported)}
    assert own_lines(capsys)


def test_an_on_error_that_tracks_does_not_prevent_a_program_from_ending(
    letter_api: IngestionServer, tmp_path: Path
) -> None:
    letter_api.rule = lambda request: status(401)
    with start(reports.report_that_tracks, letter_api.url, tmp_path) as program:
        finished = program.finish()
    assert finished.code == 0
    assert len(letter_api.requests) <= 10, "and the API not from anything else"


def test_events_of_others_that_on_error_s_close_gives_up_are_reported(letter_api: IngestionServer, make: Any) -> None:
    reported: list[Any] = []

    def on_error(error: LetterError) -> None:
        reported.append((error.cause, error.lost))
        letter.track("u", "Lost")
        letter.close(0)

    hold = Hold()
    letter_api.rule = lambda request: hold
    letter = make(on_error=on_error, flush_interval=600)
    for _ in range(5):
        letter.track("u", "E")
    letter.track("u", "E", {"n": object()})
    assert reported == [("invalid", 1), ("closed", 6)]  # with the one that it had tracked
    assert letter.stats()["waiting"] == 0
    hold.release()


def test_losses_of_another_thread_during_on_error_are_reported(letter_api: IngestionServer, make: Any) -> None:
    inside, leave = threading.Event(), threading.Event()
    reported: list[str] = []

    def on_error(error: LetterError) -> None:
        reported.append(error.events[0]["event"])
        if reported == ["First"]:
            inside.set()
            leave.wait(DEADLINE)

    letter = make(on_error=on_error)
    letter.close()
    other = threading.Thread(target=letter.track, args=("u", "First"))
    other.start()
    assert inside.wait(DEADLINE)
    letter.track("u", "Second")
    leave.set()
    other.join(DEADLINE)
    letter.track("u", "Third")
    assert reported == ["First", "Second", "Third"]


def test_two_clients_that_report_to_each_other_terminate(letter_api: IngestionServer, make: Any) -> None:
    first: Any = make(on_error=lambda error: second.track("u", "Lost by the first"))
    second: Any = make(on_error=lambda error: first.track("u", "Lost by the second"))
    first.close()
    second.close()
    first.track("u", "E")
    assert first.stats()["lost"] == {"closed": 2} and second.stats()["lost"] == {"closed": 1}


def test_a_child_that_is_forked_in_on_error_reports_its_own(letter_api: IngestionServer, tmp_path: Path) -> None:
    with start(reports.fork_in_on_error, letter_api.url, tmp_path) as program:
        finished = program.finish()
    assert finished.code == 0, finished
    assert finished.output.splitlines() == ["True First", "False Of the child", "True Second"]
    assert letter_api.distinct == 1


def test_events_tracked_by_on_error_are_forgotten_eventually(letter_api: IngestionServer) -> None:
    calls = 0

    def on_error(error: LetterError) -> None:
        nonlocal calls
        calls += 1
        for serial in range(25_000):
            reporter.note(b"%d" % serial)

    reporter = Reporter(on_error)
    reporter(LetterError("a", events=[b"real"]))
    reporter(LetterError("b", events=[b"24999", b"15001"]))
    assert calls == 1
    assert len(reporter._own) <= 20_000


@pytest.mark.usefixtures("without_collection")
def test_reporting_an_invalid_event_raises_nothing() -> None:
    deep = b"[" * 100_000
    error = LetterError("lost", events=[b"{", b"[1]", b"\xff", deep, b'{"userId":"u"}', {"userId": "v"}])
    assert error.events == [{"userId": "u"}, {"userId": "v"}] and error.lost == 6
