"""Programs of test_gevent."""

from __future__ import annotations

import os
import signal

from programs.greenlets import begin  # isort: skip  (it patches before anything else is imported)

from programs.common import main, make, work


def many_greenlets() -> None:
    letter = begin()
    import gevent

    def many(number: int) -> None:
        for serial in range(20):
            work(letter, 1, f"greenlet {number}", start=serial)
            gevent.sleep(0)
            if serial % 10 == number % 10:
                assert letter.flush() is True

    gevent.joinall([gevent.spawn(many, number) for number in range(50)], raise_error=True)
    work(letter, 3, "at the end")


def ticks() -> None:
    letter = begin()
    import gevent

    work(letter, 3)

    def tick() -> None:
        while True:
            os.write(1, b"tick\n")
            gevent.sleep(0.01)

    ticking = gevent.spawn(tick)
    assert letter.flush(30) is True
    print("settled", flush=True)
    ticking.kill()


def waits_for_a_signal() -> None:
    import gevent
    import gevent.event

    letter = make(flush_interval=600, exit_timeout=30, exit_signals=[signal.SIGTERM])

    def wait() -> None:
        work(letter, 3, "greenlet")
        print("waits", flush=True)
        gevent.event.Event().wait()

    gevent.joinall([gevent.spawn(wait)])


main(globals())
