"""Celery: what finished tasks tracked arrives once, in every pool and however the worker ends.

A prefork child leaves by `os._exit`, past `atexit` and every `Finalize`, so a client that relies on those loses all
that waits. The broker is kombu's, a folder of files: nothing to install or to start.
"""

from __future__ import annotations

import importlib.util
import json
import signal
import sys
from pathlib import Path
from typing import Any, Iterator

import pytest
from harness import Program, environment, eventually, whose

from letterapp.testing import Hold

pytestmark = pytest.mark.skipif(importlib.util.find_spec("celery") is None, reason="celery is not installed")

# What `slow` holds leaves only when the process ends. The first tasks stay until the test lets them go, one in each
# child or thread, so that every child has worked.
CLIENTS = """
import json, os, urllib.request
from letterapp import Letter

API = os.environ["TEST_API"]
slow = Letter("k", API, flush_interval=3600, flush_at=10_000, exit_timeout=25)
quick = Letter("k", API, flush_interval=0.02, exit_timeout=25)
for letter, name in (slow, "slow at import"), (quick, "quick at import"):
    letter.track(name, "Imported", {"serial": os.getpid()})
"""

TASKS = """
from celery import Celery, signals

TEST = json.loads(os.environ["TEST_JOBS"])
app = Celery("jobs", broker="filesystem://")
app.conf.update(
    broker_transport_options={
        "data_folder_in": "queue", "data_folder_out": "queue", "control_folder": "control", "polling_interval": 0.02,
    },
    broker_connection_retry_on_startup=True,
    worker_enable_remote_control=False,
)

@app.task
def work(serial):
    slow.track("slow", "Worked", {"serial": serial})
    if serial < TEST["hold"]:
        urllib.request.urlopen(API + "/hold/" + str(os.getpid()), b"{}", timeout=60).read()
    quick.track("quick", "Worked", {"serial": serial})

@signals.worker_ready.connect
def queue(**_):
    for serial in range(TEST["tasks"]):
        work.delay(serial)
"""

# In a file of its own, as an application would have it, so that the order of the imports is the test's.
CELERY_FIRST = "import celery, celery.signals\n"


class Celery(Program):
    """A running worker, and the tasks that it gets when it is ready."""

    def __init__(self, api: Any, cwd: Path, *flags: str, tasks: int = 40, hold: int = 2, first: str = "") -> None:
        (cwd / "queue").mkdir()
        (cwd / "jobs.py").write_text(first + CLIENTS + TASKS)
        self.api = api
        self.tasks = list(range(tasks))
        self.hold = Hold()
        self._held = hold
        api.rule = lambda request: self.hold if request.path.startswith("/hold/") else None
        command = [sys.executable, "-m", "celery", "-A", "jobs", "worker", "--loglevel", "WARNING"]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat", "--concurrency", "2", *flags]
        super().__init__(command, environment(api.url, TEST_JOBS=json.dumps({"tasks": tasks, "hold": hold})), cwd)

    def workers(self) -> list[str]:
        """The processes that hold a task."""
        return [request.path for request in self.api.requests if request.path.startswith("/hold/")]

    def let_tasks_finish(self) -> None:
        """Wait until a task is held in each child or thread, release them, and wait for the last task."""
        assert self.api.wait_until(lambda: len(self.workers()) == self._held), self.output
        self.hold.release()
        assert self.api.wait_until(lambda: sorted(whose(self.api).get("quick", [])) == self.tasks), self.output

    def stop(self, number: int, group: bool = False) -> str:
        """Signal the worker; it must end soon, quietly and whole. Returns what it printed."""
        (self.signal_group if group else self.signal)(number)
        return self.ended()

    def ended(self) -> str:
        finished = self.finish()
        assert not self.left_behind(), finished
        for complaint in ("Traceback", "letterapp:", "Fatal"):
            assert complaint not in finished.output, finished
        return finished.output

    def all_arrived_once(self) -> None:
        came = {who: sorted(serials) for who, serials in whose(self.api).items()}
        assert came.pop("quick at import") == came.pop("slow at import") == [self.pid], self.output
        assert came == {"quick": self.tasks, "slow": self.tasks}, self.output
        assert self.api.repeated() == {}


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


@pytest.mark.parametrize("first", ["", CELERY_FIRST], ids=["before celery is imported", "after celery is imported"])
def test_a_warm_shutdown_loses_nothing_of_a_client_that_was_made(first: str, celery: Any) -> None:
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


def test_a_child_that_leaves_after_its_share_of_tasks_loses_nothing(celery: Any) -> None:
    worker = celery("--max-tasks-per-child", "3", tasks=12)
    worker.let_tasks_finish()
    # Twelve tasks in threes: each child that worked has left by itself, but for the last of each of the two places.
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
