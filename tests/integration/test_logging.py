"""The logger `letterapp` and ``LETTER_DEBUG``: what is logged, and handlers that do what handlers should not."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable

import pytest
from harness import DEADLINE, eventually, run, start
from logged import (  # noqa: F401  (a fixture)
    Listener,
    fresh_log,
    listening,
)
from programs import logs

from letterapp import Letter, LetterError, _log
from letterapp.testing import IngestionServer, reset, status

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def delivered(lines: list[str]) -> int:
    """How many events the ``lines`` say were delivered."""
    return sum(int(found) for line in lines for found in re.findall(r", (\d+) events?: delivered", line))


# What is logged.


def test_each_batch_and_each_retry_is_a_line(letter_api: IngestionServer, make: Any, listener: Listener) -> None:
    letter_api.plan(reset(), status(503))
    letter = make()
    for _ in range(130):
        letter.track("u", "E")
    assert letter.flush(DEADLINE)
    lines = listener.lines()
    assert delivered(lines) == 130
    assert sum("delivered" in line for line in lines) == len(letter_api.requests) - 2
    (refused,) = [line for line in lines if "(status 503)" in line]
    (no_response,) = [line for line in lines if "(no response)" in line]
    assert "try 1 failed" in no_response and "try 2 failed" in refused
    assert [line for line in lines if "batch" not in line] == []


def test_a_batch_that_is_split_says_so(letter_api: IngestionServer, make: Any, listener: Listener) -> None:
    letter_api.plan(status(413))
    letter = make(flush_interval=1000)
    for _ in range(10):
        letter.track("u", "E")
    assert letter.flush(DEADLINE)
    assert ["two parts (status 413)" in line for line in listener.lines()] == [True, False, False]
    assert delivered(listener.lines()) == 10


def test_neither_the_key_nor_contents_are_logged(letter_api: IngestionServer, make: Any, listener: Listener) -> None:
    letter_api.plan(status(503, b"ada@example.com"), status(422, b'{"error":{"message":"ada@example.com"}}'))
    letter = make(api_key="lt_live_the_key")
    letter.track("ada@example.com", "Ordered", {"what": "a secret"})
    assert letter.flush(DEADLINE)
    letter.identify("ada@example.com", traits={"what": object()})
    letter.close()
    letter.track("ada@example.com", "Ordered", {"what": "a secret"})
    text = "\n".join(listener.lines() + listener.lines(logging.WARNING))
    assert "status 422" in text and "lost (closed)" in text
    assert not re.search("ada|Ordered|secret|the_key|127.0.0.1", text), text


def test_a_burst_of_losses_is_one_warning(letter_api: IngestionServer, make: Any, listener: Listener) -> None:
    letter = make(flush_at=1)
    for _ in range(5):
        letter_api.plan(status(400))
        letter.track("u", "E")
        assert letter.flush(DEADLINE)
    assert listener.lines(logging.WARNING) == ["1 event lost (rejected)"]
    letter.track("u", "E", {"bad": object()})  # another cause
    assert listener.lines(logging.WARNING)[1:] == ["1 event lost (invalid)"]
    letter.close()  # nothing is left uncounted
    assert listener.lines(logging.WARNING)[2:] == ["4 events lost (rejected)"]
    assert letter.stats()["lost"] == {"rejected": 5, "invalid": 1}


def test_the_losses_of_a_burst_are_logged_when_it_is_over(
    letter_api: IngestionServer, make: Any, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(_log, "monotonic", lambda: now)
    letter = make(flush_at=1)
    for seconds in (0.0, 1.0, 1.0, _log.BURST):
        now += seconds
        letter_api.plan(status(400))
        letter.track("u", "E")
        assert letter.flush(DEADLINE)
    assert listener.lines(logging.WARNING) == ["1 event lost (rejected)", "3 events lost (rejected)"]


def test_the_losses_of_a_burst_are_logged_when_the_thread_stops(
    letter_api: IngestionServer, make: Any, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letterapp._delivery.worker.IDLE", 0.2)
    monkeypatch.setattr(_log, "BURST", 0.2)
    letter_api.plan(status(400), status(400))
    letter = make(flush_at=1)
    letter.track("u", "E")
    assert eventually(lambda: letter.stats()["lost"], bool) == {"rejected": 1}
    letter.track("u", "E")
    wanted = {"1 event lost (rejected)"}
    seen = eventually(lambda: listener.lines(logging.WARNING), lambda lines: len(lines) == 2)
    assert set(seen) == wanted and len(seen) == 2


def test_a_report_that_is_no_loss_is_a_line_without_its_text(make: Any, listener: Listener) -> None:
    letter = make()
    letter._delivery.reporter(LetterError("the API answered 401: ada", 401, cause="degraded"))
    assert letter.flush()
    assert listener.lines() == ["reported: degraded (status 401)"] and not listener.lines(logging.WARNING)


@needs_fork
def test_events_that_are_taken_over_are_a_line(letter_api: IngestionServer, tmp_path: Path) -> None:
    finished = run(logs.takes_over, letter_api.url, tmp_path)
    assert finished.output == "['taken over: 7 events of an ended process (shared)']\n", finished
    assert letter_api.distinct == 7


def test_the_first_lines_of_two_threads_are_both_logged(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both find that this process has logged nothing so far."""
    both = threading.Barrier(2)

    class Slow(_log._Pending):
        def __init__(self) -> None:
            super().__init__()
            both.wait(DEADLINE)

    monkeypatch.setattr(_log, "_Pending", Slow)
    threads = [threading.Thread(target=_log.note, args=(f"line {number}",)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    _log.emit()
    assert sorted(listener.lines()) == ["line 0", "line 1"]


# Who listens.


def test_nothing_imports_logging(letter_api: IngestionServer, tmp_path: Path) -> None:
    assert run(logs.not_imported, letter_api.url, tmp_path).output == "False\n"


def test_nothing_is_printed_where_nobody_has_configured_logging(letter_api: IngestionServer, tmp_path: Path) -> None:
    assert run(logs.nobody_listens, letter_api.url, tmp_path).output == ""


def test_the_logger_has_a_null_handler_and_no_level(make: Any) -> None:
    logger = logging.getLogger("letterapp")
    letter = make()
    letter.close()
    letter.track("u", "E")
    assert [type(handler) for handler in logger.handlers] == [logging.NullHandler]
    assert logger.level == logging.NOTSET and logger.propagate


def test_lines_that_nobody_wants_are_neither_kept_nor_passed_on(
    letter_api: IngestionServer, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[object] = []
    monkeypatch.setattr(_log, "_pass_on", lambda *given: passed.append(given))
    letter = make()
    for _ in range(3):
        letter.track("u", "E")
        assert letter.flush(DEADLINE)
    assert _log._pending is not None and len(_log._pending.lines) == 0 and not passed


def test_letter_debug_prints_the_same_to_stderr(letter_api: IngestionServer, tmp_path: Path) -> None:
    with start(logs.printed, letter_api.url, tmp_path, LETTER_DEBUG="1") as program:
        finished = program.finish()
    lines = finished.output.splitlines()
    beginning = rf"\d\d:\d\d:\d\d\.\d{{3}}Z letterapp\[{program.pid}\] "
    assert re.fullmatch(beginning + r"DEBUG batch 1, 1 event: delivered in \d+\.\d{3} s \(status 200\)", lines[0])
    assert re.fullmatch(beginning + r"WARNING 1 event lost \(invalid\)", lines[1])
    assert len(lines) == 2 and "the_key" not in finished.output
    assert run(logs.printed, letter_api.url, tmp_path, LETTER_DEBUG="0").output == ""


@pytest.mark.parametrize("imports_late", ["", "late"])
def test_what_the_end_of_a_process_sends_is_logged(
    imports_late: str, letter_api: IngestionServer, tmp_path: Path
) -> None:
    file = tmp_path / "log"
    finished = run(logs.until_the_end, letter_api.url, tmp_path, file, imports_late)
    assert (finished.code, finished.output) == (0, ""), finished
    assert letter_api.distinct == 3
    if not imports_late:  # else Python has closed the file by then
        assert delivered(file.read_text().splitlines()) == 3


# Handlers that do what handlers should not.


def test_a_handler_that_tracks_does_not_loop(letter_api: IngestionServer, make: Any, listener: Listener) -> None:
    letter = make(flush_at=1)
    listener.act = lambda: letter.track("handler", "Logged")
    letter.track("u", "E")
    counts = []
    for _ in range(12):
        assert letter.flush(DEADLINE)
        counts.append(len(listener.records))
    assert counts[-1] == counts[-6] <= 3, counts  # the first event of a handler may be logged once
    assert letter.stats()["lost"] == {} and letter_api.distinct == 1 + counts[-1]


def test_a_handler_whose_events_are_lost_does_not_loop(
    make: Any, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_log, "BURST", 0.0)
    letter = make()
    listener.act = lambda: letter.track("handler", "Logged")
    letter.close()
    letter.track("u", "E")
    counts = []
    for _ in range(6):
        _log.emit(ending=True)
        counts.append(len(listener.records))
    assert 0 < counts[-1] == counts[2] <= 3, counts


@pytest.mark.parametrize("method", ["flush", "close"])
def test_a_handler_on_the_sending_thread_may_not_wait(
    method: str, letter_api: IngestionServer, make: Any, listener: Listener
) -> None:
    letter = make(flush_at=1)
    answers: list[bool] = []
    listener.act = lambda: answers.append(getattr(letter, method)(600)) if not answers else None
    letter.track("u", "E")
    assert eventually(lambda: answers, bool) in ([False], [True])
    assert letter.flush(DEADLINE) and letter_api.distinct == 1


@pytest.mark.parametrize("failure", [ValueError, LetterError, RecursionError])
def test_a_handler_that_raises_does_no_harm(
    failure: Callable[..., Exception],
    letter_api: IngestionServer,
    make: Any,
    listener: Listener,
    errors: list[LetterError],
) -> None:
    def fail() -> None:
        raise failure("a handler's")

    listener.act = fail
    letter = make()
    for _ in range(3):
        letter.track("u", "E")
        assert letter.flush(DEADLINE)
    assert letter_api.distinct == 3 and len(listener.records) == 3 and not errors


@pytest.mark.slow
def test_a_handler_that_blocks_delays_neither_calls_nor_flush_nor_close(
    letter_api: IngestionServer, make: Any, listener: Listener
) -> None:
    entered, release = threading.Event(), threading.Event()

    def block() -> None:
        entered.set()
        assert release.wait(DEADLINE)

    listener.act = block
    letter = make(flush_at=1, exit_timeout=DEADLINE)
    letter.track("u", "E")
    assert entered.wait(DEADLINE)
    for _ in range(100):
        letter.track("u", "E")
    began = time.monotonic()
    assert letter.flush(DEADLINE / 2) is True
    assert letter_api.distinct == 101
    letter.track("u", "E")
    assert letter.close(DEADLINE / 2) is True
    assert time.monotonic() - began < DEADLINE / 4  # each waits a second for the handler
    assert letter_api.distinct == 102 and not release.is_set()
    release.set()


def test_handlers_run_without_a_lock(letter_api: IngestionServer, make: Any, listener: Listener) -> None:
    """While a handler runs, another thread can do anything at all with the client."""
    letter = make(flush_at=1)
    done: list[bool] = []

    def use() -> None:
        if done:
            return
        done.append(False)

        def work() -> None:
            letter.track("u", "Other")
            done.append(letter._delivery._batches.lock.run(lambda: None, DEADLINE))
            letter.stats()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join(DEADLINE)

    listener.act = use
    letter.track("u", "E")
    assert letter.flush(DEADLINE)
    assert eventually(lambda: done, lambda found: len(found) == 2) == [False, True]


def test_what_happens_under_the_lock_of_another_client_is_logged_later(
    letter_api: IngestionServer, make: Any, listener: Listener
) -> None:
    other = make(on_error=lambda error: None)
    letter = make(flush_at=1, on_error=lambda error: other.track("u", "E", {"bad": object()}))
    held: list[bool] = []
    listener.act = lambda: held.append(letter._delivery._batches.lock.is_mine())
    letter_api.plan(status(400))
    letter.track("u", "E")
    assert letter.flush(DEADLINE)
    warnings = eventually(lambda: listener.lines(logging.WARNING), lambda lines: len(lines) == 2)
    assert set(warnings) == {"1 event lost (rejected)", "1 event lost (invalid)"}
    assert held and not any(held)


def test_a_handler_that_logs_what_is_logged_is_not_called_again_in_itself(listener: Listener) -> None:
    depths: list[int] = []

    def again() -> None:
        depths.append(len(depths))
        _log.note("again")
        assert not _log.emit()

    listener.act = again
    _log.note("first")
    assert _log.emit() and depths == [0]
    assert listener.lines() == ["first"]


@needs_fork
def test_a_handler_may_fork(letter_api: IngestionServer, tmp_path: Path) -> None:
    letter_api.plan(status(400))  # which is two lines
    finished = run(logs.forks_in_a_handler, letter_api.url, tmp_path)
    assert (finished.code, finished.output) == (0, "True\n"), finished
    assert letter_api.distinct == 3 and letter_api.repeated() == {}


@pytest.mark.slow
@needs_fork
def test_forks_while_another_thread_logs_do_not_deadlock(letter_api: IngestionServer, tmp_path: Path) -> None:
    finished = run(logs.forks_while_it_logs, letter_api.url, tmp_path, 30)
    assert (finished.code, finished.output) == (0, "True\n"), finished
    assert letter_api.repeated() == {}


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs Unix")
def test_signal_handlers_may_use_the_client_while_a_handler_runs(letter_api: IngestionServer, tmp_path: Path) -> None:
    finished = run(logs.interrupted_handler, letter_api.url, tmp_path)
    assert (finished.code, finished.output.splitlines()[-1]) == (0, "True 0"), finished


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs Unix")
def test_a_signal_handler_does_not_log_in_what_it_has_interrupted(letter_api: IngestionServer, tmp_path: Path) -> None:
    finished = run(logs.signal_in_a_handler_of_the_application, letter_api.url, tmp_path)
    assert (finished.code, finished.output) == (0, "True\n"), finished


@needs_fork
def test_a_child_does_not_log_what_its_parent_has_to_log(tmp_path: Path) -> None:
    finished = run(logs.forked_while_another_thread_logs, "", tmp_path)
    assert (finished.code, finished.output) == (0, "0\n0\n['first', 'second']\n"), finished


@pytest.mark.skipif(sys.implementation.name == "pypy", reason="calls no __del__ at its end")
def test_no_handler_is_called_while_python_clears_its_modules(tmp_path: Path) -> None:
    finished = run(logs.logs_at_the_very_end, "", tmp_path)
    assert (finished.code, finished.output) == (0, "invalid, True\nFalse\n"), finished


@needs_fork
@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("nothing", ["exit", "2 events lost (exit)"]),
        ("a handler of another thread", ["exit", "2 events lost (exit)"]),
        # Its lock may be held, so nothing is logged. The process has to end all the same.
        ("a handler of the application", ["exit"]),
        ("a handler of this logger", ["invalid", "1 event lost (invalid)", "exit"]),
    ],
)
def test_losses_are_logged_before_a_signal_ends_the_process(where: str, said: list[str], tmp_path: Path) -> None:
    finished = run(logs.killed_by_a_signal, "", tmp_path, where)
    assert (finished.code, finished.output.splitlines()) == (-signal.SIGTERM, said), finished


def test_a_loss_whose_events_are_unknown_is_logged_though_a_handler_tracks(make: Any, listener: Listener) -> None:
    letter: Letter = make()
    listener.act = lambda: letter.track("handler", "Logged")
    letter.track("u", "E")
    assert letter.flush(DEADLINE) and letter.flush(DEADLINE)
    _log.note_report(LetterError("of an ended process", cause="damaged", lost=3))
    assert _log.emit()
    assert listener.lines(logging.WARNING) == ["3 events lost (damaged)"]


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs Unix")
def test_what_a_signal_handler_raises_in_a_handler_gets_to_the_application(tmp_path: Path) -> None:
    finished = run(logs.signal_that_raises, "", tmp_path)
    assert (finished.code, finished.output) == (0, "of the application\n{'invalid': 1}\n"), finished


def test_nothing_is_logged_while_another_thread_imports_logging(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.__spec__, "_initializing", True)  # as the import system does
    _log.note("early")
    assert not _log.emit() and listener.lines() == []
    monkeypatch.setattr(logging.__spec__, "_initializing", False)
    _log.note("late")
    assert _log.emit() and listener.lines() == ["late"]


def test_a_module_of_the_application_named_logging_is_left_alone(
    make: Any, monkeypatch: pytest.MonkeyPatch, letter_api: IngestionServer
) -> None:
    monkeypatch.setitem(sys.modules, "logging", Path)  # has no getLogger
    letter: Letter = make()
    letter.track("u", "E")
    assert letter.flush(DEADLINE) and letter_api.distinct == 1
