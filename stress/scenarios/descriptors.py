"""Many forks, generations, clients in one life: threads and descriptors at its end as at its beginning."""

from __future__ import annotations

import os
import sys
from typing import Any

TITLES = {
    "descriptors": "10,000 forks of a process that tracks; 100 of the children track too",
    "descriptors-generations": "a child of a child, 20 deep: none has more descriptors than the first",
    "clients-made": "30 clients made, used and closed, one after the other, in one process",
}
FORKS, AT_ONCE = 10_000, 8
DEEP = 20
CLIENTS = 30
PATIENCE = {"descriptors": 100.0, "descriptors-generations": 60.0, "clients-made": 60.0}


def inside(name: str) -> None:
    {"descriptors": _forks, "descriptors-generations": _generations, "clients-made": _clients}[name]()


def _forks() -> None:
    import desk

    desk.track(100)
    desk.pause()
    alive = set()
    for number in range(FORKS):
        if number % 20 == 0:
            desk.track()
        pid = os.fork()
        if pid == 0:
            if number % 100 == 0:
                desk.track(5)
                sys.exit()
            os._exit(0)
        alive.add(pid)
        if len(alive) >= AT_ONCE:
            alive.discard(os.wait()[0])
    for pid in alive:
        os.waitpid(pid, 0)
    desk.track(100)
    desk.pause()


def _generations() -> None:
    import desk

    for _ in range(DEEP):
        desk.track(100)
        desk.pause(pid=os.getpid())
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
            return


def _clients() -> None:
    import desk
    import users

    desk.close()  # the one that every program has

    for number in range(CLIENTS):
        desk.open().client = users.make(os.environ["STRESS_CLIENT"], os.environ["STRESS_URL"], desk.open().tell)
        desk.track(5)
        desk.close()
        if number in (1, CLIENTS - 1):
            desk.pause()


def outside(stage: Any) -> None:
    program = stage.play(stage.name, patience=PATIENCE[stage.name])
    looks = DEEP if stage.name == "descriptors-generations" else 2
    for _ in range(looks):
        pid = program.hear().get("pid", program.pid)
        stage.wait_for_all()
        stage.rest(pid, like=program.pid)
        program.go_on()
    stage.finish(program, seconds=PATIENCE[stage.name])
