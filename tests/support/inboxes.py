"""Running ``python -m letterapp inbox``, and asking it over real sockets.

Responsible for: the process, its requests. Not responsible for: any knowledge of what is right.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import uuid
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any, Sequence
from urllib.parse import urlencode

from harness import DEADLINE, Program, environment, eventually

KEY = {"Authorization": "Bearer lt_test_local"}


class Inbox(Program):
    """A running inbox on a free port, listening when the constructor returns."""

    def __init__(
        self, tmp_path: Path, *arguments: str, port: int = 0, program: Sequence[str] = ("-m", "letterapp")
    ) -> None:
        command = [sys.executable, *program, "inbox", "--port", str(port), *arguments]
        super().__init__(command, environment(""), tmp_path)
        found = eventually(
            lambda: re.search(r"http://127\.0\.0\.1:(\d+)", self.output), lambda found: found or self.process.poll()
        )
        if found is None:
            output = self.output
            self.__exit__()
            raise AssertionError(f"the inbox did not start:\n{output}")
        self.url = found.group()
        self.port = int(found.group(1))

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, HTTPResponse]:
        """One request on a connection of its own: the status, the body (decoded, if it is JSON), the response."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        is_json = answer.headers["Content-Type"] == "application/json"
        return answer.status, json.loads(text) if is_json and text else text.decode(), answer

    def get(self, path: str, **parameters: Any) -> Any:
        """The result of a request to the JSON API."""
        status, said, _ = self.request("GET", f"{path}?{urlencode(parameters)}" if parameters else path)
        assert status == 200, (status, said)
        return said

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        """A request to the ingestion API."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        status, said, _ = self.request("POST", path, data, {**KEY, **headers})
        return status, said

    def track(self, *items: dict[str, Any]) -> None:
        status, said = self.post("/v1/batch", {"batch": list(items)})
        assert status == 200, said

    def fault(self, kind: str, count: int, **more: float) -> None:
        status, said, _ = self.request(
            "POST", "/api/faults", json.dumps({"kind": kind, "count": count, **more}).encode()
        )
        assert status == 200, said

    def clear(self) -> None:
        for path in ("/api/events", "/api/faults"):
            assert self.request("DELETE", path)[0] == 200

    def names(self, **parameters: Any) -> list[str]:
        """The names of the matches, the newest first."""
        return [event["name"] for event in self.get("/api/list", **parameters)["events"]]

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE)


def item(kind: str = "track", user: str = "u1", **fields: Any) -> dict[str, Any]:
    """An item as a client sends it."""
    required: dict[str, dict[str, Any]] = {
        "track": {"event": "E", "properties": {}},
        "identify": {"traits": {}},
        "group": {"accountId": "acme", "traits": {}},
    }
    base = {"type": kind, "userId": user, "messageId": str(uuid.uuid4()), "timestamp": "2026-01-31T12:00:00.000Z"}
    return {**base, **required[kind], **fields}
