"""Programs of test_file_lock: threads and processes that want the lock of one byte."""

from __future__ import annotations

import ctypes
import fcntl
import gc
import os
import signal
import threading
from typing import Any, Callable

from letterapp._storage.file_lock import Lock
from letterapp._storage.memory import LockFile
from programs.common import child, main
from programs.family import Gate, die, reap

FORKS: dict[str, Callable[[], int]] = {
    "os.fork": os.fork,
    "without Python's hooks": lambda: int(ctypes.PyDLL(None).fork()),
}


class File:
    """A file of the program's own, whose bytes are locked."""

    def __init__(self) -> None:
        self.file = LockFile()

    def take(self, at: int = 7) -> Lock | None:
        return Lock.take((self.file, at), self.file.descriptor, at)

    def others_can_take(self, at: int = 7) -> bool:
        code = reap(child(lambda: self.take(at) is not None))
        assert code in (0, 1), code
        return code == 1


def eight_threads() -> None:
    file = File()
    all_there = threading.Barrier(8)
    got = []

    def ask() -> None:
        for turn in range(100):
            all_there.wait(40)
            got.append((turn, file.take(turn)))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(turn for turn, lock in got if lock is not None) == list(range(100))


def eight_processes() -> None:
    file = File()
    begin, asked, end = Gate(), Gate(), Gate()

    def ask() -> bool:
        begin.wait()
        lock = file.take()
        asked.open()
        end.wait()
        return lock is not None

    children = [child(ask) for _ in range(8)]
    begin.open(8)
    asked.wait(8)
    assert file.take() is None
    end.open(8)
    assert sorted(reap(pid) for pid in children) == [0] * 7 + [1]
    assert file.take() is not None


def until_it_is_released() -> None:
    file = File()
    lock = file.take()
    assert lock is not None
    assert file.take() is None and not file.others_can_take()
    assert file.take(8) is not None
    lock.release()
    assert file.others_can_take()
    again = file.take()
    lock.release()  # a second time: it is not its own any more
    assert again is not None and file.take() is None and not file.others_can_take()


def until_it_is_deleted() -> None:
    file = File()
    lock = file.take()
    assert lock is not None and not file.others_can_take()
    del lock
    gc.collect()
    assert file.others_can_take() and file.take() is not None


def until_its_process_ends() -> None:
    file = File()
    taken, end = Gate(), Gate()

    def own() -> None:
        lock = file.take()
        assert lock is not None
        taken.open()
        end.wait()
        die()

    pid = child(own)
    taken.wait()
    assert file.take() is None and file.take() is None
    end.open()
    assert reap(pid) == -signal.SIGKILL
    assert file.take() is not None


def copy_in_a_child(by: str) -> None:
    file, fork = File(), FORKS[by]
    held: dict[str, Any] = {"parent": file.take()}

    def forget() -> bool:
        assert file.take() is None
        held.pop("parent").release()
        gc.collect()
        return file.take() is not None

    assert reap(child(forget, fork)) == 0
    assert file.take() is None and not file.others_can_take()

    ended, tried = Gate(), Gate()

    def parent() -> None:
        held["parent"] = file.take(9)

        def orphan() -> None:
            ended.wait()
            held["own"] = file.take(9)
            assert held["own"] is not None
            held.pop("parent").release()  # the same byte of the same file, and another process's
            gc.collect()
            tried.open()
            ended.wait()

        child(orphan, fork)

    assert reap(child(parent, fork)) == 0
    ended.open()
    tried.wait()
    assert file.take(9) is None
    ended.open()


def closed_descriptor() -> None:
    file = File()
    descriptor = file.file.descriptor
    spare = os.dup(descriptor)
    os.close(descriptor)
    assert not file.file.is_open() and file.take() is None
    os.dup2(spare, descriptor)
    assert file.file.is_open()
    lock = file.take()
    assert lock is not None
    os.close(descriptor)
    lock.release()


def interrupted(when: str) -> None:
    file = File()
    module: Any = fcntl
    lockf = module.lockf

    def interrupted_lockf(descriptor: int, how: int, *where: int) -> None:
        if when == "after" or how == fcntl.LOCK_UN:
            lockf(descriptor, how, *where)
        if how != fcntl.LOCK_UN:
            raise KeyboardInterrupt

    module.lockf = interrupted_lockf
    try:
        file.take()
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError("not interrupted")
    module.lockf = lockf
    gc.collect()
    assert file.others_can_take()
    assert file.take()


main(globals())
