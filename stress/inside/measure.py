"""One measurement of one client, in the client's own interpreter: ``measure.py MEASURE CLIENT URL NUMBER...``.

Responsible for: timing a client's calls. Standard library only. It sends JSON lines on stdout; where the harness must
measure from outside, it says so and waits for a line on stdin. Not responsible for: the meaning of a figure.
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
from measured_clients import SHAPES, properties, with_values

FORKS = 15  # forks in one step
TIMEOUT = 15  # seconds that a forked worker may run; some clients hang there forever
WARM_UP = 100  # events before the timing starts: no client's batch is larger


def calls(name: str, url: str, number: int) -> None:
    """The duration of each call, back to back, while the client sends; not of the first batch, with its imports."""
    client = getattr(measured_clients, name)(url, number)
    track, clock = client.track, time.perf_counter_ns
    for count in range(WARM_UP):
        track(properties=properties(count))
    _send()
    sys.stdin.readline()
    times = array("q", bytes(8 * number))
    for count in range(number):
        sample = properties(count)
        began = clock()
        track(properties=sample)
        times[count] = clock() - began
    client.close()
    ordered = sorted(times)
    _send(median_us=ordered[number // 2] / 1e3, p999_us=ordered[-max(1, number // 1000)] / 1e3)


def stream(name: str, url: str, number: int) -> None:
    """Events as fast as the client accepts them; the server records when the last one arrived."""
    client = getattr(measured_clients, name)(url, number)
    track = client.track
    cpu, began = time.process_time(), time.monotonic()
    for count in range(number):
        track(properties=properties(count))
    client.close()
    _send(began=began, cpu_us=(time.process_time() - cpu) / number * 1e6)


def shapes(name: str, url: str, number: int) -> None:
    """For each line on stdin, which names a shape: ``number`` events of that shape, and then their figures.

    The events are created before the timing starts. CPU is read at the next line, when all of them have arrived.
    """
    client = getattr(measured_clients, name)(url, 2 * number)
    track, clock = client.track, time.perf_counter_ns
    for count in range(WARM_UP):
        track(properties=properties(count))
    _send()
    while line := sys.stdin.readline():
        events = [SHAPES[line.strip()](count) for count in range(number)]
        times = array("q", bytes(8 * number))
        gc.collect()  # so that every client begins with the same number of young objects
        cpu, began = time.process_time(), time.monotonic()
        before = clock()
        for count, sample in enumerate(events):
            track(properties=sample)
            now = clock()
            times[count] = now - before  # reading the clock once for each event: the CPU includes it
            before = now
        _send(began=began)
        sys.stdin.readline()
        cpu = time.process_time() - cpu
        ordered = sorted(times)
        median = ordered[number // 2] / 1e3
        _send(median_us=median, p99_us=ordered[-max(1, number // 100)] / 1e3, cpu_us=cpu / number * 1e6)
    os._exit(0)


def growth(name: str, url: str, number: int, values: int) -> None:
    """The median duration of a call with an event of ``values`` values, while the client sends."""
    client = getattr(measured_clients, name)(url, number + WARM_UP)
    track, clock = client.track, time.perf_counter_ns
    for count in range(WARM_UP):
        track(properties=properties(count))
    _send()
    sys.stdin.readline()
    times = []
    for count in range(number):
        sample = with_values(count, values)
        began = clock()
        track(properties=sample)
        times.append(clock() - began)
    _send(median_us=sorted(times)[number // 2] / 1e3)
    os._exit(0)


def idle(name: str, url: str, number: int) -> None:
    """A burst, then nothing. The main thread is blocked in a read, so all wake-ups are the client's."""
    client = getattr(measured_clients, name)(url, number)
    _send()
    sys.stdin.readline()
    for count in range(number):
        client.track(properties=properties(count))
    _send()
    sys.stdin.readline()
    os._exit(0)


def memory(name: str, url: str, number: int) -> None:
    """Events that wait because the API does not respond; the harness measures the memory before and after."""
    _import_network()
    client = getattr(measured_clients, name)(url, number + WARM_UP)
    for count in range(WARM_UP):  # for the first batch the client's thread imports and allocates what it needs
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
    """The duration of a fork, the child's exit included, for each line on stdin.

    ``many`` clients have tracked ``number`` events each. With 0 clients, their module is imported anyway.
    """
    _import_network()
    __import__(os.environ["STRESS_MODULE"])
    alive = [getattr(measured_clients, name)(url, number + WARM_UP) for _ in range(many)]
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
    """``number`` events of ``workers`` forked processes that start together; the client is created before the fork.

    Or, if not ``preloaded``, in each worker before it starts. Also reports how the workers ended.
    """
    _import_network()
    make: Callable[[], measured_clients.Client] = partial(getattr(measured_clients, name), url, number)
    if preloaded:
        make = lru_cache(make)  # the workers use the client that is created here
        make()
    else:
        __import__(os.environ["STRESS_MODULE"])
    # Shared memory: the workers write, this process reads.
    times = memoryview(mmap(-1, 8 * number)).cast("q")
    relayed = memoryview(mmap(-1, 8 * workers)).cast("q")
    gate, ready = _Pipe(*os.pipe()), _Pipe(*os.pipe())
    share = number // workers
    children = []
    for index in range(workers):
        child = os.fork()
        if child == 0:
            _work(make, times[index * share :][:share], relayed[index : index + 1], gate, ready)
        children.append(child)
    os.close(ready.write)
    while os.read(ready.read, 1):
        pass  # until each worker has closed it
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
    """Run a worker, which starts when the parent closes ``gate``. Never returns to the parent's code."""
    try:
        signal.alarm(TIMEOUT)  # without a handler, so it ends a worker wherever it hangs
        client = make()
        os.close(gate.write)
        os.close(ready.read)
        os.close(ready.write)
        os.read(gate.read, 1)
        signal.alarm(TIMEOUT)
        track, clock = client.track, time.perf_counter_ns
        for count in range(len(times)):
            sample = properties(count)
            began = clock()
            track(properties=sample)
            times[count] = clock() - began
        client.close()
        relayed[0] = client.relayed()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def entries(name: str, url: str, number: int, per_entry: int) -> None:
    """After a line on stdin, ``number`` events go into a stream, ``per_entry`` in each entry, one after the other."""
    append = measured_clients.appender(url)
    batches = [[measured_clients.encoded(first + n) for n in range(per_entry)] for first in range(0, number, per_entry)]
    _send()
    sys.stdin.readline()
    for batch in batches:
        if append(batch) is not True:
            raise SystemExit("Redis has not taken an entry")
    _send()


def flood(name: str, url: str, number: int, connections: int) -> None:
    """No client: prepared requests of 100 events on ``connections`` sockets. The throughput of the server."""
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
        opened = [stack.enter_context(socket.create_connection(address)) for _ in range(connections)]
        began = time.monotonic()
        for _ in range(number // 100 // connections):
            for sock in opened:
                sock.sendall(request)
            for sock in opened:
                sock.recv(65536)
    _send(began=began)


def _import_network() -> None:
    """Import what every server process has imported anyway, so that it is not attributed to the client."""
    for module in ("http.client", "ssl", "urllib.request"):
        __import__(module)


def _send(**figures: object) -> None:
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2], sys.argv[3], *map(int, sys.argv[4:]))
