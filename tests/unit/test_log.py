"""The lines of the logger `letterapp` (`letterapp._log`): their bounds, where they are printed, who logs them."""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import DEADLINE, eventually
from logged import (  # noqa: F401  (a fixture)
    Listener,
    fresh_log,
    listening,
)

from letterapp import Letter, LetterError, _log
from letterapp.testing import IngestionServer

# Bounds.


def test_the_oldest_lines_are_left_out_if_too_many_wait(listener: Listener) -> None:
    for number in range(1_200):
        _log.note("line %d", number)
    assert _log.emit()
    assert listener.texts == [f"line {number}" for number in range(700, 1_200)]


def test_events_of_callbacks_are_remembered_up_to_a_bound() -> None:
    events = [b"%d" % number for number in range(50_000)]
    remembered = _log.Remembered()
    for event in events:
        remembered.add(event)
    assert len(remembered) <= 20_000
    assert all(event in remembered for event in events[-10_000:]) and events[0] not in remembered


# What is a line.


def test_a_report_without_a_loss_is_no_warning(listener: Listener) -> None:
    _log.note_report(LetterError("all events were recovered", cause="exit", lost=0))
    assert not _log.emit(ending=True) and listener.texts == []


def test_a_batch_is_logged_if_a_handler_has_tracked_only_some_of_its_events(
    letter_api: IngestionServer, make: Any, listener: Listener
) -> None:
    letter: Letter = make(flush_interval=60)
    listener.act = lambda: letter.track("handler", "Logged")
    expected = ["batch 1, 1 event", "batch 2, 2 events", "batch 3, 2 events"]
    for _ in expected:  # what a handler tracks is remembered from its second call on
        letter.track("u", "E")
        assert letter.flush(DEADLINE)
        assert eventually(lambda: letter.stats()["waiting"], bool) == 1  # so the line was logged
    assert [line.split(":")[0] for line in listener.texts] == expected


# `LETTER_DEBUG`, whatever stderr is.


class NoFile:
    """What an application may put in the place of stderr."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text


class Full(NoFile):
    def write(self, text: str) -> None:
        raise OSError("No space left on device")


@pytest.mark.parametrize("stderr", [io.StringIO(), NoFile()], ids=["no descriptor", "no fileno"])
def test_lines_are_printed_to_an_object_of_the_application(stderr: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LETTER_DEBUG", "1")
    monkeypatch.setattr(sys, "stderr", stderr)
    _log.note("a line")
    _log.emit()
    printed = stderr.getvalue() if isinstance(stderr, io.StringIO) else stderr.text
    assert printed.endswith(f"Z letterapp[{os.getpid()}] DEBUG a line\n")


@pytest.mark.parametrize("kind", ["none", "closed", "full"])
def test_lines_that_cannot_be_printed_are_left_out(
    kind: str, listener: Listener, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with (tmp_path / "closed").open("w") as closed:
        pass
    monkeypatch.setenv("LETTER_DEBUG", "1")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", {"none": None, "closed": closed, "full": Full()}[kind])
        _log.note("a line")
        assert _log.emit()
    assert listener.texts == ["a line"]


# Who logs them.


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="needs signal masks")
def test_a_handler_runs_with_the_signal_mask_of_the_program(
    letter_api: IngestionServer, make: Any, listener: Listener
) -> None:
    def mask() -> set[int]:
        return set(signal.pthread_sigmask(signal.SIG_BLOCK, ()))

    masks: list[set[int]] = []
    listener.act = lambda: masks.append(mask())
    letter: Letter = make(flush_at=1)
    letter.track("u", "E")
    assert eventually(lambda: masks, bool), "the background thread logs"
    assert masks == [mask()]


def test_nothing_is_kept_where_nobody_has_imported_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "logging")
    _log.note("a line")
    _log.note_report(LetterError("lost", cause="exit", lost=3))
    assert not _log._here().lines and not _log._here().lost
