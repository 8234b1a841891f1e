"""What the client does, for the logger `letterapp` and for ``LETTER_DEBUG=1``: counts, never contents or the key.

Responsible for: lines that wait to be logged, passing them on, one warning for a burst of losses. Not responsible for:
what is worth a line (the other modules), `on_error` (`_reporter`).

A handler of the application may do anything: block, raise, fork, track events. So nothing is logged where it happens,
often under a lock, but by the next `emit` of a thread that holds none. `logging` is never imported here, because that
takes as long as importing this package: if nobody has imported it, nobody listens.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque

from ._runtime.clock import monotonic
from ._runtime.guards import ReentrancyGuard
from ._runtime.servers import start_thread
from ._runtime.signal_errors import is_in_signal_handler, reraise_signal_error
from ._runtime.threads import with_starters_signal_mask
from .errors import encoded_events

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterable, Tuple

    from .errors import LetterError

    Line = Tuple[float, int, str, Tuple[object, ...]]

NAME = "letterapp"
VARIABLE = "LETTER_DEBUG"
DEBUG, WARNING = 10, 30  # as in `logging`
BURST = 5.0  # seconds after a warning in which further losses of the same cause are only counted
_MOST_LINES = 500  # that wait to be logged; the oldest are left out
_MOST_REMEMBERED = 10_000  # events


class Remembered:
    """Which events were tracked by a callback. A hash of each is kept, in two generations.

    A queue does not contain more of them, unless it was made very large. Takes no lock.
    """

    def __init__(self) -> None:
        self._latest: set[int] = set()
        self._before: set[int] = set()

    def add(self, event: bytes) -> None:
        if len(self._latest) >= _MOST_REMEMBERED:
            self._latest, self._before = set(), self._latest
        self._latest.add(hash(event))

    def __len__(self) -> int:
        return len(self._latest) + len(self._before)

    def __contains__(self, event: bytes) -> bool:
        mark = hash(event)
        return mark in self._latest or mark in self._before


class _Pending:
    """The lines of one process that wait to be logged."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.prints = os.environ.get(VARIABLE, "") not in ("", "0")
        self.lines: deque[Line] = deque(maxlen=_MOST_LINES)
        # Guards the two below, for a few operations; code that holds it takes no other lock. Re-entrant, because a
        # signal handler may interrupt it.
        self._lock = threading.RLock()
        self.lost: dict[str, int] = {}  # events that no warning has counted, by cause
        self._quiet_until: dict[str, float] = {}  # by cause
        self.emitting = ReentrancyGuard()  # the threads that are in a handler
        self.deferring = ReentrancyGuard()  # the threads that hold a lock

    def add_loss(self, cause: str, events: int) -> None:
        with self._lock:
            self.lost[cause] = self.lost.get(cause, 0) + events

    def may_emit(self) -> bool:
        return not (self.emitting.is_here() or self.emitting.has_others() or self.deferring.is_here())

    def is_busy(self) -> bool:
        """True if something is to be logged at the end of the process, or another thread is logging it."""
        return self.has_lines(True) or self.emitting.has_others()

    def has_lines(self, ending: bool) -> bool:
        if self.lines or not self.lost:
            return bool(self.lines)
        now = monotonic()
        return any(self._is_due(cause, now, ending) for cause in list(self.lost))

    def _is_due(self, cause: str, now: float, all_of_them: bool) -> bool:
        return all_of_them or self._quiet_until.get(cause, now) <= now

    def take_losses(self, all_of_them: bool) -> list[Line]:
        """A warning for each cause that has not been quiet long enough; or for every cause."""
        now = monotonic()
        with self._lock:
            due = [cause for cause in self.lost if self._is_due(cause, now, all_of_them)]
            self._quiet_until.update(dict.fromkeys(due, now + BURST))
            return [(time.time(), WARNING, "%s lost (%s)", (said(self.lost.pop(cause)), cause)) for cause in due]


_pending: _Pending | None = None
_made: dict[int, _Pending] = {}  # by process ID: two threads may need the first one at once
_write: Callable[[str], object] | None = None  # prints a line, instead of stderr
_own = Remembered()  # events that handlers have tracked


def _is_current() -> bool:
    """True if this process has anything that waits, or ever had."""
    return _pending is not None and _pending.pid == os.getpid()


def _here() -> _Pending:
    global _pending
    pending, pid = _pending, os.getpid()
    if pending is None or pending.pid != pid:
        for other in set(_made) - {pid}:
            _made.pop(other, None)  # the parent's, which logs its own lines
        pending = _pending = _made.setdefault(pid, _Pending())  # in one step; a lock may be held by a lost thread
    return pending


def _has_listeners() -> bool:
    return "logging" in sys.modules or _here().prints


# Called by any thread, also under a lock. They call no code of the application.


def note(text: str, *arguments: object, events: Iterable[object] = ()) -> None:
    """Have ``text % arguments`` logged, unless handlers have tracked all of ``events``: that would never end."""
    if _has_listeners() and not _are_own(events):
        _here().lines.append((time.time(), DEBUG, text, arguments))


