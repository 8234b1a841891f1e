"""How the application learns what becomes of its events: `on_error`, or a line on stderr.

Responsible for: calling `on_error` safely, what `on_error` itself tracks, reports whose text several modules share.
Not responsible for: when something is reported, what an error may contain (`_text`).
"""

from __future__ import annotations

import sys

from ._runtime.guards import ReentrancyGuard
from ._runtime.signal_errors import reraise_signal_error
from ._runtime.threads import with_starters_signal_mask
from ._text import clean, said
from .errors import LetterError, encoded_events

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

_LONGEST_LINE = 1_000  # characters: an error's text, and what is said around it
QUIET = 60.0  # seconds during which the same trouble is not reported again
_MOST_OWN = 10_000  # events that `on_error` tracked, and that are remembered to be its own


class Reporter:
    """Hands errors to the application's ``on_error``, or prints a line to stderr. It cannot fail, and takes no lock.

    What ``on_error`` itself tracks is an event like any other, but its loss is not reported to ``on_error``, neither
    at once, which would not end where every event is refused, nor later, which would not either. It is printed.
    """

    def __init__(self, on_error: Callable[[LetterError], object] | None) -> None:
        self._on_error = on_error
        self._calling = ReentrancyGuard()  # the threads that are in `on_error`
        self.has_called = False  # before that there is nothing to `note`
        # Hashes of the events that were tracked there: the latest, and those before them. More cannot be waiting in a
        # queue, unless it has been made very large.
        self._own: set[int] = set()
        self._own_before: set[int] = set()

    def __call__(self, error: LetterError) -> None:
        try:
            if self._on_error is None:
                _print(f"letterapp: {error}")
            elif self._is_of_on_error(error):
                _print(f"letterapp: {error} (tracked by on_error itself)")
            else:
                self.has_called = True
                self._calling.run(lambda: with_starters_signal_mask(self._call, error))
        except Exception as failure:
            reraise_signal_error(failure)
            _print(f"letterapp: on_error raised {said(failure)} for: {error}")

    def note(self, event: bytes) -> None:
        """Tell it of an event before that is queued."""
        if self._calling.is_here():
            if len(self._own) >= _MOST_OWN:
                self._own, self._own_before = set(), self._own
            self._own.add(hash(event))

    def _call(self, error: LetterError) -> None:
        assert self._on_error is not None
        self._on_error(error)

    def _is_of_on_error(self, error: LetterError) -> bool:
        """True when all that ``error`` tells of was tracked by `on_error`."""
        events = encoded_events(error)
        return 0 < error.lost <= len(events) and all(map(self._is_own, events))

    def _is_own(self, event: bytes | dict[str, Any]) -> bool:
        if not isinstance(event, bytes):
            return self._calling.is_here()  # it could not be encoded, which is reported in the call
        mark = hash(event)
        return mark in self._own or mark in self._own_before


def _print(line: str) -> None:
    try:
        sys.stderr.write(clean(line, _LONGEST_LINE) + "\n")
    except Exception as failure:
        reraise_signal_error(
            failure
        )  # else stderr is closed, or None, or cannot write this text: there is nowhere left to say so


class TroubleReporter:
    """Reports what is no loss, but may become one: the same text at most once in `QUIET` seconds.

    For one thread at a time, as whoever sends.
    """

    def __init__(self, report: Callable[[LetterError], object], clock: Callable[[], float]) -> None:
        self._report = report
        self._clock = clock
        self._last: dict[str, float] = {}  # when each text was reported last

    def __call__(self, trouble: str) -> None:
        now = self._clock()
        if now - self._last.get(trouble, -QUIET) >= QUIET:
            self._last[trouble] = now
            self._report(LetterError(trouble, cause="degraded"))

    def forget(self) -> None:
        """Report the next trouble in any case."""
        self._last.clear()


def unreadable(events: int, why: str) -> LetterError:
    """The report of events that an ended process left and nobody can read: ``events`` of them, or more."""
    said = f"at least {events:,} events left by an ended process cannot be read: {why}"
    return LetterError(said, cause="damaged", lost=events)
