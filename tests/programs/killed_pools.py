"""Programs of test_killed_pools: workers of multiprocessing and concurrent.futures that are killed.

The programs import `multiprocessing` themselves, since it matters whether that comes before a client is made.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from programs.common import made, stay
from programs.family import die, make
from programs.orphans import main

if TYPE_CHECKING:
    from multiprocessing.context import ForkContext, ForkProcess

_pool: object = None  # that of `open_pool`, which nothing touches before the interpreter ends
_journal = -1  # the descriptor of a file


def begin(first: str = "multiprocessing") -> ForkContext:
    """Make a client and import `multiprocessing`. Which of them is the first, its end of a process is the last."""
    assert "multiprocessing" not in sys.modules
    if first == "client":
        make()
    import multiprocessing
    import multiprocessing.util

    if first == "multiprocessing":
        make()
    return multiprocessing.get_context("fork")


def job(number: int) -> int:
    made[0].track("job", "Worked", {"serial": number, "pid": os.getpid()})
    return number


def terminated_pool() -> None:
    with begin().Pool(4) as pool:
        assert sum(pool.map(job, range(10_000))) == sum(range(10_000))


def open_pool(first: str) -> None:
    global _pool
    _pool = pool = begin(first).Pool(4)
    assert sum(pool.map(job, range(10_000))) == sum(range(10_000))


def pool_in_a_child() -> None:
    context = begin()

    def middle() -> None:
        pool = context.Pool(2)
        pool.map(job, range(1000))

    child = context.Process(target=middle)
    child.start()
    child.join(60)
    assert child.exitcode == 0


def _has_tracked(context: ForkContext, daemon: bool = False) -> ForkProcess:
    """A process that has tracked 500 events, and stays."""
    there, done = os.pipe()

    def track() -> None:
        for number in range(500):
            job(number)
        os.write(done, b".")
        stay()

    process = context.Process(target=track, daemon=daemon)
    process.start()
    os.read(there, 1)
    return process


def daemon(first: str) -> None:
    _has_tracked(begin(first), daemon=True)


def process(end: str) -> None:
    child = _has_tracked(begin())
    getattr(child, end)()
    child.join(60)


def noted(number: int) -> None:
    """A job that notes outside of the client that it has tracked. One of them is the last of its process."""
    job(number)
    os.write(_journal, b"%d " % number)
    if number == 300:
        die()


def executor() -> None:
    global _journal
    context = begin()
    from concurrent.futures import ProcessPoolExecutor, wait
    from concurrent.futures.process import BrokenProcessPool

    _journal = os.open("journal", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    with ProcessPoolExecutor(3, mp_context=context) as pool:
        futures = []
        try:
            for number in range(2000):
                futures.append(pool.submit(noted, number))
        except BrokenProcessPool:
            pass
        assert wait(futures, 40).not_done == set()


main(globals())
