"""One measurement of one client, in the client's own interpreter: ``measure.py MEASURE CLIENT URL NUMBER...``.

Lives here: the clocks around a client's calls. Standard library only. Says JSON lines on stdout; where something must
be looked at from outside it says so and waits for a line on stdin. Never here: what a figure means.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
import traceback
from array import array
from functools import lru_cache, partial
from mmap import mmap
from typing import Callable, NamedTuple, NoReturn

import measured_clients
from measured_clients import properties

FORKS = 15  # in one step
TIMEOUT = 15  # seconds that a forked worker has; some clients hang there for ever
WARMING = 100  # events before the clock starts: as many as any client's batch


def calls(name: str, url: str, number: int) -> None:
    """The time of each call, back to back, while the client sends. Its first batch, with its imports, is over."""
    client = getattr(measured_clients, name)(url, number)
    track, clock = client.track, time.perf_counter_ns
    for count in range(WARMING):
        track(properties=properties(count))
    _send()
    sys.stdin.readline()
    times = array("q", bytes(8 * number))
    for count in range(number):
        given = properties(count)
        began = clock()
        track(properties=given)
        times[count] = clock() - began
    client.close()
    ordered = sorted(times)
    _send(median_us=ordered[number // 2] / 1e3, p999_us=ordered[-max(1, number // 1000)] / 1e3)


def stream(name: str, url: str, number: int) -> None:
    """Events as fast as they are taken; the sink's clock says when the last one was there."""
    client = getattr(measured_clients, name)(url, number)
    track = client.track
    cpu, began = time.process_time(), time.monotonic()
    for count in range(number):
        track(properties=properties(count))
    client.close()
    _send(began=began, cpu_us=(time.process_time() - cpu) / number * 1e6)


def idle(name: str, url: str, number: int) -> None:
    """A burst when told, then nothing. The main thread waits in one read, so what else wakes up is the client's."""
    client = getattr(measured_clients, name)(url, number)
    _send()
    sys.stdin.readline()
    for count in range(number):
        client.track(properties=properties(count))
    _send()
    sys.stdin.readline()
    os._exit(0)


def memory(name: str, url: str, number: int) -> None:
    """Events that wait because the API does not answer; the memory is looked at from outside, before and after."""
    _network()
    client = getattr(measured_clients, name)(url, number + WARMING)
    for count in range(WARMING):  # the first batch makes the client's thread import and allocate what it needs
        client.track(properties=properties(count))
    _send()
    sys.stdin.readline()
    for count in range(number):
        client.track(properties=properties(count))
    gc.collect()
    _send()
    sys.stdin.readline()
    os._exit(0)


def forks(name: str, url: str, number: int, many: int) -> None:
    """The time of a fork, the child's end included, for each line on stdin.

    ``many`` clients have tracked ``number`` events each. With none, their module is imported all the same.
    """
    _network()
    __import__(os.environ["STRESS_MODULE"])
    alive = [getattr(measured_clients, name)(url, number + WARMING) for _ in range(many)]
    for client in alive:
        for count in range(number):
            client.track(properties=properties(count))
    _send()
    while sys.stdin.readline():
        times = []
        for _ in range(FORKS):
            began = time.perf_counter_ns()
            child = os.fork()
            if child == 0:
                os._exit(0)
            os.waitpid(child, 0)
            times.append(time.perf_counter_ns() - began)
        _send(us=[each / 1e3 for each in times])
    os._exit(0)


def scale(name: str, url: str, number: int, workers: int, preloaded: int) -> None:
    """``number`` events by ``workers`` forked processes that are let go together; the client is made before the fork.

    Or, if not ``preloaded``, in each worker before it is let go. Says how the workers ended, too.
    """
    _network()
    make: Callable[[], measured_clients.Client] = partial(getattr(measured_clients, name), url, number)
    if preloaded:
        make = lru_cache(make)  # the workers find it made
        make()
    else:
        __import__(os.environ["STRESS_MODULE"])
    # Shared: the workers write, this process reads.
    times = memoryview(mmap(-1, 8 * number)).cast("q")
    relayed = memoryview(mmap(-1, 8 * workers)).cast("q")
    gate, ready = _Pipe(*os.pipe()), _Pipe(*os.pipe())
    share = number // workers
    children = []
    for place in range(workers):
        child = os.fork()
        if child == 0:
            _work(make, times[place * share :][:share], relayed[place : place + 1], gate, ready)
        children.append(child)
    os.close(ready.write)
    while os.read(ready.read, 1):
        pass  # to its end: each worker has closed it
    began = time.monotonic()
    os.close(gate.write)
    ends = [os.waitpid(child, 0)[1] for child in children]
    hung = ends.count(signal.SIGALRM)
    raised = len(ends) - ends.count(0) - hung
    _send(began=began, median_us=sorted(times)[number // 2] / 1e3, hung=hung, raised=raised, relayed=sum(relayed))


class _Pipe(NamedTuple):
    read: int
    write: int


def _work(
    make: Callable[[], measured_clients.Client], times: memoryview, relayed: memoryview, gate: _Pipe, ready: _Pipe
) -> NoReturn:
    """Be a worker: wait at the gate until the parent opens it, by closing it. Never returns into the parent's code."""
    try:
        signal.alarm(TIMEOUT)  # unhandled, so it ends a worker whatever that hangs in
        client = make()
        os.close(gate.write)
        os.close(ready.read)
        os.close(ready.write)
        os.read(gate.read, 1)
        signal.alarm(TIMEOUT)
        track, clock = client.track, time.perf_counter_ns
        for count in range(len(times)):
            given = properties(count)
            began = clock()
            track(properties=given)
            times[count] = clock() - began
        client.close()
        relayed[0] = client.relayed()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def flood(name: str, url: str, number: int, lines: int) -> None:
    """No client at all: ready-made bodies of 100 events over ``lines`` sockets. What the sink can take."""
    import socket
    from contextlib import ExitStack
    from urllib.parse import urlsplit

    event = json.dumps(
        {"messageId": "x" * 36, "userId": measured_clients.USER, "properties": properties(0), "padding": "x" * 60}
    )
    body = ("[" + ",".join([event] * 100) + "]").encode()
    request = b"POST /v1/batch HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    where = urlsplit(url)
    with ExitStack() as stack:
        address = where.hostname or "", where.port or 0
        opened = [stack.enter_context(socket.create_connection(address)) for _ in range(lines)]
        began = time.monotonic()
        for _ in range(number // 100 // lines):
            for line in opened:
                line.sendall(request)
            for line in opened:
                line.recv(65536)
    _send(began=began)


def _network() -> None:
    """Import what every server process has, so that it is not counted as the client's."""
    for module in ("http.client", "ssl", "urllib.request"):
        __import__(module)


def _send(**figures: object) -> None:
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2], sys.argv[3], *map(int, sys.argv[4:]))
