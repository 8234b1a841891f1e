"""A condition variable that can be notified without taking a lock.

Responsible for: `Condition`. Not responsible for: what is waited for.

`threading.Condition` and `threading.Event` take a lock to notify. A signal handler, a ``__del__`` or a callback that
notifies while its own thread holds that lock would deadlock. Each waiter creates its lock when it starts to wait, so
gevent may patch `threading` at any time before that.
"""

from __future__ import annotations

import threading
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Callable


class Condition:
    """Wakes all waiters. Any thread, signal handler or callback may notify; it never blocks."""

    def __init__(self) -> None:
        self._waiters: deque[Waiter] = deque()

    def notify_all(self) -> None:
        waiters = self._waiters
        while waiters:
            try:
                waiter = waiters.popleft()  # atomic: two threads that notify do not wake the same one
            except IndexError:
                return  # another thread has woken the last one
            waiter.wake()

    def waiter(self) -> Waiter:
        """A waiter. Enter it in a ``with`` BEFORE you check what you wait for, so that no notification is missed."""
        return Waiter(self._waiters)

    def wait_while(
        self,
        condition: Callable[[], bool],
        deadline: float,
        clock: Callable[[], float],
        longest: float = threading.TIMEOUT_MAX,
    ) -> None:
        """Wait while ``condition()`` is true, until ``deadline`` of ``clock``.

        It is checked at each notification, and every ``longest`` seconds in case it changes without one.
        """
        while condition():
            with self.waiter() as waiter:
                left = deadline - clock()
                if left <= 0 or not condition():
                    return
                waiter.wait(min(left, longest))


class Waiter:
    """One thread that waits for one notification."""

    def __init__(self, waiters: deque[Waiter]) -> None:
        self._waiters = waiters
        self._lock = threading.Lock()
        self.wake = self._lock.release
        self._lock.acquire()

    def __enter__(self) -> Waiter:
        self._waiters.append(self)
        return self

    @property
    def is_notified(self) -> bool:
        """True if the next `wait` returns at once."""
        return not self._lock.locked()

    def wait(self, seconds: float) -> bool:
        """Wait for the notification; False after ``seconds``."""
        return seconds > 0 and self._lock.acquire(True, min(seconds, threading.TIMEOUT_MAX))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._waiters.remove(self)
        except ValueError:
            pass  # it has been notified
