"""Load for a web server: requests from four threads at once, which record the process that responded to each.

Responsible for: waiting with a deadline, requests, SIGTERM, killing workers. A request without a response needs no
entry anywhere, because the application logs its own calls. Not responsible for: how a server is started.
"""

from __future__ import annotations

import contextlib
import http.client
import math
import os
import random
import signal
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Callable

import psutil

from .programs import Failure, Program

if TYPE_CHECKING:
    from .scenario_run import ScenarioRun

CONCURRENCY = 4  # threads that send requests
REQUEST_TIMEOUT = 3.0  # seconds
ROUND_TIMEOUT = 10.0  # seconds after which no more requests are sent, so that a server that hangs costs no more time
KILLS, REQUESTS_PER_KILL = 5, 60
START_TIMEOUT = 40.0  # seconds until a server listens
WORKERS_TIMEOUT = 30.0  # seconds until all workers have responded


def wait_until(condition: Callable[[], object], seconds: float) -> bool:
    """Poll until ``condition()`` is true, for lack of an event; False if it takes longer than ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def is_listening(port: int) -> bool:
    with socket.socket() as sock:
        sock.settimeout(1)
        return sock.connect_ex(("127.0.0.1", port)) == 0


def stop(run: ScenarioRun, server: Program, seconds: float) -> None:
    """Send SIGTERM, unless the server has already ended, and wait until it ends."""
    if server.is_running:
        server.signal(signal.SIGTERM)
    run.finish(server, seconds=seconds)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _is_reaped(pid: int) -> bool:
    return not psutil.pid_exists(pid)


class LoadGenerator:
    def __init__(self, server: Program, port: int, worker_life: float = math.inf) -> None:
        """Wait until the server listens. ``worker_life`` is the number of requests after which a worker ends."""
        self._responses: Counter[int] = Counter()  # by the process that responded
        self._port = port
        self._worker_life = worker_life
        wait_until(lambda: not server.is_running or is_listening(port), START_TIMEOUT)
        if not server.is_running:
            raise Failure(server.failure_text())

    def send_requests(self, requests: int, halfway: Callable[[], object] = lambda: None) -> None:
        """Send the given number of requests; call ``halfway`` after half of them."""
        deadline = time.monotonic() + ROUND_TIMEOUT
        with ThreadPoolExecutor(CONCURRENCY) as threads:
            sent = [threads.submit(self._send_request, deadline) for _ in range(requests)]
            sent[requests // 2].result()
            halfway()
        self._responses.update(filter(None, (each.result() for each in sent)))

    def kill_workers_under_load(self, rng: random.Random, master: int) -> None:
        """Kill one of ``master``'s workers under load, several times, each time after the replacement has started.

        Not before, because uWSGI loses track of a worker that it is replacing when it stops, and then waits forever.
        """
        workers = len(psutil.Process(master).children())
        for _ in range(KILLS):
            victim = rng.choice(sorted(child.pid for child in psutil.Process(master).children()))
            self.send_requests(REQUESTS_PER_KILL, halfway=partial(_kill, victim))
            wait_until(partial(_is_reaped, victim), ROUND_TIMEOUT)
            self.wait_for_workers(workers)

    def wait_for_workers(self, workers: int) -> set[int]:
        """Send requests until the given number of workers that are still alive have responded; return their pids.

        A worker that has not responded yet may not have installed its signal handlers.
        """
        deadline = time.monotonic() + WORKERS_TIMEOUT
        while len(self._lasting_workers()) < workers:
            if time.monotonic() > deadline:
                raise Failure(f"fewer than {workers} workers have responded")
            self.send_requests(CONCURRENCY)
        return self._lasting_workers()

    def _lasting_workers(self) -> set[int]:
        return {pid for pid, count in self._responses.items() if count < self._worker_life and psutil.pid_exists(pid)}

    def _send_request(self, deadline: float) -> int | None:
        """Return the process that responded, if one did."""
        if time.monotonic() > deadline:
            return None
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=REQUEST_TIMEOUT)
        try:
            connection.request("GET", "/")
            response = connection.getresponse()
            return int(response.read()) if response.status == 200 else None
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
