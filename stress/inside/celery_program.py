"""A Celery worker that queues its own tasks. The broker is a directory of files.

Runs in the client's interpreter. Responsible for: the application and its tasks. Not responsible for: when it ends.
"""

from __future__ import annotations

import time
from typing import Any

import celery
import celery.signals
import tracker

AT_START, PER_TASK = 5, 3  # events
TASK = 0.02  # seconds
FOLDERS = {"data_folder_in": "queue", "data_folder_out": "queue", "control_folder": "control"}


def run(tasks: int, recycle: bool = False) -> None:
    """Run this number of tasks with two prefork children; with ``recycle`` each child is replaced after 10 tasks."""
    app = celery.Celery("jobs", broker="filesystem://")
    app.conf.broker_transport_options = {**FOLDERS, "polling_interval": 0.02}
    app.conf.broker_connection_retry_on_startup = True
    app.conf.worker_enable_remote_control = False

    @app.task(name="work")  # type: ignore[untyped-decorator]  # Celery has no types
    def work() -> None:
        tracker.track(PER_TASK)
        time.sleep(TASK)

    @celery.signals.worker_ready.connect  # type: ignore[untyped-decorator]  # Celery has no types
    def queue(**_: Any) -> None:
        for _number in range(tasks):
            work.delay()

    tracker.track(AT_START)
    flags = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "WARNING"]
    children = ["--concurrency", "2", *(["--max-tasks-per-child", "10"] if recycle else [])]
    app.worker_main(["worker", *children, *flags])
