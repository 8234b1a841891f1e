"""The programs of test_multiprocessing, as a separate file: spawned and forkserver children import it again.

``pools.py NAME METHOD`` runs one of them with a start method of multiprocessing.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from letterapp import Letter
from programs.common import main, make, work

# So that nothing leaves before an end.
letter = make(flush_interval=30, flush_at=10_000, exit_timeout=40)
work(letter, 0)
context: Any = multiprocessing.get_context(sys.argv[2])


def job(number: object) -> int:
    work(letter, 50, f"job {number}")
    return os.getpid()


def with_client(client: Letter, number: int) -> None:
    work(client, 50, f"job {number}")


def failing(number: int) -> None:
    work(letter, 50, f"job {number}")
    raise SystemExit(3) if number % 2 else RuntimeError("on purpose")


def settled(number: int) -> None:
    job(number)
    letter.flush()


def grandparent(number: int) -> None:
    child = context.Process(target=job, args=(f"{number}, grandchild",))
    child.start()
    job(number)
    child.join(60)


def _processes(target: Any, count: int) -> list[int]:
    """Run that many processes to their ends; return their exit statuses."""
    jobs = [context.Process(target=target, args=(number,)) for number in range(count)]
    for each in jobs:
        each.start()
    for each in jobs:
        each.join(60)
    return [each.exitcode for each in jobs]


def process(_: str) -> None:
    assert _processes(job, 3) == [0, 0, 0]


def failing_processes(_: str) -> None:
    assert _processes(failing, 2) == [1, 3]


def nested_process(_: str) -> None:
    _processes(grandparent, 1)


def pool(_: str) -> None:
    with context.Pool(2) as opened:
        opened.map(job, range(8), chunksize=1)
        opened.close()
        opened.join()


def pool_with_one_task_a_child(_: str) -> None:
    with context.Pool(2, maxtasksperchild=1) as opened:
        pids = opened.map(job, range(4), chunksize=1)
        opened.close()
        opened.join()
    assert len(set(pids)) == 4


def pool_with_a_client_as_argument(_: str) -> None:
    mine = Letter("k", os.environ["TEST_API"], flush_interval=30, flush_at=10_000)
    with context.Pool(2) as opened:
        opened.starmap(with_client, [(mine, number) for number in range(4)], chunksize=1)
        opened.close()
        opened.join()


def terminated_pool(_: str) -> None:
    with context.Pool(2) as opened:
        opened.map(settled, range(4), chunksize=1)


def executor(_: str) -> None:
    with ProcessPoolExecutor(2, mp_context=context) as opened:
        list(opened.map(job, range(6)))


def executor_with_one_task_a_child(_: str) -> None:
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as opened:  # type: ignore[call-overload]
        list(opened.map(job, range(3)))


if __name__ == "__main__":
    work(letter, 50, "parent")
    main(globals())
