"""Telling coroutines that something has changed.

Responsible for: waking all that wait. Not responsible for: what has changed; each looks for itself.
"""

from __future__ import annotations

import asyncio


class Changes:
    """Used on the loop's thread only. ``number`` is how many there were."""

    def __init__(self) -> None:
        self.number = 0
        self._waiters: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        """Wake all that wait."""
        self.number += 1
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, timeout: float) -> bool:
        """Wait for the next `notify`; False after ``timeout`` seconds."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await asyncio.wait_for(waiter, timeout)
        except asyncio.TimeoutError:
            return False
        finally:
            self._waiters.discard(waiter)
        return True
