"""A running Celery worker, and what must be true of the events that its tasks tracked.

Responsible for: starting it, holding its first tasks, its end. Not responsible for: when a test stops it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from harness import Program, environment, whose

from letterapp.testing import Hold

# Celery has a child killed when the thread that forked it ends (PR_SET_PDEATHSIG): at a warm shutdown, that is a child
# that has replaced another one. If it holds the lock of the pool's queue, the parent waits for that forever. (celery
# 5.7, billiard's `_help_stuff_finish`)
WITHOUT_DEATH_SIGNAL = "import celery.platforms; celery.platforms.set_pdeathsig = lambda name: None\n"


class Celery(Program):
    """A running worker, and the tasks that it gets when it is ready: programs/celery_jobs.py.

    ``first``: a line of code that is run before these are imported.
    """

    def __init__(self, api: Any, cwd: Path, *flags: str, tasks: int = 40, hold: int = 2, first: str = "") -> None:
        (cwd / "queue").mkdir()
        (cwd / "jobs.py").write_text(f"{first}from programs.celery_jobs import app\n")
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
