"""One measurement of one client, in the client's own interpreter: ``measure.py MEASURE CLIENT URL NUMBER``.

Lives here: the clocks around a client's calls. Standard library only. Says JSON lines on stdout; where something must
be looked at from outside it says so and waits for a line on stdin. Never here: what a figure means.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from array import array

import clients
from clients import properties

FORKS = 15  # in one step
WARMING = 100  # events before the clock starts: as many as any client's batch


def calls(name: str, url: str, number: int) -> None:
    """The time of each call, back to back, while the client sends. Its first batch, with its imports, is over."""
    client = getattr(clients, name)(url, number)
    track, clock = client.track, time.perf_counter_ns
    for count in range(WARMING):
        track(properties=properties(count))
    _say()
    sys.stdin.readline()
    times = array("q", bytes(8 * number))
    for count in range(number):
        given = properties(count)
        began = clock()
        track(properties=given)
        times[count] = clock() - began
    client.close()
    ordered = sorted(times)
    _say(median_us=ordered[number // 2] / 1e3, p999_us=ordered[-max(1, number // 1000)] / 1e3)


def stream(name: str, url: str, number: int) -> None:
    """Events as fast as they are taken; the sink's clock says when the last one was there."""
    client = getattr(clients, name)(url, number)
    track = client.track
    cpu, began = time.process_time(), time.monotonic()
    for count in range(number):
        track(properties=properties(count))
    client.close()
    _say(began=began, cpu_us=(time.process_time() - cpu) / number * 1e6)


def idle(name: str, url: str, number: int) -> None:
    """A burst when told, then nothing. The main thread waits in one read, so what else wakes up is the client's."""
    client = getattr(clients, name)(url, number)
    _say()
    sys.stdin.readline()
    for count in range(number):
        client.track(properties=properties(count))
    _say()
    sys.stdin.readline()
    os._exit(0)


def memory(name: str, url: str, number: int) -> None:
    """Events that wait because the API does not answer; the memory is looked at from outside, before and after."""
    _network()
    client = getattr(clients, name)(url, number + WARMING)
    for count in range(WARMING):  # the first batch makes the client's thread import and allocate what it needs
        client.track(properties=properties(count))
    _say()
    sys.stdin.readline()
    for count in range(number):
        client.track(properties=properties(count))
    gc.collect()
    _say()
    sys.stdin.readline()
    os._exit(0)


def forks(name: str, url: str, number: int) -> None:
    """The time of a fork, the child's end included, for each line on stdin. ``number`` 0: everything but the client."""
    _network()
    if number:
        client = getattr(clients, name)(url, number)
        for count in range(number):
            client.track(properties=properties(count))
    else:
        __import__({"segment": "segment.analytics"}.get(name, name))
    _say()
    while sys.stdin.readline():
        times = []
        for _ in range(FORKS):
            began = time.perf_counter_ns()
            child = os.fork()
            if child == 0:
                os._exit(0)
            os.waitpid(child, 0)
            times.append(time.perf_counter_ns() - began)
        _say(us=[each / 1e3 for each in times])
    os._exit(0)


def flood(name: str, url: str, number: int) -> None:
    """No client at all: ready-made bodies of 100 events over one socket. What the sink can take."""
    import socket
    from urllib.parse import urlsplit

    event = json.dumps(
        {"messageId": "x" * 36, "userId": clients.USER, "properties": properties(0), "padding": "x" * 60}
    )
    body = ("[" + ",".join([event] * 100) + "]").encode()
    request = b"POST /v1/batch HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    where = urlsplit(url)
    with socket.create_connection((where.hostname or "", where.port or 0)) as line:
        began = time.monotonic()
        for _ in range(number // 100):
            line.sendall(request)
            line.recv(65536)
    _say(began=began)


def _network() -> None:
    """Import what every server process has, so that it is not counted as the client's."""
    for module in ("http.client", "ssl", "urllib.request"):
        __import__(module)


def _say(**figures: object) -> None:
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2], sys.argv[3], int(sys.argv[4]))
