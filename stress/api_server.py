"""The API of one run: it stores the events of every client, and fails on demand.

Responsible for: parsing each client's batches, and stopping and restarting on the same port. The faults themselves are
those of `letterapp.testing`. Not responsible for: which events must have arrived.
"""

from __future__ import annotations

import gzip
import json
import threading
import time
from typing import Any, Callable, Iterator

from letterapp.testing import Fault, IngestionServer, Request

from .ledger import Key
from .ports import free_port

Rule = Callable[[Request], "Fault | None"]


class ApiServer:
    """Listens at once. What it has stored is kept during `down` and `up`. Thread-safe."""

    def __init__(self) -> None:
        self.arrivals: list[tuple[str, Key]] = []
        self.requests = 0
        self.rule: Rule | None = None  # called with each request; a fault that it returns replaces the normal response
        self.max_body: int | None = None
        self.changed = threading.Condition()  # guards `arrivals` and `requests`; notified when an event arrives
        self._is_down = False
        self._server = _Server(free_port(), self)  # a free one, to which it can return after `down`
        self.port = self._server.port
        self.url = self._server.url

    def down(self) -> None:
        """Refuse connections, and close those that are open."""
        self._server.close()
        self._is_down = True

    def up(self) -> None:
        self._server = _Server(self.port, self)
        self._is_down = False

    def answer_again(self) -> None:
        """Be up, and respond as usual."""
        self.rule = None
        if self._is_down:
            self.up()

    def wait_for(self, events: int, seconds: float = 20.0) -> bool:
        """Wait until this number of events, including duplicates, is stored; False after ``seconds``."""
        return self.wait_until(lambda: len(self.arrivals) >= events, seconds)

    def wait_until(self, condition: Callable[[], bool], seconds: float = 20.0) -> bool:
        with self.changed:
            return self.changed.wait_for(condition, seconds)

    def settle(self, seconds: float = 5.0) -> None:
        """Wait until the server's threads have read what ended clients left in their sockets."""
        deadline = time.monotonic() + seconds
        while self._server.is_busy and time.monotonic() < deadline:
            time.sleep(0.01)

    def close(self) -> None:
        self._server.close()


class _Server(IngestionServer):
    """The test server for every client's format: without the validation that letter.app does, and with gzip."""

    def __init__(self, port: int, api: ApiServer) -> None:
        self._api = api
        super().__init__(port)

    @property
    def is_busy(self) -> bool:
        return bool(self._server._open)

    def _note(self, request: Request) -> Fault | None:
        with self._api.changed:
            self._api.requests += 1
        rule = self._api.rule
        return rule(request) if rule is not None else None

    def _problem(self, request: Request) -> tuple[int, str, str] | None:
        limit = self._api.max_body
        is_larger = limit is not None and len(request.body) > limit
        return (413, "body", f"more than {limit} bytes") if is_larger else None

    def _keep(self, request: Request) -> None:
        stored = list(events_of(request))
        with self._api.changed:
            self._api.arrivals.extend(stored)
            self._api.changed.notify_all()


def events_of(request: Request) -> Iterator[tuple[str, Key]]:
    body = request.body
    if request.headers.get("content-encoding") == "gzip":
        body = gzip.decompress(body)
    parsed: Any = json.loads(body)
    for item in parsed["batch"]:
        sent = item["properties"]
        if "serial" in sent:
            yield item.get("messageId") or item["uuid"], (sent["who"], sent["serial"])
