"""The receiving end of a measurement: a program that counts events and understands nothing of them.

Lives here: just enough HTTP to answer a POST, and the count. It must not be what is measured, so it looks for a marker
in each body and parses no JSON. ``stress bench`` prints how much more it takes than the fastest client gives.

Says its port, then its tally when EXPECT events have come, then its tally when stdin closes.
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
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)


class Tally:
    """What has come. Counted by the connections' threads."""

    def __init__(self, expect: int) -> None:
        self._expect = expect
        self._lock = threading.Lock()  # guards the figures; nothing is done under it but sums and one line of output
        self._figures = {"events": 0, "bytes": 0, "requests": 0, "connections": 0, "last": 0.0}

    def connection(self) -> None:
        with self._lock:
            self._figures["connections"] += 1

    def request(self, events: int, size: int) -> None:
        with self._lock:
            before = self._figures["events"]
            self._figures["events"] += events
            self._figures["bytes"] += size
            self._figures["requests"] += 1
            self._figures["last"] = time.monotonic()  # one clock for all processes of a machine
            if before < self._expect <= self._figures["events"]:
                self._say()

    def say(self) -> None:
        with self._lock:
            self._say()

    def _say(self) -> None:
        print(json.dumps(self._figures), flush=True)


def serve(connection: socket.socket, tally: Tally, marker: bytes, mute: bool, context: ssl.SSLContext | None) -> None:
    tally.connection()
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context is not None:
            connection = context.wrap_socket(connection, server_side=True)
        with connection, cast("IO[bytes]", connection.makefile("rb", 65536)) as stream:
            while True:
                length, zipped = _head(stream)
                if length < 0:
                    return
                body = stream.read(length)
                if zipped:
                    body = gzip.decompress(body)
                tally.request(body.count(marker), len(body))
                if mute:
                    threading.Event().wait()
                connection.sendall(ANSWER)
    except OSError:
        pass  # the client left


def _head(stream: IO[bytes]) -> tuple[int, bool]:
    """Read a request's head: the body's length, -1 when the client has left, and whether it is zipped."""
    length, zipped = -1, False
    while True:
        line = stream.readline()
        if line in (b"\r\n", b""):
            return length, zipped
        name, _, value = line.partition(b":")
        name = name.lower()
        if name == b"content-length":
            length = int(value)
        elif name == b"content-encoding":
            zipped = b"gzip" in value


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("marker")
    parser.add_argument("expect", type=int)
    parser.add_argument("--mute", action="store_true", help="take, but never answer")
    parser.add_argument("--certificate")
    options = parser.parse_args()
    context = None
    if options.certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.certificate)
    tally = Tally(options.expect)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            arguments = (connection, tally, options.marker.encode(), options.mute, context)
            threading.Thread(target=serve, args=arguments, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    sys.stdin.read()
    tally.say()


if __name__ == "__main__":
    main()
