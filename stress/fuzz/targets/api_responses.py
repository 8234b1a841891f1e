"""Target `api`: any bytes as a response of the API."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import Iterator

from letterapp import Letter, LetterError
from letterapp._delivery.sender import Sender
from letterapp._storage.backends import Backends
from letterapp._storage.memory import PrivateMemory

from ..values import Source
from .common import EVENT, KEY, TIMEOUT, FixedResponseServer, Run, expect

SEEDS = [
    b"\0\0HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",
    b"\0\0HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 429 Wait\r\nRetry-After: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"\xff\x21\0" + b'{"id":"1","status":"sent"}',
]


@contextmanager
def api() -> Iterator[Run]:
    """Whatever the API sends, each event is delivered or reported after a bounded number of tries; so is an email."""
    server = FixedResponseServer(socket.create_server(("127.0.0.1", 0)))
    url = f"http://127.0.0.1:{server.port}"
    reports: list[LetterError] = []
    letter = Letter(KEY.reveal(), url, on_error=reports.append, max_retries=1, flush_interval=0, timeout=TIMEOUT)
    mailer = Letter(KEY.reveal(), url, enabled=True, max_retries=0, timeout=TIMEOUT)
    now = [1000.0]

    def run(data: bytes) -> None:
        server.response = http_response(data[1:])
        reports.clear()
        if data[:1] > b"\xc0":
            try:
                expect(isinstance(mailer.send("a@b.example", "S", text="x"), dict), "send() returns a dict")
            except LetterError as error:
                str(error), repr(error)
            return
        sender = Sender(letter._settings, lambda: now[0], Backends([PrivateMemory(letter._settings)]))
        sender._queue.replace_worker().started = True  # so that no thread is started
        for number in range(3):
            sender.put(EVENT % number)
        for _ in range(50):
            wait = sender._batches.send_once()
            if wait == float("inf"):
                break
            expect(0 <= wait <= 400, "a wait is bounded", wait)
            now[0] += wait
        stats = sender.stats()
        lost = sum(report.lost for report in reports)
        expect(stats["waiting"] == 0, "every event is settled", stats)
        expect(stats["delivered"] + lost == 3, "each event is delivered or reported", stats, reports)
        for report in reports:
            str(report), repr(report), report.events
        sender._batches._transport.close()

    try:
        yield run
    finally:
        letter.close(0)
        mailer.close(0)
        server.close()


def http_response(data: bytes) -> bytes:
    """A response made from ``data``: the bytes as they are, or with the header lines that its flags select."""
    source = Source(data)
    flags = source.byte()
    if not flags & 1:
        return source.rest()
    status = (200, 400, 422, 413, 429, 500, 301, 408, 100, 101, 103, 401, 204, 304)[source.byte() % 14]
    lines = [b"HTTP/1.1 %d %s" % (status, source.some() if flags & 2 else b"OK")]
    if flags & 4:
        lines.append(b"Retry-After: " + source.some())
    if flags & 8:
        lines.append(b"Transfer-Encoding: chunked")
    lines += [source.some() for _ in range(source.byte() % 4 if flags & 16 else 0)]
    body = source.rest()
    if flags & 32:
        lines.append(b"Content-Length: %d" % len(body))
    if flags & 64:
        body = b'{"error":{"code":' + body + b"}}"
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
