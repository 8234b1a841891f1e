"""The results of `doctor`: one line each, with what to do.

Responsible for: how a result looks, the time that one check may take. Not responsible for: the checks.
"""

from __future__ import annotations

import enum
import queue
import threading
from typing import Any, Callable, List, NamedTuple


class Level(enum.Enum):
    """How good a finding is. Only a failure makes the exit status 1."""

    OK = "ok"
    NOTE = "note"  # worth knowing
    WARNING = "warn"  # works, but a guarantee is weaker than it could be
    FAILURE = "FAIL"  # events will be lost, or cannot be sent


class Finding(NamedTuple):
    """What one check has found. ``advice`` says what to do; it is empty where nothing has to be done."""

    name: str
    level: Level
    text: str
    advice: str = ""

    def as_json(self) -> dict[str, str]:
        return {"check": self.name, "level": self.level.value.lower(), "text": self.text, "advice": self.advice}

    def __str__(self) -> str:
        advice = f". {self.advice[0].upper()}{self.advice[1:]}" if self.advice else ""
        return f"{self.level.value:5} {self.name:12} {self.text}{advice}"


Check = Callable[[], List[Finding]]


def ok(name: str, text: str) -> Finding:
    return Finding(name, Level.OK, text)


def note(name: str, text: str, advice: str = "") -> Finding:
    return Finding(name, Level.NOTE, text, advice)


def warning(name: str, text: str, advice: str = "") -> Finding:
    return Finding(name, Level.WARNING, text, advice)


def failure(name: str, text: str, advice: str = "") -> Finding:
    return Finding(name, Level.FAILURE, text, advice)


def said(problem: BaseException) -> str:
    """The text of an exception, which may have none."""
    text = getattr(problem, "strerror", None) or str(problem)
    return str(text) if text else type(problem).__name__


def within(seconds: float, name: str, check: Check) -> list[Finding]:
    """The result of ``check``, or a failure if it raises, or takes longer than that."""
    results: queue.Queue[Any] = queue.Queue()

    def run() -> None:
        try:
            results.put(check())
        except Exception as problem:  # the host may be broken in any way
            results.put([failure(name, f"could not be checked: {type(problem).__name__}: {said(problem)}")])

    try:
        threading.Thread(target=run, daemon=True).start()
    except (RuntimeError, MemoryError):  # no threads here, which another check reports
        run()
    try:
        found: list[Finding] = results.get(timeout=seconds)
    except queue.Empty:
        return [failure(name, f"there was no result within {seconds:g} s")]
    return found
