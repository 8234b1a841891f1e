"""Programs of test_server_facts: which children of multiprocessing are dead at which moment of a process's end."""

from __future__ import annotations

import atexit
import os
import sys
from typing import Any

from programs.common import main, stay
from programs.locks import take

mine: list[int] = []  # the slots of this program's children, whose process ids they are
kept: list[Any] = []  # until the interpreter ends
context: Any = None
barrier: Any = None


def tell(moment: str) -> None:
    """Say whether the owners of the slots in `mine` live."""
    free = [take(slot) for slot in mine]
    state = "dead" if all(free) else "alive" if not any(free) else "mixed"
    os.write(1, f"{moment}: {state}\n".encode())


def finalize() -> None:
    from multiprocessing import util

    util.Finalize(None, tell, ("Finalize 100",), exitpriority=100)
    util.Finalize(None, tell, ("Finalize -100",), exitpriority=-100)


def begin() -> None:
    """Have `tell` called before and after the exit callback that multiprocessing registers when it is imported."""
    global context, barrier
    assert "multiprocessing" not in sys.modules
    atexit.register(tell, "atexit, registered first")
    import multiprocessing
    from multiprocessing import util  # noqa: F401  (it is what registers)

    atexit.register(tell, "atexit, registered last")
    finalize()
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)


def own(_: object = None) -> int:
    assert take(os.getpid())
    barrier.wait()
    return os.getpid()


def own_and_stay() -> None:
    own()
    stay()


def process(daemon: bool) -> Any:
    started = context.Process(target=own_and_stay, daemon=daemon)
    started.start()
    barrier.wait()
    mine.append(started.pid)
    return started


def pool() -> Any:
    opened = context.Pool(2)
    mine.extend(opened.map(own, range(2), chunksize=1))
    return opened


def children(what: str) -> None:
    begin()
    if what == "a Pool that nobody closed":
        kept.append(pool())
    elif what == "a Pool in a with":
        with pool():
            pass
    elif what == "a daemon":
        process(True)
    elif what == "an executor that nobody shut down":
        from concurrent.futures import ProcessPoolExecutor

        executor = ProcessPoolExecutor(2, mp_context=context)
        kept.append(executor)
        mine.extend(executor.map(own, range(2)))
    elif what == "a Process that ends when asked":
        from multiprocessing import util

        util.Finalize(None, process(False).terminate, exitpriority=50)


def child_with_a_pool(finalizers: str) -> None:
    begin()

    def has_a_pool() -> None:
        kept.append(pool())
        if finalizers == "its own":
            finalize()

    child = context.Process(target=has_a_pool)
    child.start()
    child.join()
    os._exit(0)


def worker_of_a_pool(end: str) -> None:
    begin()
    with context.Pool(1, finalize) as opened:
        opened.apply_async(own if end == "close" else own_and_stay)
        barrier.wait()
        getattr(opened, end)()
        opened.join()
    os._exit(0)


main(globals())
