"""Whose a file of a spool is, over threads, processes and forks, and what is sent after all were killed."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import re
import signal
import threading
from pathlib import Path
from typing import Any, Callable

import psutil
import pytest
from harness import DEADLINE, eventually, run, start, whose
from spooled import NOWHERE, Bench, change, claimed, descriptors, fill, is_locked, settle

from letterapp import Letter, LetterError
from letterapp._storage import file_lock
from letterapp._storage.file_lock import LockedFile
from letterapp._storage.spool import Spool, SpoolSlot

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]


# Whose a file is.


def test_two_clients_of_one_process_may_share_a_directory(bench: Bench) -> None:
    one, other = bench.spool(), bench.spool()
    slots = [claimed(one), claimed(other)]
    for number, slot in enumerate(slots):
        fill(slot, b"%d" % number)
    assert slots[0].path != slots[1].path
    for _ in range(3):
        assert bench.adopt(one) == [] == bench.adopt(other)
        third = claimed(one)
        third.release()
    assert all(is_locked(slot.path) for slot in slots)
    slots[0].release()
    assert bench.adopt(other) == [[b"0"]] and is_locked(slots[1].path)


def test_two_threads_that_look_at_once_never_have_one_file(bench: Bench) -> None:
    spools = [bench.spool() for _ in range(4)]
    taken: list[bytes] = []
    for turn in range(30):
        for number in range(3):
            bench.left(b"%d.%d" % (turn, number))
        gate = threading.Barrier(len(spools))

        def look(spool: Spool, gate: threading.Barrier) -> None:
            gate.wait(DEADLINE)
            for slot in spool.orphans():
                assert is_locked_by_us(slot)
                taken.extend(settle(slot))

        threads = [threading.Thread(target=look, args=(spool, gate)) for spool in spools]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        # One that was busy with a file of another thread's may have passed it by.
        taken.extend(event for events in bench.adopt(bench.spool()) for event in events)
    assert sorted(taken) == sorted(b"%d.%d" % (turn, number) for turn in range(30) for number in range(3))


def is_locked_by_us(slot: SpoolSlot) -> bool:
    return slot.is_own() and slot._file._process.locks[slot._file._name] is slot._file


def test_a_file_that_is_replaced_between_look_and_open_is_not_taken(bench: Bench, tmp_path: Path) -> None:
    path, other = bench.left(b"x"), bench.left(b"y", max_queue_events=21)
    status = os.lstat(path)
    os.rename(other, path)
    before = descriptors()
    assert LockedFile.open(path, status) is None
    os.unlink(path)
    assert LockedFile.open(path, status) is None
    (tmp_path / "real").write_text("")
    os.symlink(tmp_path / "real", path)
    with pytest.raises(OSError):
        LockedFile.open(path, status)
    assert descriptors() == before
    again = claimed(bench.spool())  # whose inode may be the one that was looked for: nothing is left in the table
    assert is_locked_by_us(again)


def test_a_file_that_is_removed_before_its_lock_is_had_is_not_taken(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, spool = bench.left(b"x"), bench.spool()
    lock = file_lock.fcntl.lockf

    def others_are_quicker(*arguments: Any) -> None:
        os.unlink(path)
        lock(*arguments)

    monkeypatch.setattr(file_lock.fcntl, "lockf", others_are_quicker)
    before = descriptors()
    assert bench.adopt(spool) == [] and bench.reports == [] and descriptors() == before


def test_no_thread_can_open_a_file_before_its_last_descriptor_is_closed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = claimed(bench.spool())
    fill(slot, b"x")
    close, other = os.close, bench.spool()
    looked: list[bool] = []

    def look_first(descriptor: int) -> None:
        monkeypatch.setattr(os, "close", close)
        looked.append(bench.adopt(other) == [])
        close(descriptor)
        looked.append(bench.adopt(other) == [])

    monkeypatch.setattr(os, "close", look_first)
    slot._file.close()
    assert looked == [True, True] and bench.adopt(other) == [[b"x"]]


def test_a_file_of_ours_that_comes_in_between_look_and_open_keeps_its_lock(bench: Bench) -> None:
    slot = claimed(bench.spool())
    path = bench.left(b"x", max_queue_events=21)
    status = os.lstat(path)
    os.rename(slot.path, path)
    before = descriptors()
    assert LockedFile.open(path, status) is None  # it was opened; to close it would give back the lock
    assert is_locked(path)
    slot.release()
    assert descriptors() < before and not is_locked(path)


def test_two_processes_share_a_directory_and_the_one_that_is_killed_is_inherited(bench: Bench, tmp_path: Path) -> None:
    code = """
    letter = Letter('k', API, spool=sys.argv[1], flush_interval=1000, flush_at=1000)
    work(letter, 5)
    print("ready")
    stay()
    """
    spool = bench.spool(**BIG)
    with start(code, NOWHERE, tmp_path, str(bench.directory)) as program:
        assert eventually(lambda: program.output, lambda output: "ready" in output)
        slot = claimed(spool)
        assert bench.adopt(spool) == [] and len(bench.files()) == 2
        program.signal(signal.SIGSTOP)
        assert bench.adopt(spool) == []
        program.signal(signal.SIGKILL)
        program.finish()
    ((*events,),) = bench.adopt(spool)
    assert [b'"serial":%d,' % number in event for number, event in enumerate(events)] == [True] * 5
    assert bench.files() == [os.path.basename(slot.path)]


BIG = {"max_queue_bytes": 4_194_304, "max_queue_events": 10_000, "max_batch_bytes": 500_000}  # the defaults


# Forks.

FORKS = """
import ctypes, fcntl

