"""Programs that fork while they have files of a spool: with `os.fork`, or without Python's fork hooks."""

from __future__ import annotations

import ctypes
import gc
import os
import socket
from typing import Callable

from letterapp import Letter
from letterapp._storage.ring import Ring
from letterapp._storage.spool import Spool
from letterapp._storage.spool_slot import SpoolSlot
from programs import common
from programs.common import main
from programs.spools import SMALL, lock_is_taken

WAYS = ["os.fork", "without Python's hooks"]  # of forking; the second is that of C code, like uWSGI's
fork: Callable[[], int]


def fork_by(way: str) -> None:
    global fork
    fork = os.fork if way == "os.fork" else ctypes.PyDLL(None).fork


def spool_in(directory: str) -> Spool:
    return Spool(Letter("k", enabled=False, spool=directory, **SMALL)._settings, print)


def claimed(spool: Spool) -> SpoolSlot:
    slot = spool.claim()
    assert slot is not None
    return slot


def child(job: Callable[[], object]) -> int:
    return common.child(job, fork)


def wait(pid: int) -> int:
    code = os.waitpid(pid, 0)[1] >> 8
    assert code != 99
    return code


def is_locked(path: str) -> bool:
    return wait(child(lambda: lock_is_taken(path))) == 1


def descriptors() -> int:
    return len(os.listdir("/dev/fd"))


def child_has_a_file_of_its_own(directory: str, way: str) -> None:
    fork_by(way)
    parents = spool_in(directory)
    slot = claimed(parents)
    ring = Ring(slot)
    assert ring.append(b"parent's")

    def work() -> None:
        mine = parents.for_child()
        assert not slot.is_own()
        assert list(mine.orphans()) == []
        own = claimed(mine)
        assert own.path != slot.path and os.path.exists(slot.path)
        assert Ring(own).append(b"child's")
        assert is_locked(own.path) and is_locked(slot.path)

    for _turn in range(3):
        assert wait(child(work)) == 0
        assert slot.is_own() and is_locked(slot.path)
        (left,) = parents.orphans()
        assert Ring.recovered_from(left)[0].clear() == [b"child's"]
        left.release()
    assert ring.append(b"more") and ring.clear() == [b"parent's", b"more"]
    path = slot.path
    slot.release()
    assert not os.path.exists(path)


def child_drops_what_it_inherited(directory: str, way: str) -> None:
    fork_by(way)
    parents = spool_in(directory)
    slots = [claimed(parents), claimed(parents)]
    Ring(slots[0]).append(b"x")
    paths = [slot.path for slot in slots]

    def forget() -> None:
        slots[1].release()
        del slots[:]
        gc.collect()
        assert all(map(os.path.exists, paths)) and all(map(is_locked, paths))

    assert wait(child(forget)) == 0
    assert all(map(os.path.exists, paths)) and all(map(is_locked, paths))


def child_recovers_its_parents_file(directory: str, way: str) -> None:
    fork_by(way)
    parents, others = spool_in(directory), spool_in(directory)
    there, back = os.pipe(), os.pipe()

    def parent() -> int:
        slots = [claimed(parents), claimed(others)]
        for slot in slots:
            Ring(slot).append(b"parent's")

        def orphan() -> None:
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


def many_forks(directory: str, way: str) -> None:
    fork_by(way)
    parents = spool_in(directory)
    slot = claimed(parents)
    count = descriptors()

    def work() -> int:
        _own = claimed(parents.for_child())
        return descriptors() - count  # as many of its own as it closed of the parent's

    for _turn in range(300):
        assert wait(child(work)) == 0
        assert descriptors() == count
    assert len(os.listdir(directory)) <= 2
    assert slot.is_own()


def generations(directory: str, way: str) -> None:
    fork_by(way)

    def live(generation: int, parents: Spool, kept: list[SpoolSlot]) -> None:
        slot = kept[0] = claimed(parents.for_child())
        Ring(slot).append(b"%d" % generation)
        mine = descriptors()
        assert mine == count, (mine, count, generation)
        assert generation == 20 or wait(child(lambda: live(generation + 1, parents, [slot]))) == 0
        assert is_locked(slot.path)

    spool = spool_in(directory)
    kept = [claimed(spool)]
    count = descriptors()
    live(1, spool, kept)
    del kept
    gc.collect()
    assert len(list(spool.orphans())) == 20


def closes_all_descriptors(directory: str, way: str) -> None:
    fork_by(way)
    spool = spool_in(directory)
    slot = claimed(spool)
    Ring(slot).append(b"x")
    assert slot.is_own()
    os.closerange(3, 100)
    pairs = [socket.socketpair() for _ in range(20)]  # which get the same numbers
    assert not slot.is_own()
    slot.release()
    path = slot.path
    del slot
    for one, other in pairs:
        one.send(b"."), other.recv(1)
    assert os.path.exists(path)
    (left,) = spool.orphans()
    assert left.path == path and is_locked(path)


main(globals())
