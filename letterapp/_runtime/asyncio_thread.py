"""Waiting in a coroutine for something that blocks.

Responsible for: `in_thread`, for `Letter.aflush` and `Letter.aclose`; which threads run an event loop. Not responsible
for: what is waited for.
"""

from __future__ import annotations

import sys

from . import servers
from .clock import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from typing import Callable


def runs_event_loop() -> bool:
    """True in a thread that runs an asyncio event loop."""
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and asyncio._get_running_loop() is not None


async def in_thread(wait: Callable[[float], bool], timeout: float) -> bool:
    """Call ``wait(seconds)`` on a new thread and return what it returns; ``timeout`` counts from this call.

    If the task is cancelled, this returns at once and the thread continues. Blocks if no thread can run here.
    """
    # Not on the executor's threads: there are few of them, the application needs them too, and `asyncio.run` waits for
    # them at its end, even for those of cancelled tasks.
    import asyncio

    loop = asyncio.get_running_loop()
    answer: asyncio.Future[bool] = loop.create_future()
    deadline = monotonic() + timeout

    def settle(result: bool, problem: BaseException | None) -> None:
        if answer.done():
            return  # cancelled
        if problem is None:
            answer.set_result(result)
        else:
            answer.set_exception(problem)

    def run() -> None:
        result, problem = False, None
        try:
            result = wait(max(0.0, round(deadline - monotonic(), 2)))  # rounded, because reports quote it
        except BaseException as raised:
            problem = raised
        try:
            loop.call_soon_threadsafe(settle, result, problem)
        except RuntimeError:
            pass  # the loop was closed meanwhile

    if not servers.start_thread(run):
        return wait(timeout)  # no thread can run here, so the call itself waits, as `track` does
    return await answer
