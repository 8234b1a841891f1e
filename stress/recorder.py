"""The API of one performance: it stores what comes from any of the clients, and misbehaves when told.

Lives here: reading each client's batch, and going down and up on one port. The faults are `letterapp.testing`'s. Never
here: what must have come.
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


class Api:
    """Listens from the start. What it has stored outlives `down` and `up`. Any thread may use it."""

    def __init__(self) -> None:
        self.arrivals: list[tuple[str, Key]] = []
        self.requests = 0
        self.rule: Rule | None = None  # asked about each request; what it returns is done in the request's place
        self.max_body: int | None = None
        self.changed = threading.Condition()  # guards the two figures above; notified when something came
        self._server = _Server(free_port(), self)  # it comes back at the same
        self.port = self._server.port
        self.url = self._server.url

    def down(self) -> None:
        """Refuse connections, and drop those that are open."""
        self._server.close()

    def up(self) -> None:
        self._server = _Server(self.port, self)

    def wait_for(self, events: int, seconds: float = 20.0) -> bool:
        """Wait until so many events were stored, repeated ones counted; False when it takes longer than ``seconds``."""
        return self.wait_until(lambda: len(self.arrivals) >= events, seconds)

    def wait_until(self, true: Callable[[], bool], seconds: float = 20.0) -> bool:
        with self.changed:
            return self.changed.wait_for(true, seconds)

    def settle(self, seconds: float = 5.0) -> None:
        """Wait until what dead clients left in their sockets has been read: the server's threads have gone then."""
        deadline = time.monotonic() + seconds
        while self._server.is_busy and time.monotonic() < deadline:
            time.sleep(0.01)

    def close(self) -> None:
        self._server.close()


class _Server(IngestionServer):
    """The test server, for every client's wire: no rule of letter.app's own, and gzip."""

    def __init__(self, port: int, api: Api) -> None:
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

    def _problem(self, request: Request) -> tuple[int, str] | None:
        limit = self._api.max_body
        return (413, f"more than {limit} bytes") if limit is not None and len(request.body) > limit else None

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
