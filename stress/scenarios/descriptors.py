"""Many forks, generations of processes and clients, which must not leak threads or descriptors."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..scenario_run import ScenarioRun

TITLES = {
    "descriptors": "10,000 forks of a process that tracks; 100 of the children track too",
    "descriptors-generations": "20 generations of processes: none has more descriptors than the first",
    "clients-made": "30 clients created, used and closed, one after the other, in one process",
}
FORKS, AT_ONCE = 10_000, 8
GENERATIONS = 20
CLIENTS = 30
TIMEOUT = {"descriptors": 100.0, "descriptors-generations": 60.0, "clients-made": 60.0}


def inside(name: str) -> None:
    {"descriptors": _forks, "descriptors-generations": _generations, "clients-made": _clients}[name]()


def _forks() -> None:
    import tracker

    tracker.track(100)
    tracker.pause()
    alive = set()
    for number in range(FORKS):
        if number % 20 == 0:
            tracker.track()
        pid = os.fork()
        if pid == 0:
            if number % 100 == 0:
                tracker.track(5)
                sys.exit()
            os._exit(0)
        alive.add(pid)
        if len(alive) >= AT_ONCE:
            alive.discard(os.wait()[0])
    for pid in alive:
        os.waitpid(pid, 0)
    tracker.track(100)
    tracker.pause()


def _generations() -> None:
    import tracker

    for _ in range(GENERATIONS):
        tracker.track(100)
        tracker.pause(pid=os.getpid())
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
            return


def _clients() -> None:
    import default_clients
    import tracker

    tracker.close()  # the client that every program has

    for number in range(CLIENTS):
        tracker.instance().client = default_clients.make(
            os.environ["STRESS_CLIENT"], os.environ["STRESS_URL"], tracker.instance().record_given_up
        )
        tracker.track(5)
        tracker.close()
        if number in (1, CLIENTS - 1):
            tracker.pause()


def outside(run: ScenarioRun) -> None:
    program = run.start(run.name, timeout=TIMEOUT[run.name])
    counts = GENERATIONS if run.name == "descriptors-generations" else 2
    for _ in range(counts):
        pid = program.receive().get("pid", program.pid)
        run.wait_for_all()
        run.check_for_leaks(pid, like=program.pid)
        program.resume()
    run.finish(program, seconds=TIMEOUT[run.name])
