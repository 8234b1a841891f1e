"""gunicorn reads this file by itself: `gunicorn shop:app`.

The client needs none of these hooks. They show that a hook may track, in whichever process it runs.
"""

from typing import Any

workers = 2
preload_app = True  # one client, made before the forks: what a killed worker had not sent is sent by the others


def when_ready(server: Any) -> None:  # in the master
    track("Server Started")


def post_fork(server: Any, worker: Any) -> None:  # in each worker
    track("Worker Started")


def worker_exit(server: Any, worker: Any) -> None:  # in a worker that ends normally
    track("Worker Ended")


def child_exit(server: Any, worker: Any) -> None:  # in the master, also for a worker that was killed
    track("Worker Gone")


def on_exit(server: Any) -> None:  # in the master
    track("Server Ended")


def track(event: str) -> None:
    from shop import letter

    letter.track("shop", event)
