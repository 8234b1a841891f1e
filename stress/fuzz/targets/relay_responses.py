"""Target `answer`: any bytes that a relay sends to a client."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
from contextlib import contextmanager
from typing import Iterator

from letterapp._relay import launcher, protocol
from letterapp._relay.client import RelayClient

from ..values import Source
from .common import EVENT, KEY, TIMEOUT, UNUSED_URL, FixedResponseServer, Run, expect, listen_on

SEEDS = [
    b'\4{"lost": 1, "message": "m", "status": 400, "body": "b", "code": null, "reason": null, '
    b'"cause": "rejected", "events": ["{}"]}\n[1]\n',
    b'\4{"lost": 1, "message": "m", "status": 400, "body": "b", "code": null, "reason": null, '
    b'"cause": "rejected", "events": ["{}"]}\n[0',
    b'\4{"lost": -1, "message": "m", "status": 400, "body": "b", "code": null, "reason": null, '
    b'"cause": "rejected", "events": []}\n',
    b'\4{"refused": "no", "busy": true}',
    b'\5{"welcome": {"pid": 1}}',
]


@contextmanager
def answer() -> Iterator[Run]:
    """Whatever a relay sends, an event is settled, still waiting or returned, and the client's counters stay valid."""
    responses = _Responses()
    try:
        yield responses.run
    finally:
        responses.close()


class AuthenticatedServer(FixedResponseServer):
    """A relay that knows the key: it sends ``response`` after the handshake."""

    def __init__(self, listener: socket.socket) -> None:
        self.has_responded, self.has_disconnected = threading.Event(), threading.Event()
        super().__init__(listener)

    def _respond(self, sock: socket.socket) -> None:
        self.has_responded.clear()
        self.has_disconnected.clear()
        try:
            hello = sock.recv(protocol.LONGEST_GREETING)
            sock.sendall(protocol.Callee(KEY, UNUSED_URL).hear(hello[:-1])[0])
            sock.recv(65_536)
            sock.sendall(self.response)
            self.has_responded.set()
            while sock.recv(65_536):
                pass
        finally:
            self.has_disconnected.set()


class _Responses:
    """A client's connection to a relay, and the handshake with one."""

    def __init__(self) -> None:
        self._directory = tempfile.mkdtemp(prefix="letterapp-fuzz-")
        self._path, self._handshake_path = (os.path.join(self._directory, name) for name in ("relay", "handshake"))
        self._handshake_server = FixedResponseServer(listen_on(self._handshake_path))
        self._server = AuthenticatedServer(listen_on(self._path))

    def run(self, data: bytes) -> None:
        source = Source(data)
        flags = source.byte()
        response = source.rest()
        if flags & 2:  # a nearly valid acknowledgement and report
            response = b"[%d]\n" % Source(response).number(1) + b'{"lost":' + response
        if flags & 4:
            response += b"\n"
        if flags & 1:
            self._shake_hands(response)
            return
        self._server.response = response
        client = RelayClient(lambda: self._path, lambda: protocol.Caller(KEY, UNUSED_URL, protocol.EVENTS), 100, 10_000)
        for number in range(3):
            client.send_event(EVENT % number)  # the bytes after the challenge may already have broken the connection
        if client.is_connected():
            expect(self._server.has_responded.wait(TIMEOUT), "the server has sent its response")
        client.read_acks()
        client.send_event(EVENT % 3)
        client.read_acks()
        while client.next_returned() is not None:
            client.confirm_returned()
        self._check_counts(client)
        client.close()
        expect(self._server.has_disconnected.wait(TIMEOUT), "the connection has ended")

    def _shake_hands(self, response: bytes) -> None:
        self._handshake_server.response = response
        try:
            sock, reply = launcher.ask(self._handshake_path, KEY, UNUSED_URL, protocol.LEASE)
        except (OSError, protocol.Refused):
            return
        sock.close()
        expect(isinstance(reply, dict), "a reply is a dict")

    @staticmethod
    def _check_counts(client: RelayClient) -> None:
        counts = client.counts()
        for error in client.take_errors():
            str(error), repr(error), error.events
        expect(0 <= counts.relayed <= 4, "no more events are relayed than were sent", vars(counts))
        expect(counts.delivered >= 0 and counts.waiting >= 0, "no count is negative", vars(counts))
        expect(all(lost >= 0 for lost in counts.lost.values()), "no loss is negative", vars(counts))
        expect(sum(counts.lost.values()) <= counts.relayed, "no more events are lost than were relayed", vars(counts))

    def close(self) -> None:
        self._handshake_server.close()
        self._server.close()
        shutil.rmtree(self._directory)
