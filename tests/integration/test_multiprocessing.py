"""multiprocessing and concurrent.futures: a worker's events go out when it ends, though `atexit` does not run there."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import run, whose

METHODS = multiprocessing.get_all_start_methods()

# A module of its own, because spawn and forkserver children import the main module anew.
MAIN = """
import multiprocessing, pickle
from concurrent.futures import ProcessPoolExecutor

letter = Letter('k', API, flush_interval=30, flush_at=10_000, exit_timeout=40)  # so that nothing leaves before an end
work(letter, 0)

def job(number):
    work(letter, 50, f'job {number}')
    return os.getpid()

def with_client(client, number):
    work(client, 50, f'job {number}')

def failing(number):
    work(letter, 50, f'job {number}')
    raise SystemExit(3) if number % 2 else RuntimeError('on purpose')

def grandparent(number):
    context = multiprocessing.get_context(sys.argv[1])
    child = context.Process(target=job, args=(f'{number}, grandchild',))
    child.start()
    job(number)
    child.join(60)

if __name__ == '__main__':
    context = multiprocessing.get_context(sys.argv[1])
    work(letter, 50, 'parent')
"""


def go(body: str, method: str, api: Any, tmp_path: Path) -> Any:
    indented = "\n".join(f"    {line}" for line in body.strip("\n").splitlines())
    finished = run(MAIN + indented + "\n", api.url, tmp_path, method)
    assert finished.code == 0, finished
    assert "Exception ignored" not in finished.output and "AssertionError" not in finished.output, finished
    return finished


def once(api: Any, jobs: dict[str, int]) -> None:
    expected = {"parent": list(range(50)), **{f"job {name}": list(range(count)) for name, count in jobs.items()}}
    assert whose(api) == expected
    assert api.repeated() == {}


@pytest.mark.parametrize("method", METHODS)
def test_process(method: str, letter_api: Any, tmp_path: Path) -> None:
    body = """
jobs = [context.Process(target=job, args=(number,)) for number in range(3)]
for each in jobs:
    each.start()
for each in jobs:
    each.join(60)
    assert each.exitcode == 0
"""
    go(body, method, letter_api, tmp_path)
    once(letter_api, {f"{number}": 50 for number in range(3)})


@pytest.mark.parametrize("method", METHODS)
def test_process_whose_target_raises_or_exits(method: str, letter_api: Any, tmp_path: Path) -> None:
    body = """
jobs = [context.Process(target=failing, args=(number,)) for number in range(2)]
for each in jobs:
    each.start()
for each in jobs:
    each.join(60)
assert [each.exitcode for each in jobs] == [1, 3]
"""
    go(body, method, letter_api, tmp_path)
    once(letter_api, {"0": 50, "1": 50})


@pytest.mark.parametrize("method", METHODS)
def test_pool_closed_and_joined(method: str, letter_api: Any, tmp_path: Path) -> None:
    body = """
with context.Pool(2) as pool:
    pool.map(job, range(8), chunksize=1)
    pool.close()
    pool.join()
"""
    go(body, method, letter_api, tmp_path)
    once(letter_api, {f"{number}": 50 for number in range(8)})


@pytest.mark.parametrize("method", METHODS)
def test_pool_whose_workers_are_replaced_after_each_task(method: str, letter_api: Any, tmp_path: Path) -> None:
    body = """
with context.Pool(2, maxtasksperchild=1) as pool:
    pids = pool.map(job, range(4), chunksize=1)
    pool.close()
    pool.join()
assert len(set(pids)) == 4
"""
    go(body, method, letter_api, tmp_path)
    once(letter_api, {f"{number}": 50 for number in range(4)})


@pytest.mark.parametrize("method", METHODS)
def test_process_pool_executor(method: str, letter_api: Any, tmp_path: Path) -> None:
    body = """
with ProcessPoolExecutor(2, mp_context=context) as executor:
    list(executor.map(job, range(6)))
"""
    go(body, method, letter_api, tmp_path)
    once(letter_api, {f"{number}": 50 for number in range(6)})


@pytest.mark.skipif(sys.version_info < (3, 11), reason="max_tasks_per_child came with 3.11")
def test_process_pool_executor_whose_workers_are_replaced(letter_api: Any, tmp_path: Path) -> None:
    body = """
with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as executor:
    list(executor.map(job, range(3)))
"""
    go(body, "spawn", letter_api, tmp_path)
    once(letter_api, {f"{number}": 50 for number in range(3)})


@pytest.mark.parametrize("method", METHODS)
def test_a_client_as_an_argument_of_a_job(method: str, letter_api: Any, tmp_path: Path) -> None:
    # One that exists nowhere else: the worker throws it away after the job, and its events still go out.
    body = """
mine = Letter('k', API, flush_interval=30, flush_at=10_000)
with context.Pool(2) as pool:
    pool.starmap(with_client, [(mine, number) for number in range(4)], chunksize=1)
    pool.close()
    pool.join()
"""
    go(body, method, letter_api, tmp_path)
    once(letter_api, {f"{number}": 50 for number in range(4)})


@pytest.mark.parametrize("method", METHODS)
def test_a_child_of_a_multiprocessing_child(method: str, letter_api: Any, tmp_path: Path) -> None:
    body = """
child = context.Process(target=grandparent, args=(0,))
child.start()
child.join(60)
"""
    go(body, method, letter_api, tmp_path)
    once(letter_api, {"0": 50, "0, grandchild": 50})


def test_events_of_a_terminated_pool_are_kept_down_to_what_waits(letter_api: Any, tmp_path: Path) -> None:
    # `with Pool` ends its workers by SIGTERM, where nothing of theirs can run. What was sent before is there; the
    # workers' last batch is what docs/guarantees.md says can be lost.
    body = """
def settled(number):
    job(number)
    letter.flush()
globals()['settled'] = settled
with context.Pool(2) as pool:
    pool.map(settled, range(4), chunksize=1)
"""
    if "fork" not in METHODS:
        pytest.skip("needs fork")
    go(body, "fork", letter_api, tmp_path)
    once(letter_api, {f"{number}": 50 for number in range(4)})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_multiprocessing_imported_after_the_client_was_made_and_used(letter_api: Any, tmp_path: Path) -> None:
    code = """
    letter = Letter('k', API, flush_interval=30)
    work(letter, 50, 'parent')
    import multiprocessing
    context = multiprocessing.get_context('fork')
    child = context.Process(target=work, args=(letter, 50, 'job 0'))
    child.start()
    child.join(60)
    """
    assert run(code, letter_api.url, tmp_path).code == 0
    once(letter_api, {"0": 50})


def test_an_event_tracked_while_a_spawned_child_imports_its_main_module(letter_api: Any, tmp_path: Path) -> None:
    # multiprocessing clears what such a child registered for its end before the job begins.
    code = """
    import multiprocessing
    letter = Letter('k', API, flush_interval=30, flush_at=10_000)
    if __name__ != '__main__':
        work(letter, 5, f'job import {sys.argv[1]}')
    def nothing():
        pass
    if __name__ == '__main__':
        work(letter, 50, 'parent')
        for method in ('spawn', 'forkserver'):
            if method in multiprocessing.get_all_start_methods():
                sys.argv[1:] = [method]
                child = multiprocessing.get_context(method).Process(target=nothing)
                child.start()
                child.join(60)
    """
    assert run(code, letter_api.url, tmp_path).code == 0
    assert {who: len(serials) for who, serials in whose(letter_api).items()} == {
        "parent": 50,
        **{f"job import {method}": 5 for method in METHODS if method != "fork"},
    }
