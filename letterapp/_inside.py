"""Which threads are inside a piece of code, or begin one, told by what no exception can leave behind.

Lives here: `Inside`, `Turn`, `Promise`. Never here: what that code does.

A signal handler may raise wherever Python looks for signals, in a `finally` too, so a count or a set of threads that is
kept right by one goes wrong some day, for good. A lock in a `with` is let go of by C: between a call and the end of the
block no signal is looked for.
"""

from __future__ import annotations

import _thread
import threading
from collections import deque

from ._bell import Bell
from ._clock import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable


_CUT_SHORT = 0.05  # seconds after which who waits for a turn looks again: an exception may have cut short the ring


class Inside:
    """Any thread, signal handler and callback may ask. Takes no lock that another thread may hold."""

    def __init__(self) -> None:
        self._locks: dict[int, Any] = {}  # of each thread that is inside, and takes no other's

    def run(self, act: Callable[[], object]) -> None:
        """Call ``act``, during which this thread is inside."""
        me = _thread.get_ident()
        lock = self._locks.setdefault(me, _thread.allocate_lock())
        if lock.locked():
            act()  # a signal handler in the middle of it
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


class Turn:
    """Lets one thread at a time do something that takes long. Others wait for it with a deadline."""

    def __init__(self) -> None:
        # Around two operations. Re-entrant, because a signal handler in the middle of them may want a turn too.
        self._choosing = threading.RLock()
        self._holder: tuple[Any, int] = (_thread.allocate_lock(), 0)  # of the last turn: locked during it; its thread
        self._waiting: deque[Any] = deque()  # the locks of those who wait, in turn; locked until they go
        self._over = Bell()

    def run(self, act: Callable[[], object], patience: float) -> bool:
        """Call ``act``; False, and nothing is called, if another thread has the turn for all of ``patience`` seconds.

        A thread that has the turn must not ask for it.
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
            self._over.ring()

    def is_mine(self) -> bool:
        """True in the thread that has it."""
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
        # Else who has had it would be back before any other is awake.
        while self._waiting:
            if self._waiting[0] is mine:
                self._waiting.popleft()
                return True
            if self._waiting[0].locked():
                return False
            self._waiting.popleft()  # has gone
        return True


class Promise:
    """That a thread does something. It stands while the thread is being started, and once it has `begun`.

    So one that was cut short before there was a thread does not stand. When the work is over another takes its place.
    """

    def __init__(self) -> None:
        self.making = _thread.allocate_lock()  # held, in a `with`, by who starts the thread
        self.begun = False

    def stands(self) -> bool:
        return self.begun or self.making.locked()
