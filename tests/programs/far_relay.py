"""The program of test_interrupted: the relay's end of its connections, driven by lines on standard input.

Another process, because threads crash where that one counts its instructions (CPython 3.11).
"""

from __future__ import annotations

import json
import socket
import sys

from relayed import FakeRelay

from programs.common import main


def serve(path: str, key: str, url: str) -> None:
    """For each line print the events that were settled: as many as the number in it says, of those that have come."""
    relay = FakeRelay(path, key, url)
    print("serves", flush=True)
    for line in sys.stdin:
        events: list[str] = []
        if line == "leave\n":
            relay.hang_up()
        else:
            events = _settle(relay, int(line))
        print(json.dumps(events), flush=True)
    relay.close()


def _settle(relay: FakeRelay, most: int) -> list[str]:
    sock = relay.last()
    if sock is None:
        return []
    try:
        heard = sock.recv(65_536, socket.MSG_DONTWAIT)
    except OSError:
        return []  # the process was interrupted before it had sent anything, or gave this connection up
    events = [line for line in heard.decode().split("\n") if line[:1] == "{" and "proof" not in line][:most]
    if events:
        try:
            sock.sendall(b"[%d]\n" % len(events))
        except OSError:
            pass  # the same
    return events


main(globals())
