"""Guards that stay correct when a signal handler raises anywhere.

Responsible for: `ReentrancyGuard`, `FairLock`, `ThreadClaim`. Not responsible for: the code that they guard.

A signal handler may raise wherever Python checks for signals, in a `finally` too, so a counter or a set of threads that
a `finally` is to correct would one day stay wrong for good. A lock in a `with` is released by C: between the end of the
block and the release Python does not check for signals.
"""

from __future__ import annotations

import _thread
import threading
from collections import deque

from .clock import monotonic
from .condition import Condition

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable


_CUT_SHORT = 0.05  # seconds after which a waiting thread checks again: an exception may have prevented its wake-up


class ReentrancyGuard:
    """Knows which threads are in a piece of code. Any thread may ask; it takes no lock that another thread may hold."""

    def __init__(self) -> None:
        self._locks: dict[int, Any] = {}  # of each thread that is inside, and takes no other's

    def run(self, act: Callable[[], object]) -> None:
        """Call ``act``; until it returns this thread is inside."""
        me = _thread.get_ident()
        lock = self._locks.setdefault(me, _thread.allocate_lock())
        if lock.locked():
            act()  # a signal handler that interrupted it
            return
        with lock:
            act()
        self._locks.pop(me, None)

    def is_here(self) -> bool:
        """True in a thread that is inside."""
        lock = self._locks.get(_thread.get_ident())
        return lock is not None and lock.locked()

    def has_others(self) -> bool:
        """True when another thread than this is inside."""
        me = _thread.get_ident()
        for thread in list(self._locks):
            lock = self._locks.get(thread)
            if thread != me and lock is not None and lock.locked():
                return True
        return False


class FairLock:
    """A lock for work that takes long, with a timeout and first come, first served."""

    def __init__(self) -> None:
        # Held for two operations. Re-entrant, because a signal handler may interrupt them and want the lock too.
        self._choosing = threading.RLock()
        self._holder: tuple[Any, int] = (_thread.allocate_lock(), 0)  # a lock that is held by the holder, its thread
        self._waiting: deque[Any] = deque()  # a lock for each thread that waits, in order; held until it gives up
        self._over = Condition()

    def run(self, act: Callable[[], object], patience: float) -> bool:
        """Call ``act``, holding the lock; False, and no call, if another thread holds it for ``patience`` seconds.

        It is not re-entrant: the thread that holds it must not ask for it.
        """
        mine = _thread.allocate_lock()
        try:
            with mine:
                if not self._take(mine):
                    if patience <= 0:
                        return False
                    deadline = monotonic() + patience
                    self._waiting.append(mine)
                    self._over.wait_while(lambda: not self._take(mine), deadline, monotonic, _CUT_SHORT)
                    if self._holder[0] is not mine:
                        return False
                act()
                return True
        finally:
            self._over.notify_all()

    def is_mine(self) -> bool:
        """True in the thread that holds it."""
        lock, thread = self._holder
        return thread == _thread.get_ident() and bool(lock.locked())

    def is_taken(self) -> bool:
        return bool(self._holder[0].locked())

    def _take(self, mine: Any) -> bool:
        with self._choosing:
            if not self._holder[0].locked() and self._is_next(mine):
                self._holder = mine, _thread.get_ident()
            return self._holder[0] is mine

    def _is_next(self, mine: Any) -> bool:
        # Otherwise the thread that just released it would take it again before another one is awake.
        while self._waiting:
            if self._waiting[0] is mine:
                self._waiting.popleft()
                return True
            if self._waiting[0].locked():
                return False
            self._waiting.popleft()  # it has given up
        return True


class ThreadClaim:
    """Says that a thread does some work: while it is being started, and after it has `started`.

    If an exception prevents the start, it says so no longer. When the work is over, a new one takes its place.
    """

    def __init__(self) -> None:
        self.starting = _thread.allocate_lock()  # held, in a `with`, while the thread is being started
        self.started = False

    def is_active(self) -> bool:
        return self.started or self.starting.locked()
