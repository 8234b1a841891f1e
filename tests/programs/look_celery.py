"""A Celery worker whose children call `look`. It gets two jobs, and the first stays until its child is killed."""

from __future__ import annotations

from typing import Any

from celery import signals

from programs.celery_app import app
from programs.common import stay
from programs.look import look


def job() -> None:
    if not look():
        stay()


task = app.task(job)


def queue(**_: Any) -> None:
    task.delay()
    task.delay()


signals.worker_ready.connect(queue)
