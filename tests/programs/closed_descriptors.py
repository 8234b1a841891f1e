"""Programs of test_closed_descriptors: other code closes the descriptor whose locks show which processes are alive."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import tempfile
import time
from typing import Any, Callable

from letterapp._storage import memory
from programs.common import child, main, make, work
from programs.family import Gate, die, reap
from programs.family import make as make_idle
from programs.footprint import descriptors, kind, slot


def close_all() -> None:
    os.closerange(3, 256)


def let_others_have_them() -> str:
    """Close all that is open, and let a file have each of the numbers."""
    close_all()
    path = os.path.abspath(f"stranger {os.getpid()}")
    opened = [os.open(path, os.O_RDWR | os.O_CREAT) for _ in range(60)]
    assert opened[0] == 3 and opened[-1] == 62
    os.write(3, b"text")
    return path


def is_untouched(path: str) -> bool:
    def look() -> None:
        with open(path, "r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # all of it, to the largest number there is
            assert file.read() == b"text"

    return reap(child(look)) == 0


ACTS: dict[str, Callable[[], str | None]] = {"closes": close_all, "closes and opens": let_others_have_them}


def before_first_use(act: str) -> None:
    letter, other = make_idle(), make_idle()
    work(letter, 20, "parent")

    def daemon() -> None:
        path = ACTS[act]()
        work(letter, 20, "daemon")
        work(other, 20, "other")
        assert kind(letter) == kind(other) == "shared"

        def killed() -> None:
            work(letter, 20, "killed")
            work(other, 20, "other killed")
            die()

        assert reap(child(killed)) == -signal.SIGKILL
        letter.close()
        other.close()
        assert letter.stats()["adopted"] == 20 and other.stats()["adopted"] == 20, letter.stats()
        assert path is None or is_untouched(path)

    assert reap(child(daemon)) == 0
    assert letter.stats()["adopted"] == 0

    pid = os.fork()
    if not pid:
        work(letter, 20, "sibling")
        assert slot(letter) == 1
    else:
        assert reap(pid) == 0


def in_the_middle_of_use(act: str) -> None:
    letter: Any = make_idle()
    busy = make_idle()
    work(letter, 20)
    letter.flush()
    letter._delivery._batches._transport.close()  # not this test's concern: it would be closed by its number
    work(busy, 20, "busy")
    path = ACTS[act]()
    assert letter.flush()
    work(letter, 20, start=20)
    work(busy, 20, "busy", start=20)

    def killed() -> None:
        work(letter, 20, "killed")
        die()

    assert reap(child(killed)) == -signal.SIGKILL
    assert letter.flush() and busy.flush()
    assert letter.stats()["adopted"] == 20 and letter.stats()["accepted"] == letter.stats()["delivered"] == 60
    assert busy.stats()["accepted"] == busy.stats()["delivered"] == 40
    letter.close()
    busy.close()
    assert path is None or is_untouched(path)


def lose_the_lock() -> None:
    assert memory._file is not None
    os.close(memory._file.descriptor)


def slot_is_taken() -> None:
    letter = make_idle(max_retries=0)
    lost, adopted, taken, looked = Gate(), Gate(), Gate(), Gate()

    def sibling() -> None:
        lost.wait()
        work(letter, 3, "sibling")
        assert letter.flush() and letter.stats()["adopted"] == 20
        adopted.open()

        def claims() -> None:
            work(letter, 40, "somebody with a longer name than the one before")
            assert slot(letter) == 0
            taken.open()
            looked.wait()
            die()

        assert reap(child(claims)) == -signal.SIGKILL
        letter.close()
        assert letter.stats()["adopted"] == 60 and letter.stats()["lost"] == {}, letter.stats()

    pid = child(sibling)
    work(letter, 20, "parent")
    lose_the_lock()
    lost.open()
    taken.wait()
    work(letter, 5, "parent", start=20)
    assert letter.flush()
    work(letter, 5, "parent", start=25)
    stats = letter.stats()
    assert stats["accepted"] == 10 and stats["lost"] == {}, stats  # 20 are the sibling's
    looked.open()
    assert reap(pid) == 0


def flush_after_loss() -> None:
    from letterapp._delivery import worker

    worker.IDLE = 3600.0  # a thread that stops wakes who waits, too
    letter = make_idle()
    lost, adopted = Gate(), Gate()

    def sibling() -> None:
        lost.wait()
        work(letter, 1, "sibling")
        assert letter.flush() and letter.stats()["adopted"] == 20
        adopted.open()

    pid = child(sibling)
    work(letter, 20, "parent")
    lose_the_lock()
    lost.open()
    adopted.wait()
    began = time.monotonic()
    assert letter.flush(30)
    assert time.monotonic() - began < 20  # woken, and not by its own timeout
    assert reap(pid) == 0


def lost_slot(act: str) -> None:
    letter: Any = make_idle(max_queue_events=60, overflow="drop_oldest")
    ready, lost, taken, acted = Gate(), Gate(), Gate(), Gate()

    def drive() -> None:
        letter.stats()
        letter._delivery._queue.claim_worker().started = True  # no separate thread

    def empty() -> None:
        letter._delivery._queue.request_flush()
        while letter._delivery._batches.send_once() == 0:
            pass
        assert letter.stats()["delivered"] == 60

    def claims() -> None:
        drive()
        for serial in range(60):
            letter.track("next", "Worked", {"serial": serial, "text": "x" * 2000})
        assert slot(letter) == 0
        assert letter._delivery._queue.take(10, 10**6)  # as if it were on the wire
        taken.open()
        acted.wait()
        die()

    def sibling() -> None:
        assert letter.stats()["accepted"] == 0 and slot(letter) == 1
        ready.open()
        lost.wait()
        letter.flush()
        assert reap(child(claims)) == -signal.SIGKILL
        letter.close()
        assert letter.stats()["lost"] == {} and letter.stats()["delivered"] >= 60, letter.stats()

    pid = child(sibling)
    ready.wait()
    drive()
    work(letter, 60, "before")
    queue = letter._delivery._queue
    if act == "settles a batch":
        queue.take(10, 10**6)
    elif act == "gives memory back":
        empty()
    lose_the_lock()
    lost.open()
    taken.wait()
    acts: dict[str, Callable[[], object]] = {
        "settles a batch": queue.settle,
        "drops its oldest": lambda: work(letter, 1, "dropping"),
        "gives up all": lambda: queue.abandon("closed"),
        "gives memory back": queue.try_stop_worker,
    }
    acts[act]()
    queue.release_worker()
    acted.open()
    assert reap(pid) == 0


def same_inode() -> None:
    make()
    file = memory._file
    assert file is not None
    seen = os.fstat(file.descriptor)
    while True:
        with tempfile.TemporaryFile() as later:
            if os.fstat(later.fileno()).st_ctime_ns > seen.st_ctime_ns:
                break  # the clock of the disk has moved on
    os.close(file.descriptor)
    opened = []
    for _ in range(200):
        opened.append(tempfile.TemporaryFile())
        if os.fstat(opened[-1].fileno()).st_ino == seen.st_ino:
            os.dup2(opened[-1].fileno(), file.descriptor)
            break
    assert not file.is_open()


def no_standard_files(closed: str, *again: str) -> None:
    numbers = [int(number) for number in closed.split()]
    if not again:
        for number in numbers:
            os.close(number)
        program = ["-m", "programs.closed_descriptors", "no_standard_files", closed, "again"]
        os.execv(sys.executable, [sys.executable, *program])
    letter = make_idle()
    open_before = [number for number in numbers if number in descriptors()]
    assert memory._file is not None
    letter.track("program", "Worked", {"lock": memory._file.descriptor, "open": open_before})
    assert letter.stats()["memory"] == "shared"


main(globals())
