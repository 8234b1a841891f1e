"""A parent process and the forked workers that it replaces, for every scenario that disturbs one of them.

Runs in the client's interpreter; standard library only. Responsible for: forking, and ending workers with their parent.
Not responsible for: the signals, which the harness sends.
"""

from __future__ import annotations

import os
import select
import time

import tracker

WORKERS = 4
INTERVAL = 0.005  # seconds between two events of a process
STDIN = 0


def run(parent_tracks: bool, afterwards: int = 0) -> None:
    """Keep the workers running until stdin is closed. A pipe that only the parent writes to ends them with it.

    ``afterwards`` is the number of events that a worker tracks after its parent's end.
    """
    parents_end, write_end = os.pipe()
    alive: set[int] = set()
    tracker.track(50)
    while not _is_readable(STDIN):
        alive = {pid for pid in alive if not os.waitpid(pid, os.WNOHANG)[0]}
        while len(alive) < WORKERS:
            pid = os.fork()
            if pid == 0:
                os.close(write_end)
                track_until_readable(parents_end)
                for _ in range(afterwards):
                    tracker.track()
                    time.sleep(INTERVAL)
                return
            alive.add(pid)
            if len(alive) == WORKERS:
                tracker.notify()
        if parent_tracks:
            tracker.track()
    os.close(write_end)
    for pid in alive:
        os.waitpid(pid, 0)


def track_until_readable(descriptor: int) -> None:
    while not _is_readable(descriptor):
        tracker.track()


def _is_readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], INTERVAL)[0])
