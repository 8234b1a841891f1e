"""Visiting the applications for web servers, which are in tests/programs/web_*.py.

Responsible for: the ledger that every server has to balance. Not responsible for: how a server is started or stopped.
"""

from __future__ import annotations

import re
import socket
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from itertools import count
from typing import Any, Iterable

from harness import DEADLINE, Finished, WebServer, eventually, whose

IMPORTED = 3  # events that each process tracks while it imports the application; see programs/web_clients.py
WSGI, ASGI, FASTAPI = "programs.web_wsgi", "programs.web_asgi", "programs.web_fastapi"


class Gate:
    """Holds requests inside an application until the test has done what it wants to do meanwhile."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(DEADLINE)
        self._waiting: list[socket.socket] = []
        self.environment = {"TEST_GATE": str(self._listener.getsockname()[1])}

    def wait_for(self, requests: int) -> None:
        while len(self._waiting) < requests:
            self._waiting.append(self._listener.accept()[0])

    def open(self) -> None:
        self._listener.close()
        for waiting in self._waiting:
            waiting.close()

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: Any) -> None:
        self.open()


def without_servers_own(output: str) -> str:
    """What a server printed, without the beginnings of tracebacks of a SystemExit that met none of the client's code.

    gunicorn's workers raise one for each signal that has them leave at once, wherever they are: in the last moments of
    a request, which it logs, or under gevent in a separate greenlet, a tenth of a second later, when the main one is
    on its way out. Both with an application that has no client, too.
    """
    is_its_own = "SystemExit: 0" in output and not re.search(r'File ".*/letterapp/', output)
    # It may come while gunicorn formats another one, and then names what formats it.
    return re.sub(r"Traceback( \(most recent call last\):|Exception)", "", output) if is_its_own else output


class Visitor:
    """Asks a server, and knows which requests were answered and by whom."""

    def __init__(self, server: WebServer, workers: int) -> None:
        self.server = server
        self.answered: dict[int, int] = {}  # serial of the request, and the process that answered
        self._asked: set[int] = set()
        self._gated: set[int] = set()
        self._serials = count()
        self.wait_until_ready(workers)

    def wait_until_ready(self, workers: int) -> None:
        """Wait until ``workers`` processes have been ready to be stopped: before that a server has no handlers yet."""
        assert len(eventually(self.ready, lambda ready: len(ready) >= workers)) >= workers, self.server.output

    def ready(self) -> set[int]:
        return {int(pid) for pid in re.findall(r"ready (\d+)", self.server.output)}

    def ask(self, path: str = "/") -> int | None:
        """One request. Returns the process that answered; None if none did, as while a worker is replaced."""
        serial = next(self._serials)
        self._asked.add(serial)
        try:
            pid = int(self.server.get(f"{path}?{serial}"))
        except (OSError, HTTPException):
            return None
        if path == "/gate":
            self._gated.add(serial)
        self.answered[serial] = pid
        return pid

    def ask_many(self, requests: int) -> None:
        with ThreadPoolExecutor(4) as visitors:
            assert None not in list(visitors.map(lambda _: self.ask(), range(requests))), self.server.output

    def check(self, api: Any, finished: Finished, importers: Iterable[int]) -> None:
        """The ledger: what was answered arrived, once; and the server had nothing to complain about."""
        output = without_servers_own(finished.output)
        for word in ("Traceback", "Exception ignored", "letterapp:", "SIGKILL", "TIMEOUT"):
            assert word not in output, finished
        came = whose(api)
        assert api.repeated() == {}, finished
        for kind in ("late", "prompt"):
            requests = came.pop(f"request, {kind}", [])
            assert len(set(requests)) == len(requests), finished
            assert set(self.answered) <= set(requests) <= self._asked, (kind, finished)
            assert sorted(came.pop(f"after the gate, {kind}", [])) == sorted(self._gated), (kind, finished)
            for pid in importers:
                assert came.pop(f"import {pid}, {kind}", []) == list(range(IMPORTED)), (kind, pid, finished)
        # What is left was tracked by workers that were stopped before they were ready.
        assert not {who for who in came if int(who.split()[1].strip(",")) in self.ready()}, (came, finished)
