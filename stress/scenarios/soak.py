"""A parent and forked workers that start and end, for as long as one likes, while the API fails now and then.

No request fails twice, so one retry is always enough.
"""

from __future__ import annotations

import os
import random
import select
import sys
import time
import zlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..scenario_run import ScenarioRun

TITLES = {"soak": "--seconds of a parent and 4 workers that start and end; one request in 50 fails; no growth"}
CHECKS = 5
WORKERS = 4
INTERVAL = 0.01  # seconds between two events of a process
STDIN = 0


def inside(name: str, seed: str) -> None:
    """One line on stdin starts a period of work, the next one ends it; then there are no workers, and a pause."""
    import tracker

    rng = random.Random(seed)
    tracker.track(50)
    while tracker.pause():
        alive: set[int] = set()
        while not select.select([STDIN], [], [], INTERVAL)[0]:
            tracker.track()
            alive = {pid for pid in alive if not os.waitpid(pid, os.WNOHANG)[0]}
            while len(alive) < WORKERS:
                life = rng.uniform(0.1, 2)
                pid = os.fork()
                if pid == 0:
                    _work(life)
                    return
                alive.add(pid)
        sys.stdin.readline()
        for pid in alive:
            os.waitpid(pid, 0)
        tracker.track(50)


def _work(seconds: float) -> None:
    import tracker

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        tracker.track()
        time.sleep(INTERVAL)


def outside(run: ScenarioRun) -> None:
    import psutil

    program = run.start(run.name, run.random.random(), timeout=run.seconds + 60)
    sizes = []
    for number in range(CHECKS):
        program.receive()
        run.wait_for_all()
        if number:  # the first period is a warm-up
            run.check_for_leaks(program.pid)
        sizes.append(psutil.Process(program.pid).memory_info().rss / 1e6)
        if number < CHECKS - 1:
            run.api.rule = _faults(run.random)
            program.resume()
            time.sleep(run.seconds / (CHECKS - 1))
            run.api.rule = None
            program.resume()
    program.close_stdin()
    run.finish(program)
    run.notes.append("RSS at each check, MB: " + " ".join(f"{size:.1f}" for size in sizes))


def _faults(rng: random.Random) -> Any:
    from letterapp.testing import reset, status

    failed = set()

    def rule(request: Any) -> Any:
        body = zlib.crc32(request.body)
        if body in failed or rng.random() > 0.02:
            return None
        failed.add(body)
        return rng.choice([status(503), status(500), reset(), reset(stored=True)])

    return rule
