"""uWSGI, which forks without Python's hooks, preloaded or not, with and without threads; SIGTERM when workers are idle.

Idle, because uWSGI runs no exit handlers at all in a busy worker, where no client can send anything.
"""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING, Any

from ..http_load import LoadGenerator, stop, wait_until
from ..ports import free_port
from ..scenario_run import Skipped

if TYPE_CHECKING:
    from ..scenario_run import ScenarioRun

TITLES = {
    "uwsgi-default": "uWSGI with a master and 2 workers, preloaded, 300 requests; SIGTERM when the workers are idle",
    "uwsgi-lazy": "the same, --lazy-apps",
    "uwsgi-hooks": "the same, --py-call-uwsgi-fork-hooks --enable-threads",
    "uwsgi-threads": "the same, --threads 2",
    "uwsgi-kill": "the same, --enable-threads; 5 SIGKILLs of workers under load",
    "uwsgi-old": "the same, uWSGI 2.0.26, where no thread runs unless asked for",
}
FLAGS: dict[str, list[Any]] = {
    "uwsgi-lazy": ["--lazy-apps"],
    "uwsgi-hooks": ["--py-call-uwsgi-fork-hooks", "--enable-threads"],
    "uwsgi-kill": ["--enable-threads"],
    "uwsgi-threads": ["--threads", 2],
}
OLD = "pyuwsgi==2.0.26"
WORKERS = 2
REQUESTS = 300
TIMEOUT = 20.0  # seconds for the end; uWSGI's own limit is 60


def outside(run: ScenarioRun) -> None:
    port, stats = free_port(), free_port()
    server = run.start_server(
        *("-c", "from pyuwsgi import run; run()", "--module", "app:app", "--need-app", "--die-on-term"),
        *("--http-socket", f"127.0.0.1:{port}", "--stats", f"127.0.0.1:{stats}"),
        *("--master", "--processes", WORKERS, *FLAGS.get(run.name, ())),
        env=_old(run) if run.name == "uwsgi-old" else {},
    )
    load = LoadGenerator(server, port)
    try:
        load.wait_for_workers(WORKERS)
        if run.name == "uwsgi-kill":
            load.kill_workers_under_load(run.random, server.pid)
        else:
            load.send_requests(REQUESTS)
        wait_until(lambda: are_idle(stats), TIMEOUT)
    finally:
        stop(run, server, TIMEOUT)


def _old(run: ScenarioRun) -> dict[str, str]:
    try:
        folder = run.environments.package(OLD)
    except ValueError:
        raise Skipped(f"{OLD} cannot be installed here") from None
    return {"PYTHONPATH": os.pathsep.join([str(folder), run.env()["PYTHONPATH"]])}


def are_idle(stats: int) -> bool:
    """Ask the master, because a response does not mean that its worker is already waiting for the next request."""
    try:
        with socket.create_connection(("127.0.0.1", stats), 5) as sock:
            text = b"".join(iter(lambda: sock.recv(65536), b""))
    except OSError:
        return False
    workers = json.loads(text)["workers"] if text else []
    return bool(workers) and all(each["accepting"] and each["status"] == "idle" for each in workers)
