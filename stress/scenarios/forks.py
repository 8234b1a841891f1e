"""``os.fork()``: many children at the same time, and many generations."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..scenario_run import ScenarioRun

TITLES = {
    "fork-storm": "300 forks while events wait; the children track more",
    "generations": "30 generations of processes, each forked while events wait",
}
AT_ONCE = 8
TIMEOUT = 90.0


def inside(name: str) -> None:
    {"fork-storm": _storm, "generations": _generations}[name]()


def _storm() -> None:
    import tracker

    alive = set()
    for _ in range(300):
        tracker.track(5)
        pid = os.fork()
        if pid == 0:
            tracker.track(5)
            return
        alive.add(pid)
        while len(alive) >= AT_ONCE:
            alive.discard(os.wait()[0])
    for pid in alive:
        os.waitpid(pid, 0)


def _generations() -> None:
    import tracker

    for _ in range(30):
        tracker.track(10)
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
            return
    tracker.track(10)


def outside(run: ScenarioRun) -> None:
    run.finish(run.start(run.name, timeout=TIMEOUT), seconds=TIMEOUT)
