"""Programs of test_killed: a child tracks and ends in one of many ways, and its parent delivers what it left."""

from __future__ import annotations

import ctypes
import json
import os
import posix
import signal
from typing import Any, Callable

from programs.common import stay, work
from programs.family import die, make, reap
from programs.orphans import fork, gate, leave, leave_all, main, recovers, say

ENDS: dict[str, Callable[[], object]] = {
    "SIGKILL": die,
    "SIGTERM": lambda: die(signal.SIGTERM),
    "an exit that Python does not see": lambda: posix._exit(0),
    "abort": os.abort,
    "crash": lambda: ctypes.string_at(0),
    "exec": lambda: os.execv("/bin/true", ["true"]),
}


def outlived(end: str, code: str) -> None:
    letter = make()
    assert leave(letter, 300, end=ENDS[end]) == int(code)
    assert letter.flush()
    recovers(letter, 300)


def closed(end: str) -> None:
    letter = make()

    def close() -> None:
        assert letter.close()
        if end == "os._exit":
            os._exit(0)
        die()

    leave(letter, 300, end=close)
    assert letter.flush()
    recovers(letter, 0)


def unchanged() -> None:
    def note(event: dict[str, Any]) -> dict[str, Any]:
        say(json.dumps(event))
        return event

    letter = make(before_send=note)
    work(letter, 20, "parent")
    leave_all(letter, 250, "first", "second")
    work(letter, 20, "parent", start=20)
    assert letter.flush()
    recovers(letter, 500, own=40)


def on_the_wire() -> None:
    letter = make(flush_at=40)
    work(letter, 10, "parent")

    def job() -> None:
        work(letter, 40, "dead")
        stay()

    pid = fork(job)
    say(pid)
    assert reap(pid) == -signal.SIGKILL
    assert letter.flush()
    recovers(letter, 40, own=10)


def on_the_wire_with_more() -> None:
    letter = make(flush_at=40)
    work(letter, 10, "parent")

    def job() -> None:
        work(letter, 40, "dead")
        gate("wire")
        work(letter, 300, "dead", start=40)
        die()

    assert reap(fork(job)) == -signal.SIGKILL
    assert letter.flush()
    recovers(letter, 340, own=10)


def while_it_recovers() -> None:
    letter = make()
    work(letter, 10, "parent")
    ready, go = os.pipe(), os.pipe()

    def second() -> None:
        work(letter, 30, "second dead")
        os.write(ready[1], b".")
        os.read(go[0], 1)
        letter.flush(50)

    pid = fork(second)
    os.read(ready[0], 1)
    leave(letter, 250, "first dead")
    os.write(go[1], b".")
    say(pid)
    assert reap(pid) == -signal.SIGKILL
    assert letter.flush()
    recovers(letter, 280, own=10)


def two_in_the_same_batch() -> None:
    letter = make()
    leave(letter, 250)
    for _ in range(2):
        pid = fork(letter.flush, 50)
        say(pid)
        assert reap(pid) == -signal.SIGKILL
    assert letter.flush()
    recovers(letter, 250)


def between_two_tries() -> None:
    letter = make(flush_at=40)

    def job() -> None:
        work(letter, 40, "dead")
        gate("again")
        while letter.stats()["retried"] == 0:
            os.sched_yield()
        die()

    assert reap(fork(job)) == -signal.SIGKILL
    assert letter.flush()
    recovers(letter, 40)


def with_half_of_a_batch_delivered() -> None:
    letter = make(flush_at=40)

    def job() -> None:
        work(letter, 40, "dead")
        stay()

    pid = fork(job)
    say(pid)
    assert reap(pid) == -signal.SIGKILL
    assert letter.flush()
    recovers(letter, 20)


def two_generations() -> None:
    letter = make()
    work(letter, 10, "parent")

    def child() -> None:
        work(letter, 200, "child")
        leave(letter, 150, "grandchild")
        die()

    assert reap(fork(child)) == -signal.SIGKILL
    assert letter.flush()


def grandchild() -> None:
    letter = make()

    def child() -> None:
        leave(letter, 150, "grandchild")
        die()

    assert reap(fork(child)) == -signal.SIGKILL
    assert letter.flush()
    recovers(letter, 150)


def parent() -> None:
    letter = make()
    work(letter, 200, "parent")

    def child() -> None:
        work(letter, 10, "child")
        gate("orphan")
        assert letter.close()
        recovers(letter, 200, own=10)
        say("well")
        os._exit(0)

    fork(child)
    stay()


main(globals())
