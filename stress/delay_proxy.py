"""A slow network on loopback: a proxy that forwards bytes after a delay, without limiting the bandwidth. Needs no root.

Responsible for: the delay. It does not simulate packet loss, nor TCP's slow start, which makes a new connection over a
real network more expensive than it is here.

It sends its port, and ends when stdin is closed.
"""

from __future__ import annotations

import argparse
import json
import queue
import socket
import sys
import threading
import time


def forward(source: socket.socket, target: socket.socket, delay: float, not_before: float) -> None:
    """Forward everything from ``source``, each chunk ``delay`` seconds later, until it is closed."""
    chunks: queue.Queue[tuple[float, bytes]] = queue.Queue()
    threading.Thread(target=_deliver, args=(chunks, target), daemon=True).start()
    while True:
        try:
            data = source.recv(262_144)
        except OSError:
            data = b""
        chunks.put((max(time.monotonic() + delay, not_before), data))
        if not data:
            return


def _deliver(chunks: queue.Queue[tuple[float, bytes]], target: socket.socket) -> None:
    while True:
        due, data = chunks.get()
        wait = due - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        try:
            if not data:
                target.shutdown(socket.SHUT_WR)
                return
            target.sendall(data)
        except OSError:
            return  # the receiver has disconnected


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int, help="port of the server")
    parser.add_argument("delay", type=float, help="seconds in each direction")
    options = parser.parse_args()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)

    def accept() -> None:
        while True:
            near, _ = listener.accept()
            far = socket.create_connection(("127.0.0.1", options.port))
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # The kernel has accepted the connection at once. In a real network that takes a round trip before the first
            # bytes are sent, so they arrive three one-way delays from now at the earliest.
            first = time.monotonic() + 3 * options.delay
            threading.Thread(target=forward, args=(near, far, options.delay, first), daemon=True).start()
            threading.Thread(target=forward, args=(far, near, options.delay, 0.0), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
