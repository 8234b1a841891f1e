"""gunicorn with each class of worker, and uvicorn with workers of its own: visits, SIGTERM to the master, or Ctrl-C."""

from __future__ import annotations

import signal
import time
from typing import Any

import psutil

from letterapp.testing import stall

from ..ports import free_port
from ..visits import Visitors, stop, until

TITLES = {
    "gunicorn-sync": "gunicorn --preload, 2 workers, 300 requests; SIGTERM to the master",
    "gunicorn-gthread": "the same, with threads",
    "gunicorn-gevent": "the same, with gevent",
    "gunicorn-hup": "the same, with threads; HUP to the master halfway",
    "gunicorn-recycle": "the same, each worker replaced after 20 requests",
    "gunicorn-kill": "the same, with threads; 5 SIGKILLs of workers under load",
    "gunicorn-ctrl-c": "the same, with gevent, without --preload, each answer takes 0.5 s; Ctrl-C, and again",
    "gunicorn-uvicorn": "the same, uvicorn's worker: no exit code runs; exit_signals=(SIGTERM,) where it exists",
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
LAST_REQUESTS = 20  # some of whose events are still to be sent at the end
IMPATIENCE = 0.3  # seconds from one Ctrl-C to the next
PATIENCE = 40.0  # seconds for the end; gunicorn's own is 30 s


def outside(stage: Any) -> None:
    port = free_port()
    options = {"exit_signals": [signal.SIGTERM]} if stage.name == "gunicorn-uvicorn" else {}
    # Its control socket has a thread and descriptors that come when they like, and this is about the client's.
    (stage.folder / "gunicorn.conf.py").write_text("control_socket_disable = True")
    server = stage.serve("-m", *_command(stage.name, port), env=stage.env(**options))
    visitors = Visitors(server, port, *([LIFE] if stage.name == "gunicorn-recycle" else []))
    try:
        _visit(stage, server, visitors)
    finally:
        stop(stage, server, PATIENCE)


def _command(name: str, port: int) -> list[Any]:
    if name == "uvicorn-workers":
        return ["uvicorn", "app:closing", "--port", port, "--workers", WORKERS, "--no-access-log"]
    application = "app:asgi" if name == "gunicorn-uvicorn" else "app:app"
    address = f"127.0.0.1:{port}"
    preload = [] if name == "gunicorn-ctrl-c" else ["--preload"]
    return ["gunicorn", application, *preload, "-w", WORKERS, "-b", address, "-k", *WORKER_CLASSES[name]]


def _visit(stage: Any, server: Any, visitors: Visitors) -> None:
    stage.api.wait_for(1, seconds=5.0)  # of those that the master tracked: all that it needs is open
    workers = visitors.meet(WORKERS)
    stage.rest(server.pid)
    if stage.name == "gunicorn-hup":
        visitors.ask(REQUESTS, halfway=lambda: server.signal(signal.SIGHUP))
        until(lambda: not any(map(psutil.pid_exists, workers)), PATIENCE)
    elif stage.name == "gunicorn-kill":
        visitors.ask_and_kill(stage.random, server.pid)
    else:
        visitors.ask(REQUESTS)
    visitors.meet(WORKERS)
    stage.rest(server.pid)
    if stage.name == "gunicorn-ctrl-c":
        stage.api.rule = lambda _: stall(0.5)
        visitors.ask(LAST_REQUESTS)
        server.signal_group(signal.SIGINT)
        time.sleep(IMPATIENCE)
        server.signal_group(signal.SIGINT)
        stage.finish(server, seconds=PATIENCE)
