"""gunicorn's configuration for killed_gunicorn.py."""

from __future__ import annotations

import os

from letterapp._delivery import shutdown

# The master does not look for events when it forks, or who delivers them would be a matter of time.
shutdown._next_recovery = float("inf")

control_socket_disable = True  # newer versions would have a separate thread in the master


def post_worker_init(worker: object) -> None:
    os.write(1, f"ready {os.getpid()} ".encode())
