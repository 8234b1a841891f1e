"""Programs of test_recovery: which process delivers a killed one's events, how many, and which count as dead."""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import select
import signal
import sys
import threading
import time
from typing import Any

from letterapp._delivery import shutdown
from programs.common import make as make_client
from programs.common import stay, work
from programs.family import die, make, reap
from programs.orphans import counts, fork, gate, has_stopped, leave, leave_all, main, recovers, say


def idle_parent(act: str) -> None:
    letter = make()
    leave(letter, 300)
    if act == "sys.exit":
        sys.exit(0)
    if act != "its end":
        assert getattr(letter, act)()
        recovers(letter, 300)


def before_it_is_reaped() -> None:
    letter = make()

    def job() -> None:
        work(letter, 300, "dead")
        die()

    pid = fork(job)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert letter.flush()
    recovers(letter, 300)
    assert reap(pid) == -signal.SIGKILL


def later_sibling() -> None:
    letter = make()
    leave(letter, 300)

    def sibling() -> None:
        work(letter, 1, "sibling")
        gate("arrived")
        letter.close()
        recovers(letter, 300, own=1)
        os._exit(0)

    assert reap(fork(sibling)) == 0


def busy_sibling() -> None:
    letter = make(flush_at=40)
    ready, go, over = os.pipe(), os.pipe(), os.pipe()

    def sibling() -> None:
        work(letter, 40, "sibling")
        letter.flush()
        os.write(ready[1], b".")
        os.read(go[0], 1)
        rounds = 1
        while not select.select([over[0]], [], [], 0.02)[0]:
            if rounds < 200:  # its queue holds no more, should nothing be sent for a while
                work(letter, 40, "sibling", start=40 * rounds)
                rounds += 1
        say(40 * rounds)
        letter.close()
        recovers(letter, 39, own=40 * rounds)
        os._exit(0)

    pid = fork(sibling)
    os.read(ready[0], 1)
    leave(letter, 39)
    os.write(go[1], b".")
    gate("arrived")
    os.write(over[1], b".")
    assert reap(pid) == 0


def eight_at_once() -> None:
    letter = make()

    def sibling(there: int, go: int) -> None:
        letter.stats()  # has made its client before
        os.close(go)
        os.read(there, 1)
        assert letter.flush()
        say(letter.stats()["adopted"])
        os._exit(0)

    for number in range(15):
        leave(letter, 20, f"dead {number}")
        there, go = os.pipe()
        siblings = [fork(sibling, there, go) for _ in range(8)]
        os.close(go)
        assert [reap(pid) for pid in siblings] == [0] * 8
        os.close(there)
    letter.flush()
    recovers(letter, 0)


def just_found_alive(act: str) -> None:
    letter: Any = make()
    ready, is_ready = os.pipe()

    def job() -> None:
        work(letter, 69, "dead")
        os.write(is_ready, b"1")
        stay()

    pid = fork(job)
    os.read(ready, 1)
    found, go_on = threading.Event(), threading.Event()
    module: Any = fcntl
    lockf = module.lockf

    def slow_lockf(*arguments: Any) -> None:
        try:
            lockf(*arguments)
        except OSError:
            if threading.current_thread() is looker:
                found.set()
                go_on.wait(20)
            raise

    module.lockf = slow_lockf
    looker = threading.Thread(target=letter._delivery._recovery.recover, daemon=True)
    looker.start()
    assert found.wait(20)
    os.kill(pid, signal.SIGKILL)
    assert reap(pid) == -signal.SIGKILL
    timer = threading.Timer(0.2, go_on.set)
    timer.daemon = True
    timer.start()
    if act != "its end":
        assert getattr(letter, act)()
        recovers(letter, 69)


def no_time() -> None:
    letter = make(exit_timeout=0.2)
    leave(letter, 250)

    def first() -> None:
        assert not letter.flush(0.2)
        die()

    assert reap(fork(first)) == -signal.SIGKILL
    assert letter.flush(40)
    recovers(letter, 250)


def next_fork() -> None:
    letter: Any = make()
    assert leave(letter, 30) == -signal.SIGKILL
    shutdown._next_recovery = 0
    while letter.stats()["adopted"] < 30 or letter.stats()["waiting"]:
        assert reap(fork(os._exit, 7)) == 7
        time.sleep(0.01)
    assert letter.stats()["delivered"] == 30
    while threading.active_count() > 1 or letter._delivery._queue.has_worker:
        time.sleep(0.01)  # the thread that it took has gone
    die()


