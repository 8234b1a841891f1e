"""What all targets share: the check of an invariant, and local servers that send prepared bytes."""

from __future__ import annotations

import socket
import threading
from typing import Callable

from letterapp._text import Secret

KEY, UNUSED_URL = Secret("fuzz-key"), "http://127.0.0.1:9"
TIMEOUT = 10.0  # seconds: far more than an exchange takes
EVENT = b'{"type":"track","userId":"u","messageId":"%d","event":"E","timestamp":"2026-01-01","properties":{}}'

Run = Callable[[bytes], None]


class InvariantViolated(Exception):
    """The client did not do what it guarantees."""


def expect(holds: object, invariant: str, *seen: object) -> None:
    if not holds:
        raise InvariantViolated(f"{invariant}: {seen!r}" if seen else invariant)


class FixedResponseServer:
    """A server that sends ``response`` on every connection, once the first bytes of a request have arrived."""

    def __init__(self, listener: socket.socket) -> None:
        self.response = b""
        self._listener = listener
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock:
                sock.settimeout(TIMEOUT)
                try:
                    self._respond(sock)
                except OSError:
                    pass

    def _respond(self, sock: socket.socket) -> None:
        sock.recv(65_536)
        sock.sendall(self.response)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65_536):
            pass  # closing with unread data would reset the connection and discard the response

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(TIMEOUT)


def listen_on(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen()
    return listener
