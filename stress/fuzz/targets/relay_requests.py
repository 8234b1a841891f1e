"""Target `relay`: any bytes that a client sends to a relay."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from contextlib import contextmanager
from typing import Iterator

from letterapp._client import settings_of
from letterapp._relay import protocol
from letterapp._relay_server.socket_server import RelayServer

from ..values import Source
from .common import EVENT, KEY, TIMEOUT, UNUSED_URL, FixedResponseServer, Run, expect, listen_on

SEEDS = [
    b"\x0d" + EVENT[:-1],
    b"\x04!\n" + EVENT + b"\n!\n",
    b"\0" + protocol.Caller(KEY, UNUSED_URL, "lease").hello,
]
_STATUSES = (b"200 OK", b"400 Bad Request", b"500 Oops", b"413 Large")  # what the API responds
_MAX_STEPS = 5_000  # of the relay: after a 413 each batch of 100 is split down to single events


@contextmanager
def relay() -> Iterator[Run]:
    """Whatever a client sends, the relay keeps running, and another client's events are settled, or reported to it."""
    requests = _Requests()
    try:
        yield requests.run
    finally:
        requests.close()


class _Requests:
    """A relay with two clients: one sends the fuzzed bytes, and the other's event must not be affected."""

    def __init__(self) -> None:
        self._directory = tempfile.mkdtemp(prefix="letterapp-fuzz-")
        self._path = os.path.join(self._directory, "relay")
        self._listener = listen_on(self._path)
        self._listener.setblocking(False)
        self._api = FixedResponseServer(socket.create_server(("127.0.0.1", 0)))
        self._url = f"http://127.0.0.1:{self._api.port}"
        options = {"max_retries": 0, "flush_interval": 0, "timeout": TIMEOUT}
        settings = settings_of(api_key=KEY.reveal(), base_url=self._url, **options)
        self._log: list[str] = []
        self._relay = RelayServer(settings, self._listener, False, self._log.append, self._path)
        self._relay._owned.sender._queue.replace_worker().started = True  # so that no thread is started

    def run(self, data: bytes) -> None:
        source = Source(data)
        flags = source.byte()
        self._api.response = b"HTTP/1.1 %s\r\nContent-Length: 2\r\n\r\n{}" % _STATUSES[flags & 3]
        self._log.clear()
        request = source.rest()
        if flags & 8:
            request = request.replace(b"\xff", b"}\n{") + b"}\n"
        half = len(request) // 2 if flags & 16 else 0
        received = self._send_beside_event(request[:half], request[half:], bool(flags & 4))
        expect(b"[1]\n" in received, "another client's event is settled", received, self._log)
        reported = sum(protocol.parse(line).get("lost", 0) for line in received.split(b"\n"))
        expect(
            reported == (1 if flags & 3 else 0),
            "and reported to that client if it is lost",
            reported,
            flags & 3,
            received,
        )
        for _ in range(_MAX_STEPS):
            if self._step() == float("inf") and not self._relay._peers:
                break
        expect(not self._relay._peers, "no disconnected client remains", list(self._relay._peers))
        owners = self._relay._owned._owners
        expect(not owners, "no owner of a sent event remains", len(owners))

    def _send_beside_event(self, first: bytes, second: bytes, shakes_hands: bool) -> bytes:
        """Send both parts of the fuzzed request, and between them another client's event; what that client receives."""
        received = b""
        other, fuzzed = (socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(2))
        with other, fuzzed:
            for sock in (other, fuzzed):
                sock.connect(self._path)
                sock.setblocking(False)
            if shakes_hands:
                self._shake_hands(fuzzed)
            _send(fuzzed, first)
            self._shake_hands(other)
            other.send(EVENT % 7 + b"\n")
            self._relay._turn(0)
            _send(fuzzed, second)
            for _ in range(_MAX_STEPS):
                self._step()
                try:
                    received += other.recv(65_536)
                except BlockingIOError:
                    pass
                if b"[1]\n" in received:
                    break
        return received

    def _shake_hands(self, sock: socket.socket) -> None:
        caller = protocol.Caller(KEY, self._url, protocol.EVENTS)
        sock.send(caller.hello)
        challenge = b""
        while not challenge.endswith(protocol.END):
            self._relay._turn(0)
            try:
                challenge += sock.recv(protocol.LONGEST_GREETING)
            except BlockingIOError:
                pass
        sock.send(caller.answer(challenge[:-1]))

    def _step(self) -> float:
        self._relay._turn(0)
        self._relay._owned.sender._batches._in_flight.not_before = 0.0  # skips the wait before a retry
        return self._relay._owned.sender._batches.send_once()

    def close(self) -> None:
        self._relay._owned.sender._batches._transport.close()
        self._listener.close()
        self._api.close()
        shutil.rmtree(self._directory)


def _send(sock: socket.socket, data: bytes) -> None:
    try:
        sock.send(data)
    except (BlockingIOError, BrokenPipeError, ConnectionResetError):
        pass
