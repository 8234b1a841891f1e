"""``os.fork()``: many children at once, and children of children."""

from __future__ import annotations

import os
from typing import Any

TITLES = {
    "fork-storm": "300 forks with events waiting, children add theirs",
    "generations": "a child of a child, 30 deep, each with events waiting",
}
AT_ONCE = 8
PATIENCE = 90.0


def inside(name: str) -> None:
    {"fork-storm": _storm, "generations": _generations}[name]()


def _storm() -> None:
    import desk

    alive = set()
    for _ in range(300):
        desk.track(5)
        pid = os.fork()
        if pid == 0:
            desk.track(5)
            return
        alive.add(pid)
        while len(alive) >= AT_ONCE:
            alive.discard(os.wait()[0])
    for pid in alive:
        os.waitpid(pid, 0)


def _generations() -> None:
    import desk

    for _ in range(30):
        desk.track(10)
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
            return
    desk.track(10)


def outside(stage: Any) -> None:
    stage.finish(stage.play(stage.name, patience=PATIENCE), seconds=PATIENCE)
