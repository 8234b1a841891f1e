"""Killed processes: what one leaves is delivered by whoever of its family looks next, once and in order."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from families import NUMBERED, Gates, arrived, batches, ends, family, in_turn, no_answer, once, running, said
from harness import DEADLINE, Program, whose

from letterapp.testing import Hold, stall, status

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere less is promised")


@pytest.fixture
def gates(letter_api: Any) -> Gates:
    return Gates(letter_api)


# How it ended.

ENDS = {
    "SIGKILL": ("die()", -signal.SIGKILL),
    "SIGTERM": ("die(signal.SIGTERM)", -signal.SIGTERM),
    "an exit that Python does not see": ("__import__('posix')._exit(0)", 0),
    "abort": ("os.abort()", -signal.SIGABRT),
    "crash": ("ctypes.string_at(0)", -signal.SIGSEGV),
    "exec": ("os.execv('/bin/true', ['true'])", 0),
}


@pytest.mark.parametrize("end, code", ENDS.values(), ids=ENDS.keys())
def test_what_waits_in_a_child_outlives(end: str, code: int, letter_api: Any, tmp_path: Path) -> None:
    body = f"""
    letter = make()
    assert leave(letter, 300, end=lambda: {end}) == {code}
    assert letter.flush()
    adopts(letter, 300)
    """
    family(body, letter_api, tmp_path)
    once(letter_api, dead=300)


@pytest.mark.parametrize("end", ["os._exit(0)", "die()"], ids=["os._exit", "SIGKILL"])
def test_a_child_that_has_closed_leaves_nothing(end: str, letter_api: Any, tmp_path: Path) -> None:
    body = f"""
    letter = make()
    leave(letter, 300, end=lambda: letter.close() and {end})
    assert letter.flush()
    adopts(letter, 0)
    """
    family(body, letter_api, tmp_path)
    once(letter_api, dead=300)


def test_nothing_is_changed_or_reordered(letter_api: Any, tmp_path: Path) -> None:
    # `before_send` prints each event as it is queued: identity, time and all.
    body = """
    def note(event):
        say(json.dumps(event))
        return event
    letter = make(before_send=note)
    work(letter, 20, 'parent')
    leave_all(letter, 250, 'first', 'second')
    work(letter, 20, 'parent', start=20)
    assert letter.flush()
    adopts(letter, 500, own=40)
    """
    printed = [json.loads(line) for line in family(body, letter_api, tmp_path).splitlines()]
    once(letter_api, parent=40, first=250, second=250)
    by_pid = {item["userId"]: [other for other in printed if other["userId"] == item["userId"]] for item in printed}
    assert letter_api.events == by_pid["first"] + by_pid["second"] + by_pid["parent"], "the dead ones' come first"


# Where it was killed. Heirs that track have done so, and looked, before: a thread that looks while a flush does may
# find nothing, and send its own first.

stored_or_not = pytest.mark.parametrize("stored", [False, True], ids=["not stored", "stored"])


@stored_or_not
def test_killed_while_its_request_is_on_the_wire(stored: bool, letter_api: Any, gates: Gates, tmp_path: Path) -> None:
    body = """
    letter = make(flush_at=40)
    work(letter, 10, 'parent')
    def job():
        work(letter, 40, 'dead')
        stay()
    pid = fork(job)
    say(pid)
    assert reap(pid) == -signal.SIGKILL
    assert letter.flush()
    adopts(letter, 40, own=10)
    """
    gates.plan(no_answer(stored))
    with running(body, letter_api, tmp_path) as program:
        kill_on_the_wire(program, int(said(program, 1)[0]), letter_api, 40 * stored)
        ends(program)
    arrived(letter_api, dead=40, parent=10)
    assert list(letter_api.repeated().values()) == [2] * 40 * stored, "under the same messageIds"
    first, second = [request.json["batch"] for request in batches(letter_api)][:2]
    assert second[:40] == first


@stored_or_not
def test_killed_with_a_batch_on_the_wire_and_more_that_waits(
    stored: bool, letter_api: Any, gates: Gates, tmp_path: Path
) -> None:
    body = """
    letter = make(flush_at=40)
    work(letter, 10, 'parent')
    def job():
        work(letter, 40, 'dead')
        gate('wire')
        work(letter, 300, 'dead', start=40)
        die()
    assert reap(fork(job)) == -signal.SIGKILL
    assert letter.flush()
    adopts(letter, 340, own=10)
    """
    gates.plan(no_answer(stored))
    with running(body, letter_api, tmp_path) as program:
        gates.wait("wire")
        assert letter_api.wait_until(lambda: len(batches(letter_api)) == 1)
        gates.open("wire")
        ends(program)
    arrived(letter_api, dead=340, parent=10)
    assert list(letter_api.repeated().values()) == [2] * 40 * stored
    assert in_turn(letter_api) == ["dead", "parent"]


@stored_or_not
def test_killed_while_it_delivers_what_another_left(
    stored: bool, letter_api: Any, gates: Gates, tmp_path: Path
) -> None:
    body = """
    letter = make()
    work(letter, 10, 'parent')
    ready, go = os.pipe(), os.pipe()
    def heir():
        work(letter, 30, 'second dead')
        os.write(ready[1], b'.')
        os.read(go[0], 1)
        letter.flush(50)
    pid = fork(heir)
    os.read(ready[0], 1)
    leave(letter, 250, 'first dead')
    os.write(go[1], b'.')
    say(pid)
    assert reap(pid) == -signal.SIGKILL
    assert letter.flush()
    adopts(letter, 280, own=10)
    """
    gates.plan(no_answer(stored))
    with running(body, letter_api, tmp_path) as program:
        kill_on_the_wire(program, int(said(program, 1)[0]), letter_api, 100 * stored)
        ends(program)
    arrived(letter_api, **{"first dead": 250, "second dead": 30, "parent": 10})
    assert list(letter_api.repeated().values()) == [2] * 100 * stored
    assert {item["userId"] for item in batches(letter_api)[0].json["batch"]} == {"first dead"}, "before the heir's own"
    assert in_turn(letter_api).index("parent") == len(in_turn(letter_api)) - 1


@stored_or_not
def test_two_heirs_killed_in_the_same_batch(stored: bool, letter_api: Any, gates: Gates, tmp_path: Path) -> None:
    body = """
    letter = make()
    leave(letter, 250)
    for _ in range(2):
        pid = fork(letter.flush, 50)
        say(pid)
        assert reap(pid) == -signal.SIGKILL
    assert letter.flush()
    adopts(letter, 250)
    """
    gates.plan(no_answer(stored), no_answer(stored))
    with running(body, letter_api, tmp_path) as program:
        for heir in range(2):
            pid = int(said(program, heir + 1)[heir])
            assert letter_api.wait_until(lambda sent=heir + 1: len(letter_api.events) >= 100 * sent * stored)
            kill_on_the_wire(program, pid, letter_api, 100 * stored, requests=heir + 1)
        ends(program)
    arrived(letter_api, dead=250)
    assert list(letter_api.repeated().values()) == [3] * 100 * stored


def kill_on_the_wire(program: Program, pid: int, api: Any, stored: int, requests: int = 1) -> None:
    """Kill a process that waits for the answer to its request."""
    assert api.wait_until(lambda: len(batches(api)) == requests and api.distinct == stored), program.output
    program.signal(signal.SIGKILL, pid)


def test_killed_between_two_tries(letter_api: Any, gates: Gates, tmp_path: Path) -> None:
    # The API says when to come again; the heir need not know.
    body = """
    letter = make(flush_at=40)
    def job():
        work(letter, 40, 'dead')
        gate('again')
        while letter.stats()['retried'] == 0:
            os.sched_yield()
        die()
    assert reap(fork(job)) == -signal.SIGKILL
    assert letter.flush()
    adopts(letter, 40)
    """
    gates.plan(status(429, headers={"Retry-After": "300"}))
    with running(body, letter_api, tmp_path) as program:
        gates.wait("again")
        gates.open("again")
        ends(program)
    once(letter_api, dead=40)


def test_killed_with_half_of_a_batch_delivered(letter_api: Any, gates: Gates, tmp_path: Path) -> None:
    body = """
    letter = make(flush_at=40)
    def job():
        work(letter, 40, 'dead')
        stay()
    pid = fork(job)
    say(pid)
    assert reap(pid) == -signal.SIGKILL
    assert letter.flush()
    adopts(letter, 20)
    """
    gates.plan(status(413), stall(0), no_answer(False))  # 40, 20, and 20
    with running(body, letter_api, tmp_path) as program:
        kill_on_the_wire(program, int(said(program, 1)[0]), letter_api, 20, requests=3)
        ends(program)
    once(letter_api, dead=40)


# Families.


def test_two_generations(letter_api: Any, tmp_path: Path) -> None:
    body = """
    letter = make()
    work(letter, 10, 'parent')
    def child():
        work(letter, 200, 'child')
        leave(letter, 150, 'grandchild')
        die()
    assert reap(fork(child)) == -signal.SIGKILL
    assert letter.flush()
    """
    family(body, letter_api, tmp_path)
    arrived(letter_api, child=200, grandchild=150, parent=10)  # the child may have begun with the grandchild's


def test_a_child_that_never_used_the_client_has_one_that_did(letter_api: Any, tmp_path: Path) -> None:
    body = """
    letter = make()
    def child():
        leave(letter, 150, 'grandchild')
        die()
    assert reap(fork(child)) == -signal.SIGKILL
    assert letter.flush()
    adopts(letter, 150)
    """
    family(body, letter_api, tmp_path)
    once(letter_api, grandchild=150)


def test_a_child_delivers_what_its_killed_parent_left(letter_api: Any, gates: Gates, tmp_path: Path) -> None:
    body = """
    letter = make()
    work(letter, 200, 'parent')
    def child():
        work(letter, 10, 'child')
        gate('orphan')
        assert letter.close()
        adopts(letter, 200, own=10)
        say('well')
        os._exit(0)
    fork(child)
    stay()
    """
    with running(body, letter_api, tmp_path) as program:
        gates.wait("orphan")
        program.signal(signal.SIGKILL)
        assert program.finish().code == -signal.SIGKILL
        gates.open("orphan")
        assert letter_api.wait_for(210), program.output
        assert not program.left_behind()
        assert program.output == "well\n"
    once(letter_api, parent=200, child=10)
    assert in_turn(letter_api) == ["parent", "child"]


# Who delivers it.


@pytest.mark.parametrize("act", ["flush", "close"])
def test_its_parent_that_tracked_nothing_by(act: str, letter_api: Any, tmp_path: Path) -> None:
    body = f"""
    letter = make()
    leave(letter, 300)
    assert letter.{act}()
    adopts(letter, 300)
    """
    family(body, letter_api, tmp_path)
    once(letter_api, dead=300)


@pytest.mark.parametrize("end", ["pass", "sys.exit(0)"], ids=["its end", "sys.exit"])
def test_its_parent_that_tracked_nothing_at(end: str, letter_api: Any, tmp_path: Path) -> None:
    body = f"""
    letter = make()
    leave(letter, 300)
    {end}
    """
    family(body, letter_api, tmp_path)
    once(letter_api, dead=300)


def test_its_parent_before_it_is_reaped(letter_api: Any, tmp_path: Path) -> None:
    body = """
    letter = make()
    def job():
        work(letter, 300, 'dead')
        die()
    pid = fork(job)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert letter.flush()
    adopts(letter, 300)
    assert reap(pid) == -signal.SIGKILL
    """
    family(body, letter_api, tmp_path)
    once(letter_api, dead=300)


def test_a_sibling_that_is_born_later_with_its_first_event(letter_api: Any, gates: Gates, tmp_path: Path) -> None:
    # Nothing else would make it look: its own event waits for an hour.
    body = """
    letter = make()
    leave(letter, 300)
    def sibling():
        work(letter, 1, 'sibling')
        gate('arrived')
        letter.close()
        adopts(letter, 300, own=1)
        os._exit(0)
    assert reap(fork(sibling)) == 0
    """
    with running(body, letter_api, tmp_path) as program:
        assert letter_api.wait_for(300), program.output
        gates.open("arrived")
        ends(program)
    once(letter_api, dead=300, sibling=1)


def test_a_sibling_that_goes_on_sending(letter_api: Any, gates: Gates, tmp_path: Path) -> None:
    # It has looked before, and looks again after a while. The dead one has too few for a batch.
    body = """
    import select
    letter = make(flush_at=40)
    ready, go, over = os.pipe(), os.pipe(), os.pipe()
    def sibling():
        work(letter, 40, 'sibling')
        letter.flush()
        os.write(ready[1], b'.')
        os.read(go[0], 1)
        rounds = 1
        while not select.select([over[0]], [], [], 0.02)[0]:
            if rounds < 200:  # its queue holds no more, should nothing be sent for a while
                work(letter, 40, 'sibling', start=40 * rounds)
                rounds += 1
        say(40 * rounds)
        letter.close()
        adopts(letter, 39, own=40 * rounds)
        os._exit(0)
    pid = fork(sibling)
    os.read(ready[0], 1)
    leave(letter, 39)
    os.write(go[1], b'.')
    gate('arrived')
    os.write(over[1], b'.')
    assert reap(pid) == 0
    """
    with running(body, letter_api, tmp_path) as program:
        assert letter_api.wait_until(lambda: len(whose(letter_api).get("dead", [])) == 39), program.output
        gates.open("arrived")
        ends(program)
        once(letter_api, dead=39, sibling=int(program.output))


def test_one_of_eight_that_look_at_once(letter_api: Any, tmp_path: Path) -> None:
    body = """
    letter = make()
    for number in range(15):
        leave(letter, 20, f'dead {number}')
        there, go = os.pipe()
        def sibling():
            letter.stats()  # has made its client before
            os.close(go)
            os.read(there, 1)
            assert letter.flush()
            say(letter.stats()['adopted'])
            os._exit(0)
        siblings = [fork(sibling) for _ in range(8)]
        os.close(go)
        assert [reap(pid) for pid in siblings] == [0] * 8
        os.close(there)
    letter.flush()
    adopts(letter, 0)
    """
    adopted = [int(word) for word in family(body, letter_api, tmp_path).split()]
    assert sorted(adopted) == [0] * 7 * 15 + [20] * 15
    once(letter_api, **{f"dead {number}": 20 for number in range(15)})


@pytest.mark.parametrize("act", ["flush", "close", ""], ids=["flush", "close", "its end"])
def test_its_heir_while_another_thread_has_just_found_it_alive(act: str, letter_api: Any, tmp_path: Path) -> None:
    body = """
    from letterapp._storage import file_lock
    letter = make()
    ready, is_ready = os.pipe()
    def job():
        work(letter, 69, 'dead')
        os.write(is_ready, b'1')
        stay()
    pid = fork(job)
    os.read(ready, 1)
    found, go_on = threading.Event(), threading.Event()
    lockf = file_lock.fcntl.lockf
    def slow_lockf(*arguments):
        try:
            lockf(*arguments)
        except OSError:
            if threading.current_thread() is looker:
                found.set()
                go_on.wait(20)
            raise
    file_lock.fcntl.lockf = slow_lockf
    looker = threading.Thread(target=letter._delivery._recovery.recover, daemon=True)
    looker.start()
    assert found.wait(20)
    os.kill(pid, signal.SIGKILL)
    assert reap(pid) == -signal.SIGKILL
    timer = threading.Timer(0.2, go_on.set)
    timer.daemon = True
    timer.start()
    """
    if act:
        body += f"""
    assert letter.{act}()
    adopts(letter, 69)
    """
    family(body, letter_api, tmp_path)
    once(letter_api, dead=69)


def test_one_who_has_no_time_leaves_it_to_the_next(letter_api: Any, gates: Gates, tmp_path: Path) -> None:
    body = """
    letter = make(exit_timeout=0.2)
    leave(letter, 250)
    def heir():
        assert not letter.flush(0.2)
        die()
    assert reap(fork(heir)) == -signal.SIGKILL
    assert letter.flush(40)
    adopts(letter, 250)
    """
    gates.plan(no_answer(False))
    family(body, letter_api, tmp_path)
    once(letter_api, dead=250)


# The bounds.


@pytest.mark.parametrize("bound", ["max_queue_events=20", "max_queue_bytes=4000"])
def test_of_a_full_queue_comes_what_was_accepted(bound: str, letter_api: Any, tmp_path: Path) -> None:
    body = f"""
    letter = make({bound}, on_error=lambda error: None)
    def job():
        work(letter, 100, 'dead')
        say(letter.stats()['waiting'])
        die()
    reap(fork(job))
    assert letter.flush()
    adopts(letter, letter.stats()['adopted'])
    """
    waited = int(family(body, letter_api, tmp_path))
    assert 0 < waited < 100
    once(letter_api, dead=waited)


@stored_or_not
def test_of_a_queue_that_drops_the_oldest_comes_what_is_on_the_wire_and_the_newest(
    stored: bool, letter_api: Any, gates: Gates, tmp_path: Path
) -> None:
    body = """
    letter = make(max_queue_events=50, flush_at=30, overflow='drop_oldest', on_error=lambda error: None)
    def job():
        work(letter, 30, 'dead')
        gate('wire')
        work(letter, 500, 'dead', start=30)
        assert letter.stats()['lost'] == {'overflow': 480}, letter.stats()
        die()
    assert reap(fork(job)) == -signal.SIGKILL
    assert letter.flush()
    adopts(letter, 50)
    """
    gates.plan(no_answer(stored))
    with running(body, letter_api, tmp_path) as program:
        gates.wait("wire")
        assert letter_api.wait_until(lambda: len(batches(letter_api)) == 1)
        gates.open("wire")
        ends(program)
    assert whose(letter_api) == {"dead": [*range(30), *range(510, 530)]}
    assert list(letter_api.repeated().values()) == [2] * 30 * stored


def test_what_others_left_takes_no_room_in_its_heirs_queue(letter_api: Any, gates: Gates, tmp_path: Path) -> None:
    body = """
    letter = make(max_queue_events=50)
    leave_all(letter, 50, 'dead 0', 'dead 1', 'dead 2', 'dead 3')
    assert not letter.flush(0.1)  # it has what they left, and is not rid of it
    work(letter, 50, 'parent')
    say('queued')
    assert letter.close(40)
    adopts(letter, 200, own=50)
    """
    hold = Hold()
    gates.plan(hold)
    with running(body, letter_api, tmp_path) as program:
        assert said(program, 1) == ["queued"]
        hold.release()
        ends(program)
    once(letter_api, **{f"dead {number}": 50 for number in range(4)}, parent=50)


def test_where_every_slot_is_a_dead_ones_a_newborn_goes_on_in_one(letter_api: Any, tmp_path: Path) -> None:
    body = """
    letter = make()
    names = [f'dead {number}' for number in range(127)]  # and the parent has one
    leave_all(letter, 2, *names)
    assert leave(letter, 150, 'newborn') == -signal.SIGKILL
    assert letter.flush()
    print(letter.stats()['adopted'], letter.stats()['lost'])
    """
    words = family(body, letter_api, tmp_path).split()
    assert 0 <= int(words[0]) <= 2 * 127 + 150 and words[1] == "{}"
    arrived(letter_api, **{f"dead {number}": 2 for number in range(127)}, newborn=150)


def test_a_newborn_finds_room_beside_an_heir_of_more_than_it_can_send_at_once(
    letter_api: Any, gates: Gates, tmp_path: Path
) -> None:
    hold = Hold()
    gates.plan(hold, hold)  # the parent's first batch, and the newborn's: it is killed before one is answered
    body = """
    letter = make()
    leave_all(letter, 2, *[f'dead {number}' for number in range(127)])
    assert not letter.flush(0)  # it has taken some over, and the first request is not answered
    def job():
        work(letter, 3, 'newborn')
        assert letter.stats()['memory'] == 'shared', letter.stats()
        die()
    assert reap(fork(job)) == -signal.SIGKILL
    gate('released')
    assert letter.flush(40)
    assert counts(letter)[0] == counts(letter)[1] == 127 * 2 + 3, letter.stats()
    """
    with running(body, letter_api, tmp_path) as program:
        assert hold.arrived.wait(DEADLINE)
        gates.wait("released")
        hold.release()
        gates.open("released")
        ends(program)
    came = {who: sorted(serials) for who, serials in whose(letter_api).items()}
    assert came == {**{f"dead {number}": [0, 1] for number in range(127)}, "newborn": [0, 1, 2]}


def test_what_was_not_even_taken_over_is_told_of_when_the_time_is_over(letter_api: Any, tmp_path: Path) -> None:
    letter_api.rule = lambda request: status(503)
    body = """
    letter = make(on_error=lambda error: told.append(error.lost))
    told = []
    leave_all(letter, 2, *[f'dead {number}' for number in range(100)])
    assert not letter.close(0.2)
    assert sum(told) == 200 and letter.stats()['lost'] == {'closed': 200}, (told, letter.stats())
    """
    family(body, letter_api, tmp_path)
    assert letter_api.events == []


# Not dead.


def test_a_stopped_process_is_not_taken_for_dead_and_goes_on(letter_api: Any, tmp_path: Path) -> None:
    body = """
    letter = make()
    work(letter, 10, 'parent')
    def job():
        work(letter, 150, 'child')
        os.kill(os.getpid(), signal.SIGSTOP)
        work(letter, 150, 'child', start=150)
        assert letter.close()
        adopts(letter, 0, own=300)
        os._exit(0)
    pid = fork(job)
    assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
    leave(letter, 50)
    assert letter.flush()
    adopts(letter, 50, own=10)
    os.kill(pid, signal.SIGCONT)
    assert reap(pid) == 0
    assert letter.flush()
    adopts(letter, 50, own=10)
    """
    family(body, letter_api, tmp_path)
    once(letter_api, dead=50, parent=10, child=300)
    assert in_turn(letter_api) == ["dead", "parent", "child"]


def test_a_process_that_is_killed_while_it_is_stopped_is_dead(letter_api: Any, tmp_path: Path) -> None:
    body = """
    letter = make()
    def job():
        work(letter, 150, 'dead')
        os.kill(os.getpid(), signal.SIGSTOP)
    pid = fork(job)
    assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
    assert letter.flush()
    adopts(letter, 0)
    os.kill(pid, signal.SIGKILL)
    assert reap(pid) == -signal.SIGKILL
    assert letter.flush()
    adopts(letter, 150)
    """
    family(body, letter_api, tmp_path)
    once(letter_api, dead=150)


# At any instant.


@pytest.mark.parametrize("seed", range(2))
def test_250_processes_killed_at_random_instants_lose_nothing(seed: int, letter_api: Any, tmp_path: Path) -> None:
    # Each counts in shared memory what it has tracked, outside of the client. It is killed in the middle of a call, of
    # a request, of a look, of its own beginning; and sometimes another begins before somebody has looked.
    body = f"""
    import mmap, random
    dice = random.Random({seed})
    signal.alarm(200)
    tracked = memoryview(mmap.mmap(-1, 4096)).cast('Q')
    letter = Letter('k', API, flush_interval=0, flush_at=10, exit_timeout=40)
    work(letter, 1, 'parent')
    letter.flush()  # has imported what a request needs
    def job(number):
        for serial in range(60):
            letter.track(f'child {{number}}', 'Worked', {{'serial': serial, 'pid': os.getpid()}})
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
    """
    with running(body, letter_api, tmp_path) as program:
        finished = program.finish(240)
        assert finished.code == 0, finished
    came = whose(letter_api)
    assert came.pop("parent") == [0]
    tracked = [int(word) for word in finished.output.split()]
    assert len(tracked) == 250 and 60 in tracked and set(range(60)) & set(tracked)
    for number, count in enumerate(tracked):
        serials = came.pop(f"child {number}", [])
        assert serials in (NUMBERED[:count], NUMBERED[: count + 1]), (number, count, serials)
    assert not came


def test_a_parent_that_never_tracks_sends_what_a_killed_child_left_when_it_forks_again(
    letter_api: Any, tmp_path: Path
) -> None:
    # As a forking server does whose children are killed. Nothing else would look: no child that lives tracks.
    body = """
    letter = make()
    assert leave(letter, 30) == -signal.SIGKILL
    shutdown._next_look = 0
    while letter.stats()['adopted'] < 30 or letter.stats()['waiting']:
        assert reap(fork(lambda: os._exit(7))) == 7
        time.sleep(0.01)
    assert letter.stats()['delivered'] == 30
    while threading.active_count() > 1 or letter._delivery._queue.has_worker:
        time.sleep(0.01)  # the thread that it took has gone
    die()
    """
    with running(body, letter_api, tmp_path) as program:
        assert program.finish().code == -signal.SIGKILL
    once(letter_api, dead=30)
