"""RQ: each job runs in a separate process, which imports the client and ends with ``os._exit``. Redis is real."""

from __future__ import annotations

import contextlib
import shutil
import signal
from typing import TYPE_CHECKING, Iterator

if TYPE_CHECKING:
    from ..scenario_run import ScenarioRun

TITLES = {
    "rq-worker": "rq worker --burst, 40 jobs: each work horse imports the client, and ends with os._exit",
    "rq-worker-stop": "the same without --burst; SIGTERM to the busy worker after 20 jobs: a warm shutdown",
    "rq-worker-pool": "rq worker-pool, 2 workers, 40 jobs; SIGTERM to the busy pool after 20",
    "rq-spawn-worker": "rq worker --burst with the SpawnWorker, 15 jobs",
}
QUEUED = {"rq-worker": 40, "rq-worker-stop": 40, "rq-worker-pool": 40, "rq-spawn-worker": 15}  # jobs
DONE = 20  # jobs before SIGTERM
PER_JOB = 3  # events
COMMANDS = {
    "rq-worker": ("worker", "--burst"),
    "rq-worker-stop": ("worker",),
    "rq-worker-pool": ("worker-pool", "--num-workers", 2),
    "rq-spawn-worker": ("worker", "--burst", "--worker-class", "rq.worker.SpawnWorker"),
}
START = 20.0  # seconds for Redis to listen
TIMEOUT = 60.0


def inside(name: str, url: str) -> None:
    import redis
    import rq

    queue = rq.Queue(connection=redis.Redis.from_url(url))
    for _ in range(QUEUED[name]):
        queue.enqueue("rq_jobs.work", PER_JOB)


def outside(run: ScenarioRun) -> None:
    from ..http_load import stop, wait_until

    with _redis(run) as url:
        run.finish(run.start(run.name, url))
        worker = run.start_server("-m", "rq.cli", *COMMANDS[run.name], "--quiet", "--url", url, timeout=2 * TIMEOUT)
        if "--burst" not in COMMANDS[run.name]:
            wait_until(lambda: run.calls >= DONE * PER_JOB or not worker.is_running, TIMEOUT)
            stop(run, worker, TIMEOUT)
        run.finish(worker, seconds=TIMEOUT)


@contextlib.contextmanager
def _redis(run: ScenarioRun) -> Iterator[str]:
    """Run a Redis server for this scenario, without persistence. It is not one of the programs that are tested."""
    from ..http_load import is_listening, wait_until
    from ..ports import free_port
    from ..programs import Failure, Program
    from ..scenario_run import Skipped

    found = shutil.which("redis-server")
    if found is None:
        raise Skipped("needs redis-server: apt install redis-server")
    port = free_port()
    flags = ("--bind", "127.0.0.1", "--save", "", "--dir", run.folder, "--port", port)
    with Program(found, *flags, cwd=run.folder, json_output=False, timeout=4 * TIMEOUT) as server:
        if not wait_until(lambda: is_listening(port), START):
            server.signal(signal.SIGKILL)
            raise Failure(server.failure_text())
        try:
            yield f"redis://127.0.0.1:{port}"
        finally:
            server.signal(signal.SIGTERM)
