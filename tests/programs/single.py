"""Programs of test_single_process: one process, and the ways in which it ends."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import threading
from typing import Any

from letterapp import Letter, LetterError
from programs.common import API, main, make, stay, work


def script(end: str) -> None:
    letter = make()
    work(letter, 777)
    if end == "closes":
        letter.close()
    elif end == "flushes":
        assert letter.flush() is True
    elif end == "calls sys.exit":
        sys.exit(0)
    elif end == "raises":
        raise RuntimeError("on purpose")
    elif end == "leaves a with":
        letter.__exit__(None, None, None)


def interrupted() -> None:
    letter = make(flush_interval=30, flush_at=10_000)
    work(letter, 500)
    print("tracked", flush=True)
    stay()


def exit_callback(registered: str) -> None:
    def last() -> None:
        work(letter, 10, start=20)

    if registered == "before":
        atexit.register(last)
    letter = make()
    if registered == "after":
        atexit.register(last)
    work(letter, 20)


def first_use_in_an_exit_callback() -> None:
    atexit.register(lambda: work(make(), 3))
    atexit.register(lambda: work(unused, 3, start=3))
    unused = make()


def thread_at_the_end() -> None:
    letter = make()
    first = threading.current_thread()

    def on() -> None:
        first.join()  # the interpreter has started to end: it waits for this thread
        work(letter, 300)

    threading.Thread(target=on).start()


def thrown_away() -> None:
    work(Letter("k", API, flush_interval=30), 40)
    gc.collect()


def many_clients(flush_interval: str, exit_timeout: str) -> None:
    options: Any = {"flush_interval": float(flush_interval), "exit_timeout": float(exit_timeout), "timeout": 60}
    clients = [make(**options) for _ in range(20)]
    for number, letter in enumerate(clients):
        work(letter, 5, f"client {number}")


def slow_report() -> None:
    def on_error(error: LetterError) -> None:
        threading.Event().wait(0.2)
        print("reported", len(error.events), flush=True)

    work(make(on_error=on_error, flush_interval=30), 10)


def dropped(end: str) -> None:
    def on_error(error: LetterError) -> None:
        print(error.cause, error.lost, flush=True)

    letter = make(on_error=on_error, flush_at=1, max_queue_events=10, exit_timeout=0.5)
    work(letter, 30)
    if end == "close":
        letter.close(timeout=0.5)


def asked_to_exit(where: str) -> None:
    def leave(*_: Any) -> None:
        os.write(1, b"reported\n")
        sys.exit(0)

    def program() -> None:
        signal.signal(signal.SIGTERM, leave)
        work(make(flush_interval=600, exit_timeout=30), 5)
        os.write(1, f"{os.getpid()}\n".encode())

    if where == "multiprocessing child":
        import multiprocessing

        process = multiprocessing.get_context("fork").Process(target=program)
        process.start()
        process.join()
    else:
        program()


def retry_brought_forward() -> None:
    letter: Any = make(max_retries=1, exit_timeout=30)
    work(letter, 10)
    while not letter._delivery._batches._in_flight.not_before:
        threading.Event().wait(0.01)


main(globals())
