"""The contract between the client and what carries its events.

Lives here: the verbs, their guarantees in words, and how a report reaches the application. Never here: any way of
carrying. The client knows no more of a carrier than this, so no flag tells two carriers apart.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod

from ._forks import this_process
from ._handlers import pass_on
from ._inside import Inside
from ._texts import clean, said
from ._threads import as_started
from .errors import LetterError, encoded_events

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from ._forks import Process


_LONGEST_LINE = 1_000  # characters: an error's text, and what is said around it
_MOST_OWN = 10_000  # events that `on_error` tracked, and that are remembered to be its own


class Delivery(ABC):
    """Carries the events of one client in one process.

    It is made without starting anything. It belongs to the process ``owner``; in a forked child it is dead weight, of
    which only `for_child` may be called.
    """

    owner: Process
    reporter: Reporter  # of what becomes of its events
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

        From then on each `put` returns when its event is settled, because no thread can be relied on any more; but not
        in a thread that runs an asyncio loop, unless this is ``final``: then its events wait for the next end.
        ``final``: the process is sure to end, so what is not settled in time is reported as lost.
        """

    @abstractmethod
    def go_on(self) -> None:
        """The end that was announced did not come: everything as before it."""

    @abstractmethod
    def send_orphans(self) -> None:
        """The client is made: begin to send what ended processes left that no other one may find. Returns at once."""

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
    def glance(self) -> tuple[int, int, int]:
        """Events that wait, were delivered and were lost, as they stand. For a `repr`: no lock, no change."""

    @abstractmethod
    def for_child(self) -> Delivery:
        """The carrier of this process, a descendant of ``owner``: made by whichever thread asks first, empty."""


class Nowhere(Delivery):
    """Of a client that is not enabled: carries nothing, and has nothing of what that would take."""

    def __init__(self, reporter: Reporter, exit_timeout: float) -> None:
        self.owner = this_process()
        self.reporter = reporter
        self.exit_timeout = exit_timeout

    def put(self, event: bytes) -> None:
        pass

    def refuse(self, cause: str, error: LetterError | None = None) -> None:
        pass

    def flush(self, timeout: float) -> bool:
        return True

    def close(self, timeout: float) -> bool:
        return True

    def hasten(self) -> None:
        pass

    def end(self, deadline: float, final: bool) -> None:
        pass

    def go_on(self) -> None:
        pass

    def send_orphans(self) -> None:
        pass

    def look_after_children(self) -> None:
        pass

    def defers(self, act: Callable[[], object]) -> bool:
        return False

    def stats(self) -> dict[str, Any]:
        counts = ("relayed", "accepted", "delivered", "retried", "adopted", "waiting", "waiting_bytes")
        named = {"pid": self.owner.pid, "mode": "thread", "memory": "private", "lost": {}}
        return {**named, **dict.fromkeys(counts, 0)}

    def glance(self) -> tuple[int, int, int]:
        return 0, 0, 0

    def for_child(self) -> Nowhere:
        return Nowhere(self.reporter, self.exit_timeout)


def unreadable(events: int, why: str) -> LetterError:
    """The report of events that an ended process left and nobody can read: ``events`` of them, or more."""
    said = f"at least {events:,} of the events that an ended process left cannot be read: {why}"
    return LetterError(said, cause="damaged", lost=events)


class Reporter:
    """Hands errors to the application's ``on_error``, or prints a line to stderr. It cannot fail, and takes no lock.

    What ``on_error`` itself tracks is an event like any other, but its loss is not reported to ``on_error``, neither
    at once, which would not end where every event is refused, nor later, which would not either. It is printed.
    """

    def __init__(self, on_error: Callable[[LetterError], object] | None) -> None:
        self._on_error = on_error
        self._calling = Inside()  # the threads that are in `on_error`
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
                _print(f"letterapp: {error} (on_error had tracked it)")
            else:
                self.has_called = True
                self._calling.run(lambda: as_started(self._call, error))
        except Exception as failure:
            pass_on(failure)
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
        pass_on(failure)  # else stderr is closed, or None, or cannot write this text: there is nowhere left to say so
