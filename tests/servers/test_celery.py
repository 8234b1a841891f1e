"""Celery: events of finished tasks arrive once, in every pool and however the worker ends.

A prefork child leaves by `os._exit`, past `atexit` and every `Finalize`, so a client that relies on those loses all
that waits. The broker is kombu's, a folder of files: nothing to install or to start.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any, Iterator

import pytest
from celery_worker import WITHOUT_DEATH_SIGNAL, Celery
from harness import eventually, needs, whose

pytestmark = [needs("celery"), pytest.mark.slow]


@pytest.fixture
def celery(letter_api: Any, tmp_path: Path) -> Iterator[Any]:
    """Starts a worker, and ends what is left of it."""
    running: list[Celery] = []

    def work(*flags: str, **options: Any) -> Celery:
        running.append(Celery(letter_api, tmp_path, *flags, **options))
        return running[-1]

    yield work
    for worker in running:
        worker.hold.release()
        worker.__exit__()


@pytest.mark.parametrize(
    "first", ["", "import celery, celery.signals\n"], ids=["before celery is imported", "after celery is imported"]
)
def test_a_warm_shutdown_loses_nothing_of_a_client_created(first: str, celery: Any) -> None:
    worker = celery(first=first)
    worker.let_tasks_finish()
    assert len(set(worker.workers())) == 2
    assert "slow" not in whose(worker.api)
    worker.stop(signal.SIGTERM)
    worker.all_arrived_once()


def test_a_warm_shutdown_waits_for_running_tasks_and_sends_what_they_tracked(celery: Any) -> None:
    worker = celery(tasks=2)
    assert worker.api.wait_until(lambda: len(worker.workers()) == 2), worker.output
    worker.signal(signal.SIGTERM)
    assert "Warm shutdown" in eventually(lambda: worker.output, lambda text: "Warm shutdown" in text)
    worker.hold.release()
    worker.ended()
    worker.all_arrived_once()


def test_a_cold_shutdown_loses_nothing_of_finished_tasks(celery: Any) -> None:
    worker = celery()
    worker.let_tasks_finish()
    worker.stop(signal.SIGQUIT)
    worker.all_arrived_once()


def test_ctrl_c_loses_nothing(celery: Any) -> None:
    worker = celery()
    worker.let_tasks_finish()
    worker.stop(signal.SIGINT, group=True)
    worker.all_arrived_once()


def test_a_child_that_ends_after_max_tasks_loses_nothing(celery: Any) -> None:
    worker = celery("--max-tasks-per-child", "3", tasks=12, first=WITHOUT_DEATH_SIGNAL)
    worker.let_tasks_finish()
    # Twelve tasks in threes: each child that worked has ended normally, but for the last of each of the two places.
    assert worker.api.wait_until(lambda: len(whose(worker.api).get("slow", [])) >= 8), worker.output
    worker.stop(signal.SIGTERM)
    worker.all_arrived_once()


@pytest.mark.parametrize("pool, hold", [("solo", 1), ("threads", 2)])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_pool_without_processes_loses_nothing(pool: str, hold: int, number: int, celery: Any) -> None:
    worker = celery("--pool", pool, hold=hold)
    worker.let_tasks_finish()
    worker.stop(number, group=number == signal.SIGINT)
    worker.all_arrived_once()
