"""A parent and forked workers that come and go, for as long as you like, while the API fails now and then.

The faults are such that one more try gets through: no request meets two of them.
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

TITLES = {"soak": "--seconds of a parent and 4 workers that come and go; one request in 50 fails; no growth"}
LOOKS = 5
WORKERS = 4
EVERY = 0.01  # seconds between two events of a process
STDIN = 0


def inside(name: str, seed: str) -> None:
    """One line on stdin begins a stretch of work, the next ends it; then there is no worker, and a rest."""
    import tracker

    chance = random.Random(seed)
    tracker.track(50)
    while tracker.pause():
        alive: set[int] = set()
        while not select.select([STDIN], [], [], EVERY)[0]:
            tracker.track()
            alive = {pid for pid in alive if not os.waitpid(pid, os.WNOHANG)[0]}
            while len(alive) < WORKERS:
                life = chance.uniform(0.1, 2)
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
        time.sleep(EVERY)


def outside(run: ScenarioRun) -> None:
    import psutil

    program = run.start(run.name, run.random.random(), timeout=run.seconds + 60)
    sizes = []
    for look in range(LOOKS):
        program.receive()
        run.wait_for_all()
        if look:  # the first stretch warms it up
            run.check_for_leaks(program.pid)
        sizes.append(psutil.Process(program.pid).memory_info().rss / 1e6)
        if look < LOOKS - 1:
            run.api.rule = _faults(run.random)
            program.resume()
            time.sleep(run.seconds / (LOOKS - 1))
            run.api.rule = None
            program.resume()
    program.close_stdin()
    run.finish(program)
    run.notes.append("RSS at each look, MB: " + " ".join(f"{size:.1f}" for size in sizes))


def _faults(chance: random.Random) -> Any:
    from letterapp.testing import reset, status

    met = set()

    def rule(request: Any) -> Any:
        body = zlib.crc32(request.body)
        if body in met or chance.random() > 0.02:
            return None
        met.add(body)
        return chance.choice([status(503), status(500), reset(), reset(stored=True)])

    return rule
