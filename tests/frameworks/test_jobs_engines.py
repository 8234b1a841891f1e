"""Dask, Ray and Spark: a worker is killed in the middle of a task, the task runs again, and its events count once."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import Program, eventually, needs, processes_with
from job_examples import Service, arrived, copy_of, kill_caller, settings


ORDERS = 40
KILLED_AT = 17  # in the middle of a task: each has five orders
java = pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java (Debian's default-jre-headless)")


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param("dask", marks=needs("distributed")),
        pytest.param("ray", marks=needs("ray")),
        pytest.param("pyspark", marks=[needs("pyspark"), java]),
    ],
)
def test_events_of_a_task_whose_worker_is_killed_arrive_once(engine: str, letter_api: Any, tmp_path: Path) -> None:
    held = f"/score/{KILLED_AT}"
    with Service(held) as service:
        env = settings(letter_api, SCORES_URL=service.url, SPARK_LOCAL_IP="127.0.0.1")
        with Program([sys.executable, "score.py"], env, copy_of(engine, tmp_path)) as program:
            assert service.wait_for(held), program.output
            # The events of the orders until now have arrived: the second run's must not count again.
            assert letter_api.wait_until(lambda: ("Order Scored", KILLED_AT) in orders(letter_api)), program.output
            killed = kill_caller(program, service, held)
            finished = program.finish()
            assert finished.code == 0, finished
            assert not program.left_behind(), finished
            for word in ("raylet", "gcs_server", "pyspark.daemon"):
                ours = eventually(lambda word=word: left_by(word, letter_api.url), lambda rest: not rest)
                assert not ours, ours

    expected = {("Order Scored", f"user_{order % 7}", order): 1 for order in range(ORDERS)}
    assert arrived(letter_api) == {**expected, ("Scores Done", "analysts", None): 1}, finished
    assert service.calls[held] == 2, f"the task of process {killed} did not run again"
    assert len(letter_api.repeated()) >= KILLED_AT % 5 + 1, "nothing of the first run had arrived"


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
