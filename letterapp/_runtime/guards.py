"""Guards that stay correct wherever a signal handler raises.

Responsible for: `ReentrancyGuard`, `FairLock`, `ThreadClaim`. Not responsible for: the code that they guard.

A signal handler may raise wherever Python checks for signals, even in a `finally`. So a counter, or a set of threads,
that is updated in a `finally` would sooner or later become wrong, and stay wrong. A lock in a `with` is released by C
code: from CPython 3.9 on, Python does not check for signals between the end of the block and the release. In 3.8 it may
(bpo-29988), so there an exception from a signal handler can leave a lock locked (docs/guarantees.md).
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


_CUT_SHORT = 0.05  # seconds after which a waiting thread checks again: an exception may have prevented a notification


class ReentrancyGuard:
    """Tracks which threads are inside a section of code. Any thread may call; no method waits for another thread."""

    def __init__(self) -> None:
        self._locks: dict[int, Any] = {}  # a lock for each thread that is inside; a thread takes only its own

    def run(self, act: Callable[[], object]) -> None:
        """Call ``act``. Until it returns, this thread is inside."""
        me = _thread.get_ident()
        lock = self._locks.setdefault(me, _thread.allocate_lock())
        if lock.locked():
            act()  # called by a signal handler that has interrupted `act`
            return
        with lock:
            act()
        self._locks.pop(me, None)

    def is_here(self) -> bool:
        """True if the calling thread is inside."""
        lock = self._locks.get(_thread.get_ident())
        return lock is not None and lock.locked()

    def has_others(self) -> bool:
        """True if another thread is inside."""
        me = _thread.get_ident()
        for thread in list(self._locks):
            lock = self._locks.get(thread)
            if thread != me and lock is not None and lock.locked():
                return True
        return False


class FairLock:
    """A lock for slow work: first come, first served, with a timeout."""

    def __init__(self) -> None:
        # Held only for a few operations. Re-entrant, because a signal handler may interrupt them and need it too.
        self._choosing = threading.RLock()
        self._holder: tuple[Any, int] = (
            _thread.allocate_lock(),
            0,
        )  # a lock that the holder has locked; its thread
        self._waiting: deque[Any] = deque()  # a lock for each waiting thread, in order; locked until it gives up
        self._over = Condition()

    def run(self, act: Callable[[], object], patience: float) -> bool:
        """Call ``act`` while holding the lock; False, without a call, if it was not free for ``patience`` seconds.

        It is not re-entrant: the thread that holds it must not call this.
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
        """True if the calling thread holds it."""
        lock, thread = self._holder
        return thread == _thread.get_ident() and bool(lock.locked())

    def _take(self, mine: Any) -> bool:
        with self._choosing:
            if not self._holder[0].locked() and self._is_next(mine):
                self._holder = mine, _thread.get_ident()
            return self._holder[0] is mine

    def _is_next(self, mine: Any) -> bool:
        # Otherwise the thread that has just released it could take it again before a waiting one has woken up.
        while self._waiting:
            if self._waiting[0] is mine:
                self._waiting.popleft()
                return True
            if self._waiting[0].locked():
                return False
            self._waiting.popleft()  # it has given up
        return True


class ThreadClaim:
    """Shows whether a thread does some work, or is being started for it.

    If an exception prevents the start, the claim is no longer active. After the work it is replaced by a new one.
    """

    def __init__(self) -> None:
        self.starting = _thread.allocate_lock()  # held, in a `with`, while the thread is being started
        self.started = False

    def is_active(self) -> bool:
        return self.started or self.starting.locked()
