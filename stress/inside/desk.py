"""Where a program calls its client and writes down what returned: ``track``, and ``say`` and ``pause`` for the harness.

Runs in the client's interpreter; standard library only. Lives here: the journal. Each thread of each process has a
page of its own, a file with one line a call, written by the kernel before the next call begins; so it survives any
kill. What the client tells its error callback goes to another. Never here: what a program does.

The one client of an interpreter is made by `open`, forked children inherit it, as in a preloading server.
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

import users

_numbers = itertools.count()


class Page:
    """What one thread's calls returned for."""

    def __init__(self, folder: str) -> None:
        # The time and a number tell it from a page of an earlier process or thread with the same identity.
        self.who = f"{os.getpid()}-{time.monotonic_ns()}-{next(_numbers)}"
        self.file = os.open(os.path.join(folder, self.who), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.serial = 0


class Desk:
    def __init__(self) -> None:
        self.folder = os.environ["STRESS_JOURNAL"]
        self._pid = os.getpid()
        self._pages: dict[int, Page] = {}
        self.client = users.make(os.environ["STRESS_CLIENT"], os.environ["STRESS_URL"], self.tell)

    def track(self) -> None:
        page = self._page()
        serial, page.serial = page.serial, page.serial + 1
        began = time.perf_counter_ns()
        answer = self.client.track(properties={"who": page.who, "serial": serial, "plan": "pro", "amount": 12.5})
        taken = (time.perf_counter_ns() - began) // 1000
        refused = " refused" if self.client.refused(answer) else ""
        os.write(page.file, f"{serial} {taken}{refused}\n".encode())

    def tell(self, events: Any, unnamed: int = 0) -> None:
        """The client's error callback: ``events`` are those that it names as given up, ``unnamed`` those it counts."""
        lines = [f"{item['properties']['who']} {item['properties']['serial']}\n" for item in events]
        if unnamed or not lines:
            lines.append(f"{unnamed}\n")  # 0: an error that says nothing of events
        file = os.open(os.path.join(self.folder, f"told-{os.getpid()}"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(file, "".join(lines).encode())
        os.close(file)

    def turn_over(self) -> None:
        """Close all pages, for a process whose descriptors somebody else closes: its next calls begin new ones."""
        while self._pages:
            os.close(self._pages.popitem()[1].file)

    def _page(self) -> Page:
        if self._pid != os.getpid():
            self._pid = os.getpid()
            inherited, self._pages = self._pages, {}
            for page in inherited.values():
                os.close(page.file)
        thread = threading.get_ident()
        if thread not in self._pages:
            self._pages[thread] = Page(self.folder)
        return self._pages[thread]


_desk: Desk | None = None


def open() -> Desk:
    """Make this interpreter's client, unless it is made: a spawned child does so at its first call."""
    global _desk
    if _desk is None:
        _desk = Desk()
    return _desk


def track(events: int = 1) -> None:
    desk = open()
    for _ in range(events):
        desk.track()


def turn_over() -> None:
    open().turn_over()


def track_until_told(events: int = 5, every: float = 0.01) -> None:
    """Track some ``every`` so many seconds, until the harness says go on (or has gone)."""
    while not select.select([0], [], [], every)[0]:
        track(events)
    sys.stdin.readline()


def close() -> None:
    open().client.close()


def say(**figures: Any) -> None:
    """One line to the harness."""
    os.write(1, (json.dumps(figures) + "\n").encode())


def pause(**figures: Any) -> bool:
    """Tell the harness that this point is reached, and wait for its word; False when it has gone."""
    say(**figures)
    return bool(sys.stdin.readline())
