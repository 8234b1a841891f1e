"""Calls the client and logs every call that returned: ``track``, and ``notify`` and ``pause`` for the harness.

Runs in the client's interpreter; standard library only. Responsible for: the logs. Each thread of each process has a
separate file with one line a call, written to the kernel before the next call begins, so that it survives any kill.
What the client reports to its error callback goes to another file. Not responsible for: what a program does.

`instance` makes the one client of an interpreter; forked children inherit it, as in a server that preloads.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import sys
import threading
import time
from typing import Any

import default_clients

_numbers = itertools.count()


class CallLog:
    """The calls of one thread that returned."""

    def __init__(self, folder: str) -> None:
        # The time and a number distinguish it from the log of an earlier process or thread with the same id.
        self.who = f"{os.getpid()}-{time.monotonic_ns()}-{next(_numbers)}"
        self.file = os.open(os.path.join(folder, self.who), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.serial = 0


class Tracker:
    def __init__(self) -> None:
        self.folder = os.environ["STRESS_LOGS"]
        self._pid = os.getpid()
        self._logs: dict[int, CallLog] = {}
        self.client = default_clients.make(os.environ["STRESS_CLIENT"], os.environ["STRESS_URL"], self.record_given_up)

    def track(self) -> None:
        log = self._log()
        serial, log.serial = log.serial, log.serial + 1
        began = time.perf_counter_ns()
        result = self.client.track(properties={"who": log.who, "serial": serial, "plan": "pro", "amount": 12.5})
        taken = (time.perf_counter_ns() - began) // 1000
        refused = " refused" if self.client.refused(result) else ""
        os.write(log.file, f"{serial} {taken}{refused}\n".encode())

    def record_given_up(self, events: Any, unnamed: int = 0) -> None:
        """The client's error callback: ``events`` are the events that it gave up, ``unnamed`` how many more it did."""
        lines = [f"{item['properties']['who']} {item['properties']['serial']}\n" for item in events]
        if unnamed or not lines:
            lines.append(f"{unnamed}\n")  # 0: an error that mentions no events
        path = os.path.join(self.folder, f"reported-{os.getpid()}")
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(file, "".join(lines).encode())
        os.close(file)

    def close_logs(self) -> None:
        """Close all logs, for a process that is about to close every descriptor; its next calls open new ones."""
        while self._logs:
            os.close(self._logs.popitem()[1].file)

    def _log(self) -> CallLog:
        if self._pid != os.getpid():
            self._pid = os.getpid()
            inherited, self._logs = self._logs, {}
            for log in inherited.values():
                os.close(log.file)
        thread = threading.get_ident()
        if thread not in self._logs:
            self._logs[thread] = CallLog(self.folder)
        return self._logs[thread]


_tracker: Tracker | None = None


def instance() -> Tracker:
    """This interpreter's tracker; made by the first call, which in a spawned child is its first `track`."""
    global _tracker
    if _tracker is None:
        _tracker = Tracker()
    return _tracker


def track(events: int = 1) -> None:
    tracker = instance()
    for _ in range(events):
        tracker.track()


def close_logs() -> None:
    instance().close_logs()


def track_until_resumed(events: int = 5, interval: float = 0.01) -> None:
    """Track some events every ``interval`` seconds until the harness resumes this program, or has ended."""
    while not select.select([0], [], [], interval)[0]:
        track(events)
    sys.stdin.readline()


def close() -> None:
    instance().client.close()


def notify(**figures: Any) -> None:
    """Send one object to the harness."""
    os.write(1, (json.dumps(figures) + "\n").encode())


def pause(**figures: Any) -> bool:
    """Notify the harness that this point is reached, and wait until it resumes this program; False if it has ended."""
    notify(**figures)
    return bool(sys.stdin.readline())
