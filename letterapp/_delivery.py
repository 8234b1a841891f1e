"""The contract between the client and what carries its events.

Lives here: the verbs, their guarantees in words, and how a report reaches the application. Never here: any way of
carrying. The client knows no more of a carrier than this, so no flag tells two carriers apart.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod

from ._handlers import pass_on
from .errors import LetterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from ._forks import Process


class Delivery(ABC):
    """Carries the events of one client in one process.

    It is made without starting anything. It belongs to the process ``owner``; in a forked child it is dead weight, of
    which only `for_child` may be called.
    """

    owner: Process
    exit_timeout: float  # seconds that the end of the process may take for it
    ends_last = False  # after those that hand events to it

    @abstractmethod
    def put(self, event: bytes) -> None:
        """Accept an encoded event, or report and count it as lost. Microseconds; never raises for want of room."""

    @abstractmethod
    def refuse(self, cause: str, error: LetterError | None = None) -> None:
        """Count an event that was not queued as lost for ``cause``; report it if there is an ``error``."""

    @abstractmethod
    def flush(self, timeout: float) -> bool:
        """Send what was accepted before this call; True when it is settled, False when ``timeout`` passed."""

    @abstractmethod
    def close(self, timeout: float) -> bool:
        """Refuse further events, settle what waits, give up what is left at ``timeout``. True when all was settled."""

    @abstractmethod
    def hasten(self) -> None:
        """The process is ending: start sending what waits. Returns at once, so many clients can share a deadline."""

    @abstractmethod
    def end(self, deadline: float, final: bool) -> None:
        """Wait until all is settled or the monotonic ``deadline`` has come.

        From then on each `put` returns when its event is settled, because no thread can be relied on any more.
        ``final``: the process is sure to end, so what is not settled in time is reported as lost.
        """

    @abstractmethod
    def go_on(self) -> None:
        """The end that was announced did not come: everything as before it."""

    @property
    def sends_on_os_exit(self) -> bool:
        """Whether `os._exit` is an end of the process for it."""
        return True

    @abstractmethod
    def look_after_children(self) -> None:
        """This process has forked: start sending what a killed child left, if it left something. Microseconds."""

    @abstractmethod
    def defers(self, act: Callable[[], object]) -> bool:
        """For a signal handler: False, unless it interrupted this very object, inside which nothing can be sent.

        Then True, and ``act`` is called from another thread as soon as the interrupted call has gone on.
        """

    @abstractmethod
    def stats(self) -> dict[str, Any]:
        """Counters that balance at any moment: accepted = delivered + lost + waiting."""

    @abstractmethod
    def for_child(self) -> Delivery:
        """The carrier of this process, a descendant of ``owner``: made by whichever thread asks first, empty."""


class Reporter:
    """Hands errors to the application's ``on_error``, or prints a line to stderr. It cannot fail, and takes no lock."""

    def __init__(self, on_error: Callable[[LetterError], object] | None) -> None:
        self._on_error = on_error

    def __call__(self, error: LetterError) -> None:
        try:
            if self._on_error is not None:
                self._on_error(error)
            else:
                _print(f"letterapp: {error}")
        except Exception as failure:
            pass_on(failure)
            _print(f"letterapp: on_error raised {failure!r} for: {error}")


def _print(line: str) -> None:
    try:
        # One line whatever an answer holds, and nothing in it that steers a terminal.
        sys.stderr.write("".join(sign if sign.isprintable() else " " for sign in line) + "\n")
    except Exception as failure:
        pass_on(failure)  # else stderr is closed, or None, or cannot write this text: there is nowhere left to say so
