"""How the application is notified of lost events and other problems: by `on_error`, or a line on stderr.

Responsible for: calling `on_error` safely, events that `on_error` itself tracks, reports that several modules make.
Not responsible for: when something is reported, and what an error may contain (`_text`).
"""

from __future__ import annotations

import sys

from . import _log
from ._runtime.guards import ReentrancyGuard
from ._runtime.signal_errors import reraise_signal_error
from ._runtime.threads import with_starters_signal_mask
from ._text import clean, said
from .errors import LetterError, encoded_events

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

_LONGEST_LINE = 1_000  # characters: the text of an error, and the words around it
QUIET = 60.0  # seconds during which the same problem is not reported again


class Reporter:
    """Passes errors to the application's ``on_error``, or prints a line to stderr. Never raises, and takes no lock.

    An event that ``on_error`` itself tracks is an event like any other, but if it is lost, that is printed instead of
    reported to ``on_error``: where every event is refused, each report would cause another one.
    """

    def __init__(self, on_error: Callable[[LetterError], object] | None) -> None:
        self._on_error = on_error
        self._calling = ReentrancyGuard()  # the threads that are in `on_error`
        # `on_error` or a handler of the logger was called; before that no event needs to be passed to `note`.
        self.has_called = False
        self._own = _log.Remembered()  # events that were tracked there

    def __call__(self, error: LetterError) -> None:
        try:
            _log.note_report(error)
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
        """Remember ``event`` if it is tracked by `on_error`, or by a handler. To be called before it is queued."""
        if self._calling.is_here():
            self._own.add(event)
        _log.remember(event)

    def emit_log(self, ending: bool = False) -> None:
        """Log what waits to be logged. To be called where the thread holds no lock."""
        if _log.emit(ending):
            self.has_called = True

    def _call(self, error: LetterError) -> None:
        assert self._on_error is not None
        self._on_error(error)

    def _is_of_on_error(self, error: LetterError) -> bool:
        """True if all events of ``error`` were tracked by `on_error`."""
        events = encoded_events(error)
        return 0 < error.lost <= len(events) and all(map(self._is_own, events))

    def _is_own(self, event: bytes | dict[str, Any]) -> bool:
        if not isinstance(event, bytes):
            return self._calling.is_here()  # it could not be encoded, and that is reported during the call
        return event in self._own


def _print(line: str) -> None:
    try:
        sys.stderr.write(clean(line, _LONGEST_LINE) + "\n")
    except Exception as failure:
        reraise_signal_error(failure)  # otherwise stderr is closed or None, or cannot encode this text


class TroubleReporter:
    """Reports problems that may lead to a loss: each text at most once in `QUIET` seconds.

    Used by one thread at a time, the one that sends.
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
        """Report the next problem even if it was reported a moment ago."""
        self._last.clear()


def unreadable(events: int, why: str) -> LetterError:
    """The report of at least ``events`` events that were left by an ended process and cannot be read."""
    said = f"at least {events:,} events left by an ended process cannot be read: {why}"
    return LetterError(said, cause="damaged", lost=events)
