"""RQ: each job in a process of its own, which imports the client for it and leaves by ``os._exit``. Redis is real."""

from __future__ import annotations

import contextlib
import shutil
import signal
from typing import Any, Iterator

TITLES = {
    "rq-worker": "rq worker --burst, 40 jobs: each work horse imports the client, and leaves by os._exit",
    "rq-worker-stop": "the same without --burst; SIGTERM to the worker at work after 20 jobs: a warm shutdown",
    "rq-worker-pool": "rq worker-pool, 2 workers, 40 jobs; SIGTERM to the pool at work after 20",
    "rq-spawn-worker": "rq worker --burst with the SpawnWorker, 15 jobs",
}
QUEUED = {"rq-worker": 40, "rq-worker-stop": 40, "rq-worker-pool": 40, "rq-spawn-worker": 15}  # jobs
DONE = 20  # jobs before the end
A_JOB = 3  # events
COMMANDS = {
    "rq-worker": ("worker", "--burst"),
    "rq-worker-stop": ("worker",),
    "rq-worker-pool": ("worker-pool", "--num-workers", 2),
    "rq-spawn-worker": ("worker", "--burst", "--worker-class", "rq.worker.SpawnWorker"),
}
START = 20.0  # seconds for Redis to listen
PATIENCE = 60.0


def inside(name: str, url: str) -> None:
    import redis
    import rq

    queue = rq.Queue(connection=redis.Redis.from_url(url))
    for _ in range(QUEUED[name]):
        queue.enqueue("jobs.work", A_JOB)


def outside(stage: Any) -> None:
    from ..visits import stop, until

    with _redis(stage) as url:
        stage.finish(stage.play(stage.name, url))
        worker = stage.serve("-m", "rq.cli", *COMMANDS[stage.name], "--quiet", "--url", url, patience=2 * PATIENCE)
        if "--burst" not in COMMANDS[stage.name]:
            until(lambda: stage.calls >= DONE * A_JOB or not worker.is_running, PATIENCE)
            stop(stage, worker, PATIENCE)
        stage.finish(worker, seconds=PATIENCE)


@contextlib.contextmanager
def _redis(stage: Any) -> Iterator[str]:
    """A server of its own, with nothing on disk. It is none of the programs that are looked at."""
    from ..ports import free_port
    from ..programs import Failure, Program
    from ..stage import Skipped
    from ..visits import listens, until

    found = shutil.which("redis-server")
    if found is None:
        raise Skipped("needs redis-server: apt install redis-server")
    port = free_port()
    flags = ("--bind", "127.0.0.1", "--save", "", "--dir", stage.folder, "--port", port)
    with Program(found, *flags, cwd=stage.folder, talks=False, patience=4 * PATIENCE) as server:
        if not until(lambda: listens(port), START):
            server.signal(signal.SIGKILL)
            raise Failure(server.last_words())
        try:
            yield f"redis://127.0.0.1:{port}"
        finally:
            server.signal(signal.SIGTERM)
