"""Requests as the ingestion server has received them, and what it may do instead of answering as the API does.

Responsible for: `Request`, the faults. Not responsible for: when a fault is used, and the connection itself (`server`).
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from typing import Any, Callable, Dict, Optional, Protocol, Tuple


class Request:
    """One request as it was received.

    Attributes:
        method: ``"POST"``.
        path: The path, with the prefix of the client's ``base_url``.
        headers: The headers, with names in lower case.
        body: The body, as bytes.
        connection: The client's host and port: the same for all requests over one connection.
        at: When it was received, in seconds of `time.monotonic`.
    """

    def __init__(
        self, method: str, path: str, headers: Dict[str, str], body: bytes, connection: Tuple[str, int]
    ) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.body = body
        self.connection = connection
        self.at = time.monotonic()

    @property
    def json(self) -> Any:
        """The body, decoded. Raises `ValueError` if it is not JSON."""
        return json.loads(self.body)


class Exchange(Protocol):
    """A request and its connection, as a fault may use them.

    If a fault calls `keep`, the request's events are stored. That has to come before the response, as it does in the
    API: a client that has a response can rely on it.

    Attributes:
        connection: The connection's socket.
        wfile: What is written to it is sent at once.
        closing: A `threading.Event` that is set when the server closes; a fault that waits should wait for it.
    """

    connection: Any
    wfile: Any

    @property
    def closing(self) -> threading.Event: ...

    def keep(self) -> None:
        """Store the request's events; further calls do nothing."""

    def answer(self, code: int, body: bytes = ..., headers: Optional[Dict[str, str]] = None) -> None:
        """Respond with the HTTP status ``code``."""

    def hang_up(self) -> None:
        """Close the connection."""


# A fault responds instead of the API.
Fault = Callable[[Exchange], object]


def status(code: int, body: bytes = b"{}", headers: Optional[Dict[str, str]] = None, stored: bool = False) -> Fault:
    """Respond with the HTTP status ``code``, ``body`` and ``headers``; ``stored`` stores the request's events first."""

    def answer(handler: Exchange) -> None:
        if stored:
            handler.keep()
        handler.answer(code, body, headers or {})

    return answer


def reset(stored: bool = False) -> Fault:
    """Reset the connection (RST) without a response; ``stored`` stores the request's events first."""

    def answer(handler: Exchange) -> None:
        if stored:
            handler.keep()
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.hang_up()

    return answer


def raw(data: bytes, stored: bool = False) -> Fault:
    """Send ``data`` instead of a response, and close the connection; ``stored`` stores the request's events first."""

    def answer(handler: Exchange) -> None:
        if stored:
            handler.keep()
        handler.wfile.write(data)
        handler.hang_up()

    return answer


def cut(stored: bool = False) -> Fault:
    """Close the connection in the middle of a response; ``stored`` stores the request's events first."""
    return raw(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{", stored)


def endless(
    piece: bytes = b"x" * 4096,
    stored: bool = False,
    head: bytes = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n",
    every: float = 0.0,
) -> Fault:
    """Send ``head``, and then ``piece`` every ``every`` seconds until the client disconnects.

    ``stored`` stores the request's events first.
    """

    def answer(handler: Exchange) -> None:
        if stored:
            handler.keep()
        try:
            handler.wfile.write(head)
            while not handler.closing.wait(every):
                handler.wfile.write(piece)
        except OSError:
            pass
        handler.hang_up()

    return answer


def stall(seconds: float, then: Optional[Fault] = None) -> Fault:
    """Respond after ``seconds``: as the API does, or with the fault ``then``."""

    def answer(handler: Exchange) -> None:
        handler.closing.wait(seconds)
        (then or _properly)(handler)

    return answer


class Hold:
    """A fault that keeps a request waiting: ``arrived`` is set when it has been received, `release` lets it continue.

    It waits for at most ``longest`` seconds, then responds as the API does, or with the fault ``then``.
    """

    def __init__(self, then: Optional[Fault] = None, longest: float = 60.0) -> None:
        self.arrived = threading.Event()
        self._released = threading.Event()
        self._then = then
        self._longest = longest

    def release(self) -> None:
        """Let this request, and later ones that meet this fault, continue."""
        self._released.set()

    def __call__(self, handler: Exchange) -> None:
        self.arrived.set()
        self._released.wait(self._longest)
        (self._then or _properly)(handler)


def _properly(handler: Exchange) -> None:
    handler.keep()
    handler.answer(200)