fork = {fork}
from letterapp._storage.spool import Spool
from letterapp._storage.ring import Ring

def spool():
    small = dict(max_queue_bytes=4000, max_queue_events=20, max_batch_bytes=2000)
    return Spool(Letter('k', enabled=False, spool=sys.argv[1], **small)._settings, print)

def child(job, of=child):
    return of(job, fork)

def wait(pid):
    code = os.waitpid(pid, 0)[1] >> 8
    assert code != 99
    return code

def is_locked(path):
    def look():
        with open(path, "r+b") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
            except BlockingIOError:
                return 1
    return wait(child(look)) == 1

def descriptors():
    return len(os.listdir("/dev/fd"))
"""


@pytest.fixture(params=["os.fork", "ctypes.PyDLL(None).fork"], ids=["os.fork", "without Python's hooks"])
def forks(request: Any, bench: Bench, tmp_path: Path) -> Callable[[str], None]:
    def run_it(code: str) -> None:
        prelude = FORKS.format(fork=request.param)
        script = prelude + "\n" + "\n".join(line[4:] for line in code.splitlines())
        finished = run(script, NOWHERE, tmp_path, str(bench.directory))
        assert (finished.code, finished.output) == (0, ""), finished

    return run_it


def test_a_child_has_a_file_of_its_own_and_the_parent_keeps_its_lock(forks: Callable[[str], None]) -> None:
    forks("""
    parents = spool()
    slot = parents.claim()
    ring = Ring(slot)
    assert ring.append(b"parent's")
    def work():
        mine = parents.for_child()
        assert not slot.is_own()
        assert list(mine.orphans()) == []
        own = mine.claim()
        assert own.path != slot.path and os.path.exists(slot.path)
        assert Ring(own).append(b"child's")
        assert is_locked(own.path) and is_locked(slot.path)
    for turn in range(3):
        assert wait(child(work)) == 0
        assert slot.is_own() and is_locked(slot.path)
        (left,) = parents.orphans()
        assert Ring.recovered_from(left)[0].clear() == [b"child's"]
        left.release()
    assert ring.append(b"more") and ring.clear() == [b"parent's", b"more"]
    path = slot.path
    slot.release()
    assert not os.path.exists(path)
    """)


def test_a_child_that_drops_what_it_inherited_touches_no_file(forks: Callable[[str], None]) -> None:
    forks("""
    import gc
    parents = spool()
    slots = [parents.claim(), parents.claim()]
    Ring(slots[0]).append(b"x")
    paths = [slot.path for slot in slots]
    def forget():
        slots[1].release()
        del slots[:]
        gc.collect()
        assert all(map(os.path.exists, paths)) and all(map(is_locked, paths))
    assert wait(child(forget)) == 0
    assert all(map(os.path.exists, paths)) and all(map(is_locked, paths))
    """)


def test_a_child_that_takes_over_its_parent_s_file_keeps_the_lock(forks: Callable[[str], None]) -> None:
    # It inherited descriptors of that very file. Were they closed any later, the lock would go with them.
    forks("""
    import gc
    parents, others = spool(), spool()
    there, back = os.pipe(), os.pipe()
    def parent():
        slots = [parents.claim(), others.claim()]
        for slot in slots:
            Ring(slot).append(b"parent's")
        def orphan():
            os.read(there[0], 1)
            left = list(parents.for_child().orphans())
            assert len(left) == 2
            del slots[:]
            gc.collect()
            assert list(others.for_child().orphans()) == []
            assert all(is_locked(slot.path) for slot in left)
            os.write(back[1], b"!")
        child(orphan)
        return len(slots)
    assert wait(child(parent)) == 2
    os.write(there[1], b".")
    os.close(back[1])
    assert os.read(back[0], 1) == b"!"
    """)


def test_a_thousand_forks_leak_no_descriptor_and_no_file(forks: Callable[[str], None]) -> None:
    forks("""
    parents = spool()
    slot = parents.claim()
    count = descriptors()
    def work():
        own = parents.for_child().claim()
        return descriptors() - count  # as many of its own as it gave back
    for turn in range(1000):
        assert wait(child(work)) == 0
        assert descriptors() == count
    assert len(os.listdir(sys.argv[1])) <= 2
    """)


def test_generations_leak_no_descriptor(forks: Callable[[str], None]) -> None:
    forks("""
    def live(generation, parents, kept):
        slot = kept[0] = parents.for_child().claim()
        Ring(slot).append(b"%d" % generation)
        mine = descriptors()
        assert mine == count, (mine, count, generation)
        assert generation == 20 or wait(child(lambda: live(generation + 1, parents, [slot]))) == 0
        assert is_locked(slot.path)
    spool_of_all = spool()
    kept = [spool_of_all.claim()]
    count = descriptors()
    live(1, spool_of_all, kept)
    del kept
    import gc
    gc.collect()
    assert len(list(spool_of_all.orphans())) == 20
    """)


def test_who_closes_all_descriptors_loses_its_file_and_nobody_else_s(forks: Callable[[str], None]) -> None:
    forks("""
    import socket
    parents = spool()
    slot = parents.claim()
    Ring(slot).append(b"x")
    assert slot.is_own()
    before = set(os.listdir("/dev/fd"))
    os.closerange(3, 100)
    pairs = [socket.socketpair() for _ in range(20)]  # which get the same numbers
    assert not slot.is_own()
    slot.release()
    path = slot.path
    del slot
    for one, other in pairs:
        one.send(b"."), other.recv(1)
    assert os.path.exists(path)
    (left,) = parents.orphans()
    assert left.path == path and is_locked(path)
    """)


def test_a_file_that_somebody_removed_is_not_ours_any_more(bench: Bench) -> None:
    slot = claimed(bench.spool())
    assert slot.is_own()
    os.unlink(slot.path)
    Path(slot.path).write_text("another")
    assert not slot.is_own()
    slot.release()
    assert Path(slot.path).read_text() == "another"


def test_a_slot_may_be_released_twice_and_is_released_when_nobody_has_it(bench: Bench) -> None:
    before = descriptors()
    spool = bench.spool()
    slot = claimed(spool)
    fill(slot, b"x")
    slot.release()
    (again,) = spool.orphans()
    slot.release()
    del slot
    assert is_locked_by_us(again) and is_locked(again.path)
    del again
    assert descriptors() == before and bench.adopt(spool) == [[b"x"]]


# From end to end.


def test_all_processes_killed_under_load_and_the_next_start_delivers_all_in_order(
    make: Any, letter_api: Any, errors: list[LetterError], bench: Bench, tmp_path: Path
) -> None:
    code = """
    letter = Letter('test-key', API, spool=sys.argv[1], max_queue_events=100_000, max_queue_bytes=20_000_000)
    def load(who):
        serial = 0
        while serial < 10_000:  # the queue holds more, should nothing be sent for a while
            work(letter, 1, who, serial)
            serial += 1
            os.write(1, f"{who} {serial}\\n".encode())  # the call has returned
        stay()
    for number in range(3):
        if not os.fork():
            load(f"child {number}")
    load("parent")
    """
    with start(code, letter_api.url, tmp_path, str(bench.directory)) as program:
        at_work = eventually(
            lambda: re.findall(r"^(.*) \d+$", program.output, re.M), lambda who: len(who) > 3000 and len(set(who)) == 4
        )
        assert len(set(at_work)) == 4, program.output[-1000:]
        program.signal_group(signal.SIGKILL)
        program.finish()
        assert not program.left_behind()
        tracked = {who: int(serial) for who, serial in re.findall(r"^(.*) (\d+)$", program.output, re.M)}
    assert len(tracked) == 4
    before = dict(ids(letter_api))
    letter = make(spool=bench.directory)
    assert letter.flush(DEADLINE)
    came = whose(letter_api)
    for who, count in tracked.items():
        assert len(came[who]) - count in (0, 1), "one more may have been taken when its call had not returned"
        assert came[who] == list(range(len(came[who])))
    assert all(ids(letter_api)[event] == before[event] for event in before), "the same event under the same id"
    assert len(ids(letter_api)) == len(set(ids(letter_api).values()))
    assert errors == [] and letter.stats()["lost"] == {} and letter.stats()["memory"] == "spool"
    assert len(bench.files()) == 1


def ids(api: Any) -> dict[tuple[str, int], str]:
    return {(item["userId"], item["properties"]["serial"]): item["messageId"] for item in api.events}


def test_an_outage_is_outlived_by_starts_that_are_killed_in_turn(
    make: Any, letter_api: Any, bench: Bench, tmp_path: Path
) -> None:
    code = """
    letter = Letter('test-key', API, spool=sys.argv[1], flush_at=1, timeout=0.1)
    work(letter, 20, sys.argv[2])
    letter.flush(0.2)
    print("ready")
    stay()
    """
    for turn in range(3):
        with start(code, NOWHERE, tmp_path, str(bench.directory), f"start {turn}") as program:
            assert eventually(lambda: program.output, lambda output: "ready" in output)
            program.signal(signal.SIGKILL)
            program.finish()
    letter = make(spool=bench.directory)
    assert letter.flush(DEADLINE)
    assert whose(letter_api) == {f"start {turn}": list(range(20)) for turn in range(3)}
    assert letter.stats()["adopted"] == letter.stats()["delivered"] == 60


@pytest.mark.parametrize("serial", [0, 6])
def test_a_spoilt_event_costs_what_comes_after_it_and_is_reported_once(
    serial: int, make: Any, letter_api: Any, errors: list[LetterError], bench: Bench, tmp_path: Path
) -> None:
    code = """
    letter = Letter('test-key', API, spool=sys.argv[1], flush_at=1000, flush_interval=1000)
    work(letter, 10)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run(code, NOWHERE, tmp_path, str(bench.directory)).code == -signal.SIGKILL
    (name,) = bench.files()
    path = str(bench.directory / name)
    change(path, Path(path).read_bytes().index(b'"serial":%d' % serial), b"'")
    letter = make(spool=bench.directory)
    assert letter.flush(DEADLINE) and letter.flush(DEADLINE)
    assert whose(letter_api).get("program", []) == list(range(serial))
    assert [(error.cause, error.lost) for error in errors] == [("damaged", 10 - serial)]
    assert letter.stats()["lost"] == {"damaged": 10 - serial}
    assert name + ".damaged" in bench.files() and len(bench.files()) == 2


