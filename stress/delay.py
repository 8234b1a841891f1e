"""A long way over loopback: a program that passes bytes on after a delay, without limiting how many. Needs no root.

Lives here: the delay. What it does not imitate: loss, and TCP's slow start, which makes each new connection over a real
line dearer than it is here.

Says its port; ends when stdin closes.
"""

from __future__ import annotations

import argparse
import json
import queue
import socket
import sys
import threading
import time


def relay(source: socket.socket, target: socket.socket, delay: float, not_before: float) -> None:
    """Pass on what comes from ``source``, each piece ``delay`` seconds later, to its end."""
    pieces: queue.Queue[tuple[float, bytes]] = queue.Queue()
    threading.Thread(target=_deliver, args=(pieces, target), daemon=True).start()
    while True:
        try:
            data = source.recv(262_144)
        except OSError:
            data = b""
        pieces.put((max(time.monotonic() + delay, not_before), data))
        if not data:
            return


def _deliver(pieces: queue.Queue[tuple[float, bytes]], target: socket.socket) -> None:
    while True:
        due, data = pieces.get()
        wait = due - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        try:
            if not data:
                target.shutdown(socket.SHUT_WR)
                return
            target.sendall(data)
        except OSError:
            return  # that side has left


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int, help="where to")
    parser.add_argument("delay", type=float, help="seconds, each way")
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
            # The kernel let the client connect at once. Over a real line that takes there and back, then the first
            # bytes set out: so they arrive no sooner than three ways from now.
            first = time.monotonic() + 3 * options.delay
            threading.Thread(target=relay, args=(near, far, options.delay, first), daemon=True).start()
            threading.Thread(target=relay, args=(far, near, options.delay, 0.0), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
