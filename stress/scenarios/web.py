"""gunicorn with each worker class, and uvicorn with its own workers: requests, SIGTERM to the master, or Ctrl-C."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Any

import psutil

from letterapp.testing import stall

from ..http_load import LoadGenerator, stop, wait_until
from ..ports import free_port

if TYPE_CHECKING:
    from ..scenario_run import ScenarioRun

TITLES = {
    "gunicorn-sync": "gunicorn --preload, 2 workers, 300 requests; SIGTERM to the master",
    "gunicorn-gthread": "the same, with threads",
    "gunicorn-gevent": "the same, with gevent",
    "gunicorn-hup": "the same, with threads; HUP to the master halfway",
    "gunicorn-recycle": "the same, each worker replaced after 20 requests",
    "gunicorn-kill": "the same, with threads; 5 SIGKILLs of workers under load",
    "gunicorn-ctrl-c": "the same, with gevent, without --preload, each API response takes 0.5 s; Ctrl-C twice",
    "gunicorn-uvicorn": "the same, uvicorn's worker: no exit handler runs; exit_signals=(SIGTERM,) where it exists",
    "uvicorn-workers": "uvicorn --workers 2, 300 requests; SIGTERM to the master; the lifespan closes the client",
}
LIFE = 20  # requests
THREADS = ("gthread", "--threads", 4)
WORKER_CLASSES = {
    "gunicorn-sync": ("sync",),
    "gunicorn-gthread": THREADS,
    "gunicorn-gevent": ("gevent",),
    "gunicorn-ctrl-c": ("gevent",),
    "gunicorn-hup": THREADS,
    "gunicorn-kill": THREADS,
    "gunicorn-recycle": ("sync", "--max-requests", LIFE),
    "gunicorn-uvicorn": ("uvicorn.workers.UvicornWorker",),
}
WORKERS = 2
REQUESTS = 300
LAST_REQUESTS = 20  # some of whose events are not yet sent when Ctrl-C arrives
BETWEEN_SIGNALS = 0.3  # seconds
TIMEOUT = 40.0  # seconds for the end; gunicorn's own limit is 30


def outside(run: ScenarioRun) -> None:
    port = free_port()
    options = {"exit_signals": [signal.SIGTERM]} if run.name == "gunicorn-uvicorn" else {}
    # Without its control socket, whose thread and descriptors would be counted with the client's.
    (run.folder / "gunicorn.conf.py").write_text("control_socket_disable = True")
    server = run.start_server("-m", *_command(run.name, port), env=run.env(**options))
    load = LoadGenerator(server, port, *([LIFE] if run.name == "gunicorn-recycle" else []))
    try:
        _send_load(run, server, load)
    finally:
        stop(run, server, TIMEOUT)


def _command(name: str, port: int) -> list[Any]:
    if name == "uvicorn-workers":
        return ["uvicorn", "app:closing", "--port", port, "--workers", WORKERS, "--no-access-log"]
    application = "app:asgi" if name == "gunicorn-uvicorn" else "app:app"
    address = f"127.0.0.1:{port}"
    preload = [] if name == "gunicorn-ctrl-c" else ["--preload"]
    return ["gunicorn", application, *preload, "-w", WORKERS, "-b", address, "-k", *WORKER_CLASSES[name]]


def _send_load(run: ScenarioRun, server: Any, load: LoadGenerator) -> None:
    run.api.wait_for(1, seconds=5.0)  # the master's first event: its client has opened everything that it needs
    workers = load.wait_for_workers(WORKERS)
    run.check_for_leaks(server.pid)
    if run.name == "gunicorn-hup":
        load.send_requests(REQUESTS, halfway=lambda: server.signal(signal.SIGHUP))
        wait_until(lambda: not any(map(psutil.pid_exists, workers)), TIMEOUT)
    elif run.name == "gunicorn-kill":
        load.kill_workers_under_load(run.random, server.pid)
    else:
        load.send_requests(REQUESTS)
    load.wait_for_workers(WORKERS)
    run.check_for_leaks(server.pid)
    if run.name == "gunicorn-ctrl-c":
        run.api.rule = lambda _: stall(0.5)
        load.send_requests(LAST_REQUESTS)
        server.signal_group(signal.SIGINT)
        time.sleep(BETWEEN_SIGNALS)
        server.signal_group(signal.SIGINT)
        run.finish(server, seconds=TIMEOUT)