def spawned(letter: Letter) -> None:
    letter.track("spawned", "Worked", {"serial": 0})
    assert letter.stats()["memory"] == "spool"
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_what_a_killed_child_left_is_delivered_by_its_parent(method: str, letter_api: Any, bench: Bench) -> None:
    letter = Letter("test-key", letter_api.url, spool=bench.directory, flush_interval=1000)
    child = multiprocessing.get_context(method).Process(target=spawned, args=(letter,))
    child.start()
    child.join(DEADLINE)
    assert child.exitcode == -signal.SIGKILL and letter_api.requests == []
    assert letter.close(DEADLINE)
    assert whose(letter_api) == {"spawned": [0]}
    child.close()


def test_a_client_that_is_thrown_away_leaves_nothing_open(letter_api: Any, bench: Bench) -> None:
    Letter("test-key", letter_api.url)  # the first of a process opens a file for good
    before = descriptors()
    for _ in range(3):
        letter = Letter("test-key", letter_api.url, spool=bench.directory)
        letter.track("u", "Worked", {"serial": 0})
        assert letter.close(DEADLINE)
        del letter
    assert eventually(descriptors, lambda count: count == before) == before
    assert bench.files() == []


def test_an_event_after_the_end_has_removed_the_file_is_delivered_too(
    letter_api: Any, bench: Bench, tmp_path: Path
) -> None:
    code = """
    import atexit
    atexit.register(lambda: work(letter, 3, start=1))  # registered before the client, and so called after its end
    letter = Letter('test-key', API, spool=sys.argv[1])
    work(letter, 1)
    """
    finished = run(code, letter_api.url, tmp_path, str(bench.directory))
    assert (finished.code, finished.output) == (0, "")
    assert whose(letter_api) == {"program": [0, 1, 2, 3]} and bench.adopt(bench.spool()) == []


