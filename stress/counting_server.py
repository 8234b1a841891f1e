"""The server of a measurement: a program that counts events without parsing them.

Responsible for: just enough HTTP to respond to a POST, and the counts. It must not be the bottleneck, so it searches
each body for a marker and parses no JSON. ``stress bench`` prints how much faster it is than the fastest client.

It sends its port, then its counts each time that as many events as the next EXPECT have arrived in all, and its counts
again when stdin is closed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import socket
import ssl
import sys
import threading
import time
from typing import IO, cast

_BODY = b'{"success":true}'
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)


class Counts:
    """What has arrived. Updated by the threads of the connections."""

    def __init__(self, expect: list[int]) -> None:
        self._expect = expect
        self._lock = threading.Lock()  # guards the figures; held for additions and one line of output only
        self._figures = {"events": 0, "bytes": 0, "requests": 0, "connections": 0, "last": 0.0}

    def add_connection(self) -> None:
        with self._lock:
            self._figures["connections"] += 1

    def add_request(self, events: int, size: int) -> None:
        with self._lock:
            before = self._figures["events"]
            self._figures["events"] += events
            self._figures["bytes"] += size
            self._figures["requests"] += 1
            self._figures["last"] = time.monotonic()  # the same clock in all processes of a machine
            for expected in self._expect:
                if before < expected <= self._figures["events"]:
                    self._send()

    def send(self) -> None:
        with self._lock:
            self._send()

    def _send(self) -> None:
        print(json.dumps(self._figures), flush=True)


def serve(
    connection: socket.socket,
    counts: Counts,
    marker: bytes,
    context: ssl.SSLContext | None,
    delay: float | None,
) -> None:
    """Serve one connection. ``delay``: seconds until each response; None for no response ever."""
    counts.add_connection()
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context is not None:
            connection = context.wrap_socket(connection, server_side=True)
        with connection, cast("IO[bytes]", connection.makefile("rb", 65536)) as stream:
            while True:
                length, compressed = _head(stream)
                if length < 0:
                    return
                body = stream.read(length)
                if compressed:
                    body = gzip.decompress(body)
                counts.add_request(body.count(marker), len(body))
                if delay != 0.0:
                    threading.Event().wait(delay)
                connection.sendall(RESPONSE)
    except OSError:
        pass  # the client has disconnected


def _head(stream: IO[bytes]) -> tuple[int, bool]:
    """Read a request's head: the body's length, -1 if the client has disconnected, and whether it is compressed."""
    length, compressed = -1, False
    while True:
        line = stream.readline()
        if line in (b"\r\n", b""):
            return length, compressed
        name, _, value = line.partition(b":")
        name = name.lower()
        if name == b"content-length":
            length = int(value)
        elif name == b"content-encoding":
            compressed = b"gzip" in value


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("marker")
    parser.add_argument("expect", type=int, nargs="+")
    parser.add_argument("--no-response", action="store_true", help="receive, but never respond")
    parser.add_argument("--delay", type=float, default=0.0, metavar="SECONDS", help="respond only then")
    parser.add_argument("--certificate")
    options = parser.parse_args()
    context = None
    if options.certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.certificate)
    counts = Counts(options.expect)
    delay = None if options.no_response else options.delay
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            arguments = (connection, counts, options.marker.encode(), context, delay)
            threading.Thread(target=serve, args=arguments, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    sys.stdin.read()
    counts.send()


if __name__ == "__main__":
    main()
