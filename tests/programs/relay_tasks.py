"""A Celery application whose client may have a relay. Its worker queues its own tasks when it is ready."""

from __future__ import annotations

import os

from celery import signals
from celery.exceptions import SoftTimeLimitExceeded

from programs.celery_app import app
from programs.relay_service import letter, say, stay, track

track("import", os.getpid())


def work(serial: int) -> None:
    track("task", serial)
    if serial < int(os.environ["TEST_STAYING"]):
        stay()


def work_without_end(first: int) -> None:
    try:
        for serial in range(first, first + 1000):
            track("endless", serial)
        while True:
            letter.stats()
            letter.flush(0.01)
    except SoftTimeLimitExceeded:
        say("stopped")


work_task = app.task(work)
endless_task = app.task(soft_time_limit=1.0)(work_without_end)  # a busy machine takes some to begin it


def queue_tasks(**_: object) -> None:
    for number in range(int(os.environ["TEST_ENDLESS"])):
        endless_task.delay(1000 * number)
    for serial in range(20):
        work_task.delay(serial)


signals.worker_ready.connect(queue_tasks)