LEAVES = """
letter = Letter('test-key', API, spool=sys.argv[1], flush_at=1000, flush_interval=1000)
work(letter, 5, "left")
os.kill(os.getpid(), signal.SIGKILL)
"""


def leave(api: Any, bench: Bench, tmp_path: Path) -> None:
    """Have a process with the defaults leave five events."""
    assert run(LEAVES, api.url, tmp_path, str(bench.directory)).code == -signal.SIGKILL


def test_a_start_without_an_event_sends_what_was_left_and_then_has_no_thread(
    letter_api: Any, bench: Bench, tmp_path: Path
) -> None:
    leave(letter_api, bench, tmp_path)
    code = """
    letter = Letter('test-key', API, spool=sys.argv[1])
    stay()
    """
    with start(code, letter_api.url, tmp_path, str(bench.directory)) as program:
        assert letter_api.wait_for(5), program.output
        process = psutil.Process(program.pid)
        assert eventually(process.num_threads, lambda count: count == 1) == 1
        assert eventually(bench.files, lambda files: len(files) == 1), "its own"
    assert whose(letter_api) == {"left": list(range(5))}


def test_a_start_that_finds_nothing_has_no_thread(make: Any, bench: Bench) -> None:
    letters = [make(spool=bench.directory, on_error=print) for _ in range(3)]
    assert [letter._delivery._queue.has_worker for letter in letters] == [False] * 3


def test_a_spawned_worker_and_a_listener_send_what_was_left_too(letter_api: Any, bench: Bench, tmp_path: Path) -> None:
    from letterapp.relay import QueueListener

    leave(letter_api, bench, tmp_path)
    with QueueListener(multiprocessing.Queue(10), "test-key", letter_api.url, spool=bench.directory):
        assert letter_api.wait_for(5)
    letter = Letter("test-key", letter_api.url, spool=bench.directory)
    data = pickle.dumps(letter)
    leave(letter_api, bench, tmp_path)
    unpickled = pickle.loads(data)
    assert letter_api.wait_for(10)
    assert letter.close(DEADLINE) and unpickled.close(DEADLINE)
