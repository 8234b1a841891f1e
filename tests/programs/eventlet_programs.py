"""Programs of test_eventlet."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from programs.greenlets import begin  # isort: skip  (it patches before anything else is imported)

from programs.common import main, make, work


def many_greenlets() -> None:
    letter = begin()
    import eventlet

    def many(number: int) -> None:
        for serial in range(20):
            work(letter, 1, f"greenlet {number}", start=serial)
            eventlet.sleep(0)
            if serial % 10 == number % 10:
                assert letter.flush() is True

    for greenlet in [eventlet.spawn(many, number) for number in range(30)]:
        greenlet.wait()
    work(letter, 3, "at the end")


def ticks() -> None:
    letter = begin()
    import eventlet

    work(letter, 3)

    def tick() -> None:
        while True:
            os.write(1, b"tick\n")
            eventlet.sleep(0.01)

    ticking = eventlet.spawn(tick)
    assert letter.flush(30) is True
    print("settled", flush=True)
    ticking.kill()


def signalled(handler: str, waits_for: str) -> None:
    import eventlet
    import eventlet.event

    over = eventlet.event.Event()

    def mine(*_: Any) -> None:
        print("mine", flush=True)
        if handler == "exits":
            sys.exit(7)
        over.send()  # as a server does that ends when its greenlets have

    if handler != "default":
        signal.signal(signal.SIGTERM, mine)
    letter = make(flush_interval=600, exit_timeout=30, timeout=30, exit_signals=[signal.SIGTERM])

    def wait() -> None:
        work(letter, 3, "greenlet")
        if waits_for == "a request":
            letter.flush(0)
            while not os.path.exists("arrived"):
                eventlet.sleep(0.01)
        print("waits", flush=True)
        over.wait()
        work(letter, 3, "after the handler")

    eventlet.spawn(wait).wait()


def forks() -> None:
    letter = begin()
    import eventlet
    from eventlet.green import os as green

    work(letter, 5, "parent")
    letter.flush(0)

    def job(who: str) -> None:
        work(letter, 5, who)
        eventlet.sleep(0)
        assert letter.flush() is True
        work(letter, 5, who, start=5)

    ways: dict[str, Any] = {"exit": sys.exit, "_exit": os._exit}
    for name, leave in ways.items():
        pid = os.fork()
        if not pid:
            eventlet.spawn(job, f"child by {name}").wait()
            leave(0)
        assert green.waitpid(pid, 0) == (pid, 0)
    work(letter, 5, "parent", start=5)


main(globals())
