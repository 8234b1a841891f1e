"""The tasks of a Celery worker, which gets them when it is ready. TEST_JOBS: their number, and how many are held.

These first ones stay until the test lets them go, one in each child or thread, so that every child has worked.
"""

from __future__ import annotations

import json
import os
import urllib.request
from typing import Any

from programs.celery_clients import API, quick, slow  # isort: skip  (before Celery, unless a test imports that first)

from celery import signals

from programs.celery_app import app

TEST = json.loads(os.environ["TEST_JOBS"])


def work(serial: int) -> None:
    slow.track("slow", "Worked", {"serial": serial})
    if serial < TEST["hold"]:
        urllib.request.urlopen(f"{API}/hold/{os.getpid()}", b"{}", timeout=60).read()
    quick.track("quick", "Worked", {"serial": serial})


task = app.task(work)


def queue(**_: Any) -> None:
    for serial in range(TEST["tasks"]):
        task.delay(serial)


signals.worker_ready.connect(queue)