def full_queue(option: str, bound: str) -> None:
    letter = make(on_error=lambda error: None, **{option: int(bound)})

    def job() -> None:
        work(letter, 100, "dead")
        say(letter.stats()["waiting"])
        die()

    reap(fork(job))
    assert letter.flush()
    recovers(letter, letter.stats()["adopted"])


def drop_oldest() -> None:
    letter = make(max_queue_events=50, flush_at=30, overflow="drop_oldest", on_error=lambda error: None)

    def job() -> None:
        work(letter, 30, "dead")
        gate("wire")
        work(letter, 500, "dead", start=30)
        assert letter.stats()["lost"] == {"overflow": 480}, letter.stats()
        die()

    assert reap(fork(job)) == -signal.SIGKILL
    assert letter.flush()
    recovers(letter, 50)


def no_room_taken() -> None:
    letter = make(max_queue_events=50)
    leave_all(letter, 50, "dead 0", "dead 1", "dead 2", "dead 3")
    assert not letter.flush(0.1)  # it has what they left, and is not rid of it
    work(letter, 50, "parent")
    say("queued")
    assert letter.close(40)
    recovers(letter, 200, own=50)


def no_free_slot() -> None:
    letter = make()
    leave_all(letter, 2, *[f"dead {number}" for number in range(127)])  # and the parent has one
    assert leave(letter, 150, "new") == -signal.SIGKILL
    assert letter.flush()
    print(letter.stats()["adopted"], letter.stats()["lost"])


def room_for_a_new_process() -> None:
    letter = make()
    leave_all(letter, 2, *[f"dead {number}" for number in range(127)])
    assert not letter.flush(0)  # it has taken some over, and the first request is not answered

    def job() -> None:
        work(letter, 3, "new")
        assert letter.stats()["memory"] == "shared", letter.stats()
        die()

    assert reap(fork(job)) == -signal.SIGKILL
    gate("released")
    assert letter.flush(40)
    assert counts(letter)[0] == counts(letter)[1] == 127 * 2 + 3, letter.stats()


def no_time_for_all() -> None:
    reported: list[int] = []
    letter = make(on_error=lambda error: reported.append(error.lost))
    leave_all(letter, 2, *[f"dead {number}" for number in range(100)])
    assert not letter.close(0.2)
    assert sum(reported) == 200 and letter.stats()["lost"] == {"closed": 200}, (reported, letter.stats())


def stopped() -> None:
    letter = make()
    work(letter, 10, "parent")

    def job() -> None:
        work(letter, 150, "child")
        os.kill(os.getpid(), signal.SIGSTOP)
        work(letter, 150, "child", start=150)
        assert letter.close()
        recovers(letter, 0, own=300)
        os._exit(0)

    pid = fork(job)
    has_stopped(pid)
    leave(letter, 50)
    assert letter.flush()
    recovers(letter, 50, own=10)
    os.kill(pid, signal.SIGCONT)
    assert reap(pid) == 0
    assert letter.flush()
    recovers(letter, 50, own=10)


def killed_while_stopped() -> None:
    letter = make()

    def job() -> None:
        work(letter, 150, "dead")
        os.kill(os.getpid(), signal.SIGSTOP)

    pid = fork(job)
    has_stopped(pid)
    assert letter.flush()
    recovers(letter, 0)
    os.kill(pid, signal.SIGKILL)
    assert reap(pid) == -signal.SIGKILL
    assert letter.flush()
    recovers(letter, 150)


def random_instants(seed: str) -> None:
    dice = random.Random(int(seed))
    signal.alarm(200)
    tracked = memoryview(mmap.mmap(-1, 4096)).cast("Q")
    letter = make_client(flush_interval=0, flush_at=10, exit_timeout=40)
    work(letter, 1, "parent")
    letter.flush()  # has imported what a request needs

    def job(number: int) -> None:
        for serial in range(60):
            letter.track(f"child {number}", "Worked", {"serial": serial, "pid": os.getpid()})
            tracked[0] = serial + 1
        stay()

    for number in range(250):
        tracked[0] = 0
        pid = fork(job, number)
        target = dice.randrange(-1, 60)
        while tracked[0] < target:
            os.sched_yield()
        for _ in range(dice.choice([0, dice.randrange(300), dice.randrange(30_000)])):
            pass
        os.kill(pid, signal.SIGKILL)
        assert reap(pid) == -signal.SIGKILL
        say(tracked[0])
        if dice.random() < 0.3:
            assert letter.flush()
    assert letter.close()


main(globals())
