"""Which threads are inside a piece of code, or begin one, told by what no exception can leave behind.

Lives here: `Inside`, `Promise`. Never here: what that code does.

A signal handler may raise wherever Python looks for signals, in a `finally` too, so a count or a set of threads that is
kept right by one goes wrong some day, for good. A lock in a `with` is let go of by C: between a call and the end of the
block no signal is looked for.
"""

from __future__ import annotations

import _thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable


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


class Promise:
    """That a thread does something. It stands while the thread is being started, and once it has `begun`.

    So one that was cut short before there was a thread does not stand. When the work is over another takes its place.
    """

    def __init__(self) -> None:
        self.making = _thread.allocate_lock()  # held, in a `with`, by who starts the thread
        self.begun = False

    def stands(self) -> bool:
        return self.begun or self.making.locked()
