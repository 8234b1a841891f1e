"""A Celery application whose broker is kombu's, a folder of files: nothing to install or to start.

Another broker can be named by ``TEST_BROKER``.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from kombu.connection import Connection

FOLDER = {
    "data_folder_in": "queue",
    "data_folder_out": "queue",
    "control_folder": "control",
    "polling_interval": 0.02,
}

broker = os.environ.get("TEST_BROKER", "filesystem://")
app = Celery("jobs", broker=broker)
app.conf.update(
    broker_transport_options=FOLDER if broker == "filesystem://" else {},
    broker_connection_retry_on_startup=True,
    worker_enable_remote_control=False,
)

# Celery notices a stop between two waits for messages, each of which takes 2 s when there are none.
_connection: Any = Connection
_drain_events = _connection.drain_events


def _drain_events_shortly(self: Any, timeout: float | None = None, **options: Any) -> Any:
    return _drain_events(self, timeout=None if timeout is None else min(timeout, 0.1), **options)


_connection.drain_events = _drain_events_shortly
