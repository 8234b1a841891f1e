"""A Celery worker that prints which exit callbacks run in it and in its child, and whether the child has ended."""

from __future__ import annotations

import atexit
import os
from multiprocessing import util  # whose registry is billiard's too
from typing import Any

from celery import signals

from programs.celery_app import app
from programs.locks import take
from programs.look import look


def tell(moment: str) -> None:
    state = "dead" if take(1) else "alive"
    os.write(1, f"at {moment}: {state}\n".encode())


def arm(who: str) -> None:
    atexit.register(tell, f"atexit of the {who}")
    for priority in 100, -100:
        util.Finalize(None, tell, (f"Finalize {priority} of the {who}",), exitpriority=priority)


def begin(**_: Any) -> None:
    arm("child")


def end(**_: Any) -> None:
    os.write(1, b"at worker_process_shutdown of the child\n")


def job() -> None:
    look()


task = app.task(job)


def queue(**_: Any) -> None:
    task.delay()


arm("parent")
signals.worker_process_init.connect(begin)
signals.worker_process_shutdown.connect(end)
signals.worker_ready.connect(queue)
