"""Dask, Ray and Spark: a worker is killed in the middle of a task, the task runs again, and its events count once."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from harness import Program, eventually, needs, processes_with
from job_examples import Service, arrived, copy_of, kill_caller, once, settings

ORDERS = 40
KILLED_AT = 17  # in the middle of a task: each has five orders
java = pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java (Debian's default-jre-headless)")


engines = pytest.mark.parametrize(
    "engine",
    [
        pytest.param("dask", marks=needs("distributed")),
        pytest.param("ray", marks=needs("ray")),
        pytest.param("pyspark", marks=[needs("pyspark"), java]),
    ],
)
EXPECTED = once(
    *[("Order Scored", f"user_{order % 7}", order) for order in range(ORDERS)], ("Scores Done", "analysts", None)
)


@engines
def test_events_of_a_task_whose_worker_is_killed_arrive_once(engine: str, letter_api: Any, tmp_path: Path) -> None:
    held = f"/score/{KILLED_AT}"
    with Service(held) as service, run(engine, letter_api, service, tmp_path) as program:
        assert service.wait_for(held), program.output
        # The events of the orders until now have arrived: the second run's must not count again.
        assert letter_api.wait_until(lambda: ("Order Scored", KILLED_AT) in orders(letter_api)), program.output
        killed = kill_caller(program, service, held)
        output = ended(program, letter_api)

    assert arrived(letter_api) == EXPECTED, output
    assert service.calls[held] == 2, f"the task of process {killed} did not run again"
    assert len(letter_api.repeated()) >= KILLED_AT % 5 + 1, "nothing of the first run had arrived"


@engines
def test_events_that_wait_are_sent_before_a_task_returns(engine: str, letter_api: Any, tmp_path: Path) -> None:
    with Service() as service, run(engine, letter_api, service, tmp_path, late=True) as program:
        output = ended(program, letter_api)
    assert arrived(letter_api) == EXPECTED, output
    assert letter_api.repeated() == {}


@pytest.mark.gate
def test_the_clients_of_many_tasks_leave_no_thread_and_no_descriptor(make: Any, letter_api: Any) -> None:
    """An engine unpickles the client again and again in one process: each task has its own copy."""
    pickled = pickle.dumps(make())

    def task(order: int) -> None:
        letter = pickle.loads(pickled)
        letter.track("user_42", "Order Scored", {"order": order})
        assert letter.flush()

    def held() -> tuple[int, int]:
        letter_api.drop_connections()
        return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))

    task(0)
    before = eventually(held, lambda found: threading.active_count() <= 2)
    for order in range(1, 50):
        task(order)
    after = eventually(held, lambda found: found <= before, timeout=4)  # less than what ends an idle thread
    assert after <= before
    assert letter_api.distinct == 50


def run(engine: str, api: Any, service: Service, tmp_path: Path, late: bool = False) -> Program:
    env = settings(api, late, SCORES_URL=service.url, SPARK_LOCAL_IP="127.0.0.1")
    return Program([sys.executable, "score.py"], env, copy_of(engine, tmp_path))


def ended(program: Program, api: Any) -> str:
    """Wait for the end of the program, and of all that it has started. Returns what it printed."""
    finished = program.finish()
    assert finished.code == 0, finished
    assert not program.left_behind(), finished
    for word in ("raylet", "gcs_server", "pyspark.daemon"):
        ours = eventually(partial(left_by, word, api.url), lambda rest: not rest)
        assert not ours, ours
    return finished.output


def orders(api: Any) -> set[tuple[str, int]]:
    return {(item["event"], item["properties"].get("order", -1)) for item in list(api.events)}


def left_by(word: str, url: str) -> list[int]:
    """Living processes with ``word`` in their command line that the program with this API has started."""
    mine = f"LETTER_BASE_URL={url}".encode()
    found = []
    for process, _ in processes_with(word):
        try:
            if mine in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
                found.append(process.pid)
        except OSError:
            pass
    return found
