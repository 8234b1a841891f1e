"""Waking threads that wait, from anywhere.

Lives here: `Bell`. Never here: what is waited for.

`threading.Condition` and `threading.Event` take a lock to notify, so a signal handler, a ``__del__`` or a callback that
notifies while its own thread is inside one of them stands still for ever. Ringing a bell takes no lock. The locks that
sleepers wait on are made when they lie down, so gevent may patch `threading` at any time before.
"""

from __future__ import annotations

import threading
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Callable


class Bell:
    """Rings for every sleeper there is. Any thread, signal handler or callback may ring; it never blocks."""

    def __init__(self) -> None:
        self._sleepers: deque[Sleeper] = deque()

    def ring(self) -> None:
        sleepers = self._sleepers
        while sleepers:
            try:
                sleeper = sleepers.popleft()  # atomic, so no sleeper is woken twice by two that ring
            except IndexError:
                return  # another thread woke the last one
            sleeper.wake()

    def sleeper(self) -> Sleeper:
        """Make a sleeper, to be entered with ``with`` BEFORE the look at what is waited for: then no ring is missed."""
        return Sleeper(self._sleepers)

    def wait_while(
        self,
        condition: Callable[[], bool],
        deadline: float,
        clock: Callable[[], float],
        longest: float = threading.TIMEOUT_MAX,
    ) -> None:
        """Wait as long as ``condition`` holds, until ``deadline`` of ``clock``.

        It is looked at again at each ring, and after ``longest`` seconds where its end may come without one.
        """
        while condition():
            with self.sleeper() as sleeper:
                left = deadline - clock()
                if left <= 0 or not condition():
                    return
                sleeper.wait(min(left, longest))


class Sleeper:
    """One thread's wait for one ring."""

    def __init__(self, bed: deque[Sleeper]) -> None:
        self._bed = bed
        self._asleep = threading.Lock()
        self.wake = self._asleep.release
        self._asleep.acquire()

    def __enter__(self) -> Sleeper:
        self._bed.append(self)
        return self

    def wait(self, seconds: float) -> bool:
        """Wait for the ring; False when ``seconds`` passed without one."""
        return seconds > 0 and self._asleep.acquire(True, min(seconds, threading.TIMEOUT_MAX))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._bed.remove(self)
        except ValueError:
            pass  # it was rung for
