"""Killed workers of multiprocessing and concurrent.futures: what they leave is delivered."""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from families import family
from harness import whose

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere less is promised")

POOL = """
import multiprocessing, multiprocessing.util
context = multiprocessing.get_context('fork')
letter = make()

def job(number):
    letter.track('job', 'Worked', {'serial': number, 'pid': os.getpid()})
    return number
"""


def all_jobs(api: Any, count: int = 10_000) -> None:
    came = whose(api)
    assert list(came) == ["job"] and sorted(came["job"]) == list(range(count))


def test_a_pool_whose_with_terminates_its_workers(letter_api: Any, tmp_path: Path) -> None:
    body = """
    with context.Pool(4) as pool:
        assert sum(pool.map(job, range(10_000))) == sum(range(10_000))
    """
    family(POOL + dedent(body), letter_api, tmp_path)
    all_jobs(letter_api)


# Which of the two ends that a process has is the first depends on what was imported first.
both_orders = pytest.mark.parametrize("late", [False, True], ids=["multiprocessing first", "client first"])


def in_order(late: bool) -> str:
    return "letter = make()\n" + POOL.replace("letter = make()\n", "") if late else POOL


@both_orders
def test_a_pool_that_nobody_closes(late: bool, letter_api: Any, tmp_path: Path) -> None:
    body = """
    pool = context.Pool(4)
    assert sum(pool.map(job, range(10_000))) == sum(range(10_000))
    """
    family(in_order(late) + dedent(body), letter_api, tmp_path)
    all_jobs(letter_api)


def test_a_pool_in_a_multiprocessing_child(letter_api: Any, tmp_path: Path) -> None:
    body = """
    def middle():
        pool = context.Pool(2)
        pool.map(job, range(1000))
    child = context.Process(target=middle)
    child.start()
    child.join(60)
    assert child.exitcode == 0
    """
    family(POOL + dedent(body), letter_api, tmp_path)
    all_jobs(letter_api, 1000)


@both_orders
def test_a_daemon_that_the_end_of_its_parent_terminates(late: bool, letter_api: Any, tmp_path: Path) -> None:
    body = """
    there, done = os.pipe()
    def daemon():
        for number in range(500):
            job(number)
        os.write(done, b'.')
        stay()
    context.Process(target=daemon, daemon=True).start()
    os.read(there, 1)
    """
    family(in_order(late) + dedent(body), letter_api, tmp_path)
    all_jobs(letter_api, 500)


@pytest.mark.parametrize("end", ["kill", "terminate"])
def test_a_process_that_is_ended_by(end: str, letter_api: Any, tmp_path: Path) -> None:
    body = f"""
    there, done = os.pipe()
    def process():
        for number in range(500):
            job(number)
        os.write(done, b'.')
        stay()
    child = context.Process(target=process)
    child.start()
    os.read(there, 1)
    child.{end}()
    child.join(60)
    """
    family(POOL + dedent(body), letter_api, tmp_path)
    all_jobs(letter_api, 500)


def test_an_executor_whose_worker_is_killed(letter_api: Any, tmp_path: Path) -> None:
    # It terminates the others. The jobs write down outside of the client what they have tracked. Nothing of the
    # executor is cancelled, as `map` does: it does not survive that when it is broken.
    body = """
    from concurrent.futures import ProcessPoolExecutor, wait
    from concurrent.futures.process import BrokenProcessPool
    journal = os.open('journal', os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    def noted(number):
        job(number)
        os.write(journal, b'%d ' % number)
        if number == 300:
            die()
    with ProcessPoolExecutor(3, mp_context=context) as executor:
        futures = []
        try:
            for number in range(2000):
                futures.append(executor.submit(noted, number))
        except BrokenProcessPool:
            pass
        assert wait(futures, 40).not_done == set()
    """
    family(POOL + dedent(body), letter_api, tmp_path)
    tracked = {int(word) for word in (tmp_path / "journal").read_text().split()}
    came = set(whose(letter_api)["job"])
    assert 300 in tracked and tracked <= came and len(came - tracked) <= 2, "two others, between two lines"