def note_report(error: LetterError) -> None:
    """Have it logged that ``error`` was reported. Its text may quote the application's data, so it is left out."""
    if not _has_listeners() or _are_own(encoded_events(error)):
        return
    if error.cause == "degraded":
        note("reported: degraded%s", "" if error.status is None else f" (status {error.status})")
    elif error.lost > 0:
        _here().add_loss(error.cause or "undeliverable", error.lost)


def said(events: int) -> str:
    """For example ``1 event`` or ``2 events``."""
    return "1 event" if events == 1 else f"{events} events"


def defer(act: Callable[[], Any]) -> None:
    """Call ``act``, which holds a lock. Until it returns, this thread logs nothing."""
    _here().deferring.run(act)


def is_handler_running() -> bool:
    """True in a handler: it must not wait for what its own thread does."""
    return _is_current() and _here().emitting.is_here()


def is_handler_running_elsewhere() -> bool:
    """True while another thread is in a handler, and does nothing else as long as that blocks."""
    return _is_current() and _here().emitting.has_others()


def remember(event: bytes) -> None:
    """Remember ``event`` if it is tracked by a handler."""
    if is_handler_running():
        _own.add(event)


def print_with(write: Callable[[str], object]) -> None:
    """Pass the lines of ``LETTER_DEBUG`` to ``write`` from now on, instead of printing them to stderr."""
    global _write
    _write = write


# Called where the thread holds no lock.


def emit(ending: bool = False) -> bool:
    """Log what waits. True if a handler may have been called.

    Only one thread at a time does, so that a handler that blocks does not delay the others. ``ending``: count all
    losses now, because there may be no later call.
    """
    pending = _pending
    if pending is None or not pending.has_lines(ending):
        return False
    if not _is_current() or sys.is_finalizing() or not pending.may_emit():
        return False
    logger = _logger()
    if not (pending.prints or (logger is not None and logger.isEnabledFor(DEBUG))):
        pending.lines.clear()
    if logger is not None and is_in_signal_handler():
        return False  # it may have interrupted a handler
    lines = [*_taken(pending.lines), *pending.take_losses(ending)]
    if lines:
        pending.emitting.run(lambda: with_starters_signal_mask(_pass_on, pending, logger, lines))
    return bool(lines) and logger is not None


def emit_before_kill(seconds: float) -> None:
    """Log what waits, from a signal handler after which the process is killed; the handler waits for up to ``seconds``.

    In another thread: the signal may have interrupted this one in a handler of the application, which has its lock or
    is writing to its stream. Then that thread waits for it in vain, and nothing is logged. A thread that is logging
    already may have taken the losses, so that is waited for too.
    """
    pending = _pending
    if pending is None or not _is_current() or pending.emitting.is_here() or not pending.is_busy():
        return
    deadline = monotonic() + seconds
    is_over = threading.Event()

    def run() -> None:
        try:
            while monotonic() < deadline:
                emit(ending=True)
                if not pending.is_busy():
                    break
                time.sleep(0.005)  # another thread is in a handler: perhaps the sender, with the line of its last try
        finally:
            is_over.set()

    if start_thread(run):
        is_over.wait(seconds)


def _taken(lines: deque[Line]) -> list[Line]:
    taken = []
    for _ in range(len(lines)):  # not those that the handlers cause
        try:
            taken.append(lines.popleft())
        except IndexError:
            break  # another thread was faster
    return taken


def _pass_on(pending: _Pending, logger: Any, lines: list[Line]) -> None:
    for when, level, text, arguments in lines:
        if pending.pid != os.getpid():
            return  # a handler has forked, and this is the child: its parent logs the rest
        if pending.prints:
            _print(when, level, text % arguments)
        if logger is not None:
            try:
                logger.log(level, text, *arguments)
            except Exception as problem:
                reraise_signal_error(problem)  # otherwise a handler or a filter raised it


def _logger() -> Any:
    """The logger `letterapp`; None if nobody has imported `logging`."""
    logging = sys.modules.get("logging")
    if logging is None or getattr(getattr(logging, "__spec__", None), "_initializing", False):
        return None
    try:
        logger = logging.getLogger(NAME)
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())  # otherwise `logging` prints warnings that nobody asked for
        return logger
    except AttributeError:
        return None  # a module of the application that has this name


def _are_own(events: Iterable[object]) -> bool:
    if not _own:
        return False
    known = [event in _own for event in events if isinstance(event, bytes)]
    return bool(known) and all(known)


def _print(when: float, level: int, text: str) -> None:
    # UTC and not local time: the C library takes a lock for a time zone, which a forked child may never get.
    seconds = int(when)
    clock = f"{seconds // 3600 % 24:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{int(when % 1 * 1000):03}Z"
    line = f"{clock} {NAME}[{os.getpid()}] {'DEBUG' if level == DEBUG else 'WARNING'} {text}\n"
    try:
        if _write is not None:
            _write(line)
            return
        try:
            descriptor = sys.stderr.fileno()
        except (AttributeError, OSError, ValueError):
            sys.stderr.write(line)  # replaced by an object of the application
        else:
            os.write(descriptor, line.encode())  # in one piece, and past the lock of the stream
    except Exception as failure:
        reraise_signal_error(failure)  # otherwise stderr is closed, None, or a full pipe
