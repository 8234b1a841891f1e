"""Visitors of a web server: they wait until it listens, ask it from four threads at once, and know who answered.

Lives here: waiting with a deadline, requests, SIGTERM. What was not answered needs no ledger, because the application
writes down its own calls. Never here: how a server is started.
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
from typing import Any, Callable

import psutil

from .programs import Failure, Program

AT_ONCE = 4  # visitors
ANSWER = 3.0  # seconds that a visitor waits for one answer
ROUND = 10.0  # seconds after which visitors ask no more, so that a server that stands still costs no more
KILLS, REQUESTS_A_KILL = 5, 60
START = 40.0  # seconds for a server to listen
MEETING = 30.0  # seconds for so many workers to answer


def until(true: Callable[[], Any], seconds: float) -> bool:
    """Look until it is true, for what gives no signal of its own; False when it takes longer than ``seconds``."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def listens(port: int) -> bool:
    with socket.socket() as sock:
        sock.settimeout(1)
        return sock.connect_ex(("127.0.0.1", port)) == 0


def stop(stage: Any, server: Program, seconds: float) -> None:
    """SIGTERM, unless it has ended by itself."""
    if server.is_running:
        server.signal(signal.SIGTERM)
    stage.finish(server, seconds=seconds)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _is_reaped(pid: int) -> bool:
    return not psutil.pid_exists(pid)


class Visitors:
    def __init__(self, server: Program, port: int, life: float = math.inf) -> None:
        """Wait until the server listens. ``life`` are the requests after which a worker leaves."""
        self._answers: Counter[int] = Counter()  # by the process that answered
        self._port = port
        self._life = life
        until(lambda: not server.is_running or listens(port), START)
        if not server.is_running:
            raise Failure(server.last_words())

    def ask(self, requests: int, halfway: Callable[[], object] = lambda: None) -> None:
        """Make so many requests; call ``halfway`` in the middle of them."""
        deadline = time.monotonic() + ROUND
        with ThreadPoolExecutor(AT_ONCE) as visitors:
            asked = [visitors.submit(self._ask, deadline) for _ in range(requests)]
            asked[requests // 2].result()
            halfway()
        self._answers.update(filter(None, (each.result() for each in asked)))

    def ask_and_kill(self, chance: random.Random, master: int) -> None:
        """Kill one of ``master``'s workers in the middle of some requests, and again when another has taken its place.

        Not before: uWSGI forgets a worker that it is just replacing when it stops, and waits for ever.
        """
        workers = len(psutil.Process(master).children())
        for _ in range(KILLS):
            victim = chance.choice(sorted(child.pid for child in psutil.Process(master).children()))
            self.ask(REQUESTS_A_KILL, halfway=partial(_kill, victim))
            until(partial(_is_reaped, victim), ROUND)
            self.meet(workers)

    def meet(self, workers: int) -> set[int]:
        """Ask until so many workers that stay have answered. Before that one may not know what a signal is."""
        deadline = time.monotonic() + MEETING
        while len(self._staying()) < workers:
            if time.monotonic() > deadline:
                raise Failure(f"fewer than {workers} workers have answered")
            self.ask(AT_ONCE)
        return self._staying()

    def _staying(self) -> set[int]:
        return {pid for pid, answers in self._answers.items() if answers < self._life and psutil.pid_exists(pid)}

    def _ask(self, deadline: float) -> int | None:
        """Return the process that answered, if one did."""
        if time.monotonic() > deadline:
            return None
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=ANSWER)
        try:
            connection.request("GET", "/")
            answer = connection.getresponse()
            return int(answer.read()) if answer.status == 200 else None
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
