"""Which process owns a spool file, with threads, processes and forks."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any, Callable

import pytest
from harness import DEADLINE, eventually, run, start
from programs import spool_forks, spools
from spool_dir import NOWHERE, SpoolDir, claimed, descriptors, fill, is_locked, settle

from letterapp._storage.file_lock import LockedFile
from letterapp._storage.spool import Spool
from letterapp._storage.spool_slot import SpoolSlot

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]

DEFAULTS: dict[str, Any] = {"max_queue_bytes": 4_194_304, "max_queue_events": 10_000, "max_batch_bytes": 500_000}


def test_two_clients_of_one_process_may_share_a_directory(spool_dir: SpoolDir) -> None:
    one, other = spool_dir.spool(), spool_dir.spool()
    slots = [claimed(one), claimed(other)]
    for number, slot in enumerate(slots):
        fill(slot, b"%d" % number)
    assert slots[0].path != slots[1].path
    for _ in range(3):
        assert spool_dir.recover(one) == [] == spool_dir.recover(other)
        third = claimed(one)
        third.release()
    assert all(is_locked(slot.path) for slot in slots)
    slots[0].release()
    assert spool_dir.recover(other) == [[b"0"]] and is_locked(slots[1].path)


def test_threads_that_scan_at_once_never_get_the_same_file(spool_dir: SpoolDir) -> None:
    spools = [spool_dir.spool() for _ in range(4)]
    taken: list[bytes] = []
    for turn in range(30):
        for number in range(3):
            spool_dir.leave(b"%d.%d" % (turn, number))
        gate = threading.Barrier(len(spools))

        def scan(spool: Spool, gate: threading.Barrier) -> None:
            gate.wait(DEADLINE)
            for slot in spool.orphans():
                assert is_locked_by_us(slot)
                taken.extend(settle(slot))

        threads = [threading.Thread(target=scan, args=(spool, gate)) for spool in spools]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        # A thread skips a file that another one has open, though that one may leave it alone.
        taken.extend(event for events in spool_dir.recover(spool_dir.spool()) for event in events)
    assert sorted(taken) == sorted(b"%d.%d" % (turn, number) for turn in range(30) for number in range(3))


def is_locked_by_us(slot: SpoolSlot) -> bool:
    return slot.is_own() and slot._file._process.locks[slot._file._name] is slot._file


def test_a_file_that_is_replaced_between_stat_and_open_is_not_taken(spool_dir: SpoolDir, tmp_path: Path) -> None:
    path, other = spool_dir.leave(b"x"), spool_dir.leave(b"y", max_queue_events=21)
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
    again = claimed(spool_dir.spool())  # may get the same inode: nothing is left in the table of locks
    assert is_locked_by_us(again)


def test_a_file_that_is_removed_before_it_is_locked_is_not_taken(
    spool_dir: SpoolDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    path, spool = spool_dir.leave(b"x"), spool_dir.spool()
    lock = fcntl.lockf

    def remove_and_lock(*arguments: Any) -> None:
        os.unlink(path)
        lock(*arguments)

    monkeypatch.setattr(fcntl, "lockf", remove_and_lock)
    before = descriptors()
    assert spool_dir.recover(spool) == [] and spool_dir.reports == [] and descriptors() == before


def test_no_thread_can_open_a_file_before_its_last_descriptor_is_closed(
    spool_dir: SpoolDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = claimed(spool_dir.spool())
    fill(slot, b"x")
    close, other = os.close, spool_dir.spool()
    found_nothing: list[bool] = []

    def scan_before_and_after(descriptor: int) -> None:
        monkeypatch.setattr(os, "close", close)
        found_nothing.append(spool_dir.recover(other) == [])
        close(descriptor)
        found_nothing.append(spool_dir.recover(other) == [])

    monkeypatch.setattr(os, "close", scan_before_and_after)
    slot._file.close()
    assert found_nothing == [True, True] and spool_dir.recover(other) == [[b"x"]]


def test_our_own_file_that_is_moved_there_between_stat_and_open_keeps_its_lock(spool_dir: SpoolDir) -> None:
    slot = claimed(spool_dir.spool())
    path = spool_dir.leave(b"x", max_queue_events=21)
    status = os.lstat(path)
    os.rename(slot.path, path)
    before = descriptors()
    assert LockedFile.open(path, status) is None  # it was opened; closing it would release the lock
    assert is_locked(path)
    slot.release()
    assert descriptors() < before and not is_locked(path)


def test_of_two_processes_in_a_directory_only_the_killed_ones_file_is_recovered(
    spool_dir: SpoolDir, tmp_path: Path
) -> None:
    spool = spool_dir.spool(**DEFAULTS)
    with start(spools.waits_with_five_events, NOWHERE, tmp_path, spool_dir.path) as program:
        assert eventually(lambda: program.output, lambda output: "ready" in output)
        slot = claimed(spool)
        assert spool_dir.recover(spool) == [] and len(spool_dir.files()) == 2
        program.signal(signal.SIGSTOP)
        assert spool_dir.recover(spool) == []
        program.signal(signal.SIGKILL)
        program.finish()
    ((*events,),) = spool_dir.recover(spool)
    assert [b'"serial":%d,' % number in event for number, event in enumerate(events)] == [True] * 5
    assert spool_dir.files() == [os.path.basename(slot.path)]


# Forks.


@pytest.fixture(params=spool_forks.WAYS)
def run_forking(request: Any, spool_dir: SpoolDir, tmp_path: Path) -> Callable[[Callable[..., None]], None]:
    """Run a program that forks in each of the ways, and expect that it ends well and prints nothing."""

    def run_it(program: Callable[..., None]) -> None:
        finished = run(program, NOWHERE, tmp_path, spool_dir.path, request.param)
        assert (finished.code, finished.output) == (0, ""), finished

    return run_it


def test_a_child_has_its_own_file_and_the_parent_keeps_its_lock(
    run_forking: Callable[[Callable[..., None]], None],
) -> None:
    run_forking(spool_forks.child_has_a_file_of_its_own)


def test_a_child_that_deletes_inherited_slots_touches_no_file(
    run_forking: Callable[[Callable[..., None]], None],
) -> None:
    run_forking(spool_forks.child_drops_what_it_inherited)


def test_a_child_that_recovers_its_parents_file_keeps_the_lock(
    run_forking: Callable[[Callable[..., None]], None],
) -> None:
    # It inherited descriptors of that very file. If they were closed any later, the lock would be lost with them.
    run_forking(spool_forks.child_recovers_its_parents_file)


@pytest.mark.slow
def test_300_forks_leak_no_descriptor_and_no_file(
    run_forking: Callable[[Callable[..., None]], None],
) -> None:
    run_forking(spool_forks.many_forks)


def test_generations_leak_no_descriptor(
    run_forking: Callable[[Callable[..., None]], None],
) -> None:
    run_forking(spool_forks.generations)


def test_a_process_that_closes_all_descriptors_loses_only_its_own_file(
    run_forking: Callable[[Callable[..., None]], None],
) -> None:
    run_forking(spool_forks.closes_all_descriptors)


def test_a_removed_file_is_no_longer_ours(spool_dir: SpoolDir) -> None:
    slot = claimed(spool_dir.spool())
    assert slot.is_own()
    os.unlink(slot.path)
    Path(slot.path).write_text("another")
    assert not slot.is_own()
    slot.release()
    assert Path(slot.path).read_text() == "another"


def test_a_slot_may_be_released_twice_and_is_released_when_garbage_collected(spool_dir: SpoolDir) -> None:
    before = descriptors()
    spool = spool_dir.spool()
    slot = claimed(spool)
    fill(slot, b"x")
    slot.release()
    (again,) = spool.orphans()
    slot.release()
    del slot
    assert is_locked_by_us(again) and is_locked(again.path)
    del again
    assert descriptors() == before and spool_dir.recover(spool) == [[b"x"]]
