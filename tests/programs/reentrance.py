"""Programs of test_reentrance: calls from signal handlers and destructors, and signals that end the process."""

from __future__ import annotations

import gc
import os
import signal
import time
from typing import Any

from programs.common import main, make, stay, work

LARGE: dict[str, Any] = {"max_queue_events": 10**6, "max_queue_bytes": 10**9, "exit_timeout": 40}
WAITING: dict[str, Any] = {"flush_interval": 1000, "flush_at": 1000}


def handler_that_tracks() -> None:
    letter = make(**LARGE)
    count = 0

    def handler(*_: Any) -> None:
        nonlocal count
        work(letter, 1, "handler", start=count)
        count += 1

    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    serial = 0
    while count < 500:
        work(letter, 1, "program", start=serial)
        serial += 1
    signal.setitimer(signal.ITIMER_REAL, 0, 0)
    print(serial, count)


def destructor_that_tracks() -> None:
    often: Any = getattr(gc, "set_threshold", None)  # PyPy has no such thing
    letter = make(**LARGE)
    called: list[bool] = []

    class Node:
        def __init__(self) -> None:
            self.me = self  # only the collector can take it, at any allocation of any thread

        def __del__(self) -> None:
            work(letter, 1, "destructor")
            called.append(True)

    if often:
        often(5)
    for serial in range(3000):
        Node()
        work(letter, 1, "program", start=serial)
        if not often and serial % 50 == 0:
            gc.collect()
    if often:
        often(700)
    while len(called) < 3000:
        # `collect` returns at once while another thread collects, and PyPy calls destructors some time after.
        gc.collect()
        os.sched_yield()


def terminated(exit_signals: str) -> None:
    letter = make(**WAITING, exit_signals=(signal.SIGTERM,) if exit_signals == "SIGTERM" else ())
    work(letter, 100)
    print("tracked", flush=True)
    stay()


def terminated_in_a_call(book: str) -> None:
    letter = make(**LARGE, exit_signals=(signal.SIGTERM,))
    written = os.open(book, os.O_WRONLY | os.O_CREAT)
    serial = 0
    print("tracking", flush=True)
    while True:
        work(letter, 1, start=serial)
        os.pwrite(written, b"%d" % serial, 0)
        serial += 1


def terminated_inside_the_lock() -> None:
    letter: Any = make(**WAITING, exit_timeout=40, exit_signals=(signal.SIGTERM,))
    queue = letter._delivery._queue

    def clock() -> float:
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(100):  # instructions at which the handler may run
            assert queue.is_held_by_this_thread()
        return time.monotonic()

    queue._clock = clock
    work(letter, 1)


def handler_before() -> None:
    def before(*_: Any) -> None:
        print("before", letter.stats()["waiting"], flush=True)

    signal.signal(signal.SIGTERM, before)
    letter = make(**WAITING, exit_signals=(signal.SIGTERM,))
    make(exit_signals=(signal.SIGTERM,))
    work(letter, 10)
    os.kill(os.getpid(), signal.SIGTERM)
    work(letter, 10, start=10)  # as uvicorn does until its last request is answered
    print("after", letter.stats()["delivered"], flush=True)
    os._exit(0)


def ignored_signal() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    letter = make(flush_interval=1000, exit_signals=(signal.SIGTERM,))
    work(letter, 10)
    os.kill(os.getpid(), signal.SIGTERM)
    print("alive", letter.stats()["delivered"])


def child_terminated() -> None:
    letter = make(**WAITING, exit_signals=(signal.SIGTERM,))
    pid = os.fork()
    if not pid:
        work(letter, 10, "child")
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(9)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGTERM


def terminated_with_the_api_silent() -> None:
    letter = make(exit_timeout=0.5, exit_signals=(signal.SIGTERM,))
    work(letter, 10)
    os.kill(os.getpid(), signal.SIGTERM)


main(globals())
