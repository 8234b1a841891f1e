"""A `SenderManager` with Celery, whose parent imports the tasks and starts the manager.

What was tracked must arrive, once as the API counts, however the process ended, and the server has nothing to complain
about. A manager's process is no child of a server and keeps none of its ports, and it ends soon after the last process
that it served.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from celery_worker import WITHOUT_DEATH_SIGNAL, Celery
from harness import eventually, needs, whose
from managed_servers import FIRST, Managers, managers_directory, started  # noqa: F401  (a fixture for all tests)

pytestmark = [pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Unix"), pytest.mark.slow]


@pytest.fixture
def celery(letter_api: Any, runtime: Managers, tmp_path: Path) -> Iterator[Callable[..., Celery]]:
    running: list[Celery] = []

    def start(*flags: str, first: str = "", **options: Any) -> Celery:
        running.append(Celery(letter_api, tmp_path, *flags, first=FIRST + first, **options))
        return running[-1]

    yield start
    for worker in running:
        worker.hold.release()
        worker.__exit__()


@needs("celery")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["warm shutdown", "Ctrl-C"])
def test_a_shutdown_of_celery(number: int, celery: Any, runtime: Managers) -> None:
    worker = celery()
    worker.let_tasks_finish()
    runtime.serving(worker)
    assert len(set(worker.workers())) == 2
    assert "slow" not in whose(worker.api)
    output = worker.stop(number, group=number == signal.SIGINT)
    runtime.are_gone(worker)
    assert "local fallback" not in output and "letterapp manager [" not in output, output
    worker.all_arrived_once()


@needs("celery")
def test_celery_replaces_its_children_after_max_tasks(celery: Any, runtime: Managers) -> None:
    worker = celery("--max-tasks-per-child", "3", tasks=12, first=WITHOUT_DEATH_SIGNAL)
    before = eventually(lambda: started(worker), bool)
    worker.let_tasks_finish()
    # Twelve tasks in threes: each child that worked has ended normally, but for the last of each of the two places.
    assert worker.api.wait_until(lambda: len(whose(worker.api).get("slow", [])) >= 8), worker.output
    assert runtime.serving(worker) == before
    output = worker.stop(signal.SIGTERM)
    runtime.are_gone(worker)
    assert "local fallback" not in output and "letterapp manager [" not in output, output
    worker.all_arrived_once()


@needs("celery")
def test_the_manager_ends_when_celery_is_killed(celery: Any, runtime: Managers) -> None:
    worker = celery()
    worker.let_tasks_finish()
    runtime.serving(worker)
    worker.signal_group(signal.SIGKILL)
    worker.finish()
    assert not worker.left_behind()
    runtime.are_gone(worker)
    assert sorted(whose(worker.api)["quick"]) == worker.tasks
