"""A program whose spawned children track an event while they import it."""

from __future__ import annotations

import multiprocessing
import sys
from typing import Any

from programs.common import make, work

letter = make(flush_interval=30, flush_at=10_000)
if __name__ != "__main__":
    work(letter, 5, f"job import {sys.argv[1]}")


def nothing() -> None:
    pass


if __name__ == "__main__":
    work(letter, 50, "parent")
    for method in ("spawn", "forkserver"):
        if method in multiprocessing.get_all_start_methods():
            sys.argv[1:] = [method]
            context: Any = multiprocessing.get_context(method)
            child = context.Process(target=nothing)
            child.start()
            child.join(60)
