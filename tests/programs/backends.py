"""Programs of test_memory that use a client in several ways, with every storage backend. One of them is run by PyPy.

They import nothing that a Python may lack (see systems.py).
"""

from __future__ import annotations

import gc
import os
import sys
from typing import Callable

from letterapp import Letter
from programs.common import API, main, work
from programs.family import die, make


def child(end: Callable[[], object], job: Callable[[], object]) -> None:
    """Do ``job`` in a child that calls ``end``, and then comes to its end as this process does."""
    pid = (getattr(os, "their_fork", None) or os.fork)()
    if not pid:
        job()
        end()
        sys.exit(0)
    os.waitpid(pid, 0)


def come_to_its_end() -> None:
    """Nothing that comes before it."""


def every_use(kind: str) -> None:
    letter = make()
    small = make(overflow="drop_oldest", max_queue_events=50, on_error=lambda error: None)
    assert letter.stats()["memory"] == kind, letter.stats()
    work(letter, 500, "parent")
    child(letter.close, lambda: work(letter, 250, "closes"))
    child(come_to_its_end, lambda: work(letter, 250, "comes to its end"))

    def grow_up() -> None:
        work(letter, 10, "has a child")
        child(come_to_its_end, lambda: work(letter, 10, "grandchild"))

    child(come_to_its_end, grow_up)
    work(small, 120, "small")
    stats = small.stats()
    assert (stats["waiting"], stats["lost"]) == (50, {"overflow": 70}), stats
    assert small.flush() and small.stats()["delivered"] == 50
    child(die, lambda: work(letter, 30, "killed"))
    assert letter.flush()
    stats = letter.stats()
    assert stats["accepted"] == stats["delivered"] and stats["lost"] == {}, stats
    letter.track("found", "Worked", {"serial": 0, "stats": stats})
    work(letter, 150, "last")


def pypy() -> None:
    letter = make()
    assert letter.stats()["memory"] == "shared"
    work(letter, 250, "parent")
    child(letter.close, lambda: work(letter, 120, "closes"))
    child(come_to_its_end, lambda: work(letter, 120, "comes to its end"))
    child(die, lambda: work(letter, 120, "killed"))
    assert letter.flush() and letter.stats()["adopted"] == 120
    for _ in range(300):
        Letter("k", API)
    gc.collect()
    work(letter, 10, "parent", start=250)


main(globals())
