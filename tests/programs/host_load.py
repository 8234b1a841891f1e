"""What runs on a host of its own beside its servers: visitors, a producer of tasks, a program with a pool.

Each goes on until the file that it is told exists.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from http.client import HTTPConnection, HTTPException
from itertools import count
from multiprocessing import Pool

from programs.common import main

VISITORS = 3
PACE = 0.01  # seconds between two requests of a visitor, and between two tasks


def visitors(address: str, until: str) -> None:
    """Ask the server at ``address``, each time with another number. A request without an answer is not repeated."""
    serials = count()
    answered = [0] * VISITORS

    def visit(visitor: int) -> None:
        while not os.path.exists(until):
            connection = HTTPConnection(address, timeout=10)
            try:
                connection.request("GET", f"/?{next(serials)}")
                answered[visitor] += connection.getresponse().read() == b"ok"
            except (OSError, HTTPException):
                pass  # its worker was killed
            finally:
                connection.close()
            time.sleep(PACE)

    threads = [threading.Thread(target=visit, args=(visitor,)) for visitor in range(VISITORS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"{sum(answered)} of {next(serials)} answered")


def producer(until: str) -> None:
    """Queue tasks of `programs.relay_tasks`, whose first 20 its worker has queued itself."""
    from programs.celery_app import app

    for serial in count(20):
        if os.path.exists(until):
            break
        app.send_task("programs.relay_tasks.work", [serial])
        time.sleep(PACE)
    print(f"{serial - 20} queued")


def silent_api(port: str, until: str) -> None:
    """Accept connections where a client thinks that the API is, and never answer."""
    with socket.create_server(("127.0.0.1", int(port)), backlog=128):
        while not os.path.exists(until):
            time.sleep(PACE)


def _job(serial: int) -> int:
    from programs.relay_service import track

    for each in range(5):
        track(f"job-{serial}", each)
        time.sleep(PACE)
    return serial


def pool(until: str) -> None:
    """Jobs for a pool whose workers are terminated at its end. The client is made before the fork."""
    from programs import relay_service  # noqa: F401

    with Pool(4) as workers:
        for first in count(0, 40):
            if os.path.exists(until):
                break
            jobs = range(first, first + 40)
            assert workers.map(_job, jobs, chunksize=1) == list(jobs)


main(globals())
