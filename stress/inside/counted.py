"""What `stress/instructions.py` counts, in one process under callgrind: ``counted.py CALLS FORKS``.

Responsible for: the counted sections, and a line on stdout for each, ``PID NAME``, in the order of callgrind's parts.
Callgrind starts a part at each `os.getsid`, which nothing else here calls. Not responsible for: reading the parts.

Only the main thread is counted, and nothing interrupts it: the sender's thread runs while the main thread is blocked,
and does not send anything.
"""

from __future__ import annotations

import gc
import http.client  # noqa: F401  # what the sender's thread would import, and a fork would wait for
import os
import sys
import time
from itertools import repeat
from typing import Callable, NoReturn

import measured_clients
from measured_clients import SHAPES, Client, flat

WARM_UP = 20  # calls of each shape
NOWHERE = "http://127.0.0.1:9"


def main(calls: int, forks: int) -> NoReturn:
    gc.disable()
    sys.setswitchinterval(1000)
    # The clocks stand still: what happens once a second would happen more often on a busy machine. They are replaced
    # before the client is imported, by functions that take next to nothing.
    for clock in ("monotonic", "time_ns"):
        setattr(time, clock, repeat(getattr(time, clock)()).__next__)
    capacity = 100_000
    floor = measured_clients.floor("", capacity)
    __import__("letterapp")  # in every process that forks, with a client or without
    for _ in range(forks):
        _fork("fork without", lambda: None)
    client = measured_clients.letterapp(
        NOWHERE, capacity, flush_at=capacity, flush_interval=3600.0, send_on_os_exit=False
    )
    for shape in SHAPES:
        for name, one in {"floor": floor, "track": client}.items():
            _call(one, shape, WARM_UP, "warm-up")
            _call(one, shape, calls, f"{shape} {name}")
    for _ in range(forks):
        _fork("fork with", lambda: None)
    # Once, and last: the child leaves an event, for which the parent would look at its next fork.
    _fork("use", lambda: client.track(properties=flat(0)))
    os._exit(0)


def _call(client: Client, shape: str, number: int, name: str) -> None:
    track, events = client.track, [SHAPES[shape](count) for count in range(number)]
    _begin()
    for properties in events:
        track(properties=properties)
    _end(name)


def _fork(name: str, use: Callable[[], object]) -> None:
    # Its entries are found by addresses in memory. Which of them get lost to others is different in each environment.
    sys._clear_type_cache()
    _begin()
    child = os.fork()
    if child == 0:
        use()
        _end(f"{name}, child")
        os._exit(0)
    os.waitpid(child, 0)
    _end(f"{name}, parent")


def _begin() -> None:
    _note("between")
    os.getsid(0)


def _end(name: str) -> None:
    os.getsid(0)
    _note(name)


def _note(name: str) -> None:
    os.write(1, f"{os.getpid()} {name}\n".encode())


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
