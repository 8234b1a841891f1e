"""Programs of test_slots: which slot the processes of a family use, and when it is free again."""

from __future__ import annotations

import os
import signal
import sys

from letterapp._storage import memory
from programs.common import child, main, work
from programs.family import Gate, die, make, reap
from programs.footprint import kind, slot


def too_few() -> None:
    memory.SLOTS = 2
    reports, report = os.pipe()
    letter = make(on_error=lambda error: os.write(report, f"{error.cause}: {error}\n".encode()))
    used, end = Gate(), Gate()

    def one_more(number: int) -> int | None:
        work(letter, 20, f"child {number}")
        used.open()
        end.wait()
        letter.close()
        return slot(letter) if kind(letter) == "shared" else 50

    work(letter, 20, "parent")
    children = [child(lambda n=n: one_more(n)) for n in range(6)]  # type: ignore[misc]
    used.wait(6)
    end.open(6)
    assert sorted(reap(pid) for pid in children) == [1] + [50] * 5
    # With their ends the slots are free again.
    end.open()
    assert reap(child(lambda: one_more(6))) == 1
    (said,) = os.read(reports, 10_000).decode().splitlines()
    assert said.startswith("degraded: events are kept in private memory (more than 2 proc"), said


def of_the_dead() -> None:
    memory.SLOTS = 2
    letter = make()

    def is_killed(who: str) -> None:
        work(letter, 20, who)
        assert slot(letter) == 1
        die()

    def last() -> None:
        work(letter, 20, "last")
        assert slot(letter) == 1
        letter.close()
        assert letter.stats()["adopted"] == 40 and letter.stats()["delivered"] == 60, letter.stats()

    def after_it() -> None:
        work(letter, 20, "after it")
        assert slot(letter) == 1 and letter.stats()["adopted"] == 0
        letter.close()

    assert reap(child(lambda: is_killed("first"))) == -signal.SIGKILL
    assert reap(child(lambda: is_killed("second"))) == -signal.SIGKILL
    assert reap(child(last)) == 0
    assert reap(child(after_it)) == 0


def before_it_is_reaped(end: str) -> None:
    letter = make()

    def ends(number: int) -> None:
        work(letter, 3, f"child {number}")
        assert slot(letter) == 1, slot(letter)
        if end == "close":
            letter.close()
        elif end != "sys.exit":
            letter.flush()
            if end == "os._exit":
                os._exit(0)
            die()
        sys.exit(0)

    for number in range(3):
        pid = os.fork()
        if not pid:
            ends(number)
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert found is not None and found.si_status == (signal.SIGKILL if end == "SIGKILL" else 0), found
    for _ in range(3):
        os.wait()


def one_after_the_other() -> None:
    letter = make()
    work(letter, 1, "parent")
    letter.flush()  # and what a request imports is there

    def short(number: int) -> int | None:
        work(letter, 1, f"child {number}")
        letter.close()
        return slot(letter)

    assert {reap(child(lambda n=n: short(n))) for n in range(300)} == {1}  # type: ignore[misc]


main(globals())
