"""Programs of test_memory_costs: what clients, forks and bursts leave behind in a process, and in the shared memory."""

from __future__ import annotations

import _thread
import ctypes
import gc
import mmap
import os
import signal
import time
from typing import Any

from letterapp import Letter
from letterapp._runtime import atfork
from programs.common import API, child, main, work
from programs.common import make as make_client
from programs.family import LATER, die, make, reap
from programs.footprint import descriptors, kilobytes, lock_files, mappings, slot


def many_clients() -> None:
    letters = [make() for _ in range(200)]
    assert len(lock_files()) == 1
    assert kilobytes("RssShmem") <= 200 * 8, kilobytes("RssShmem")  # the page of the words, of each
    for number, letter in enumerate(letters):
        work(letter, 1, f"parent {number}")

    def uses_them_all() -> None:
        for number, letter in enumerate(letters):
            work(letter, 1, f"child {number}")
        assert {slot(letter) for letter in letters} == {1}
        assert len(lock_files()) == 1
        for letter in letters:
            letter.close(40)

    assert reap(child(uses_them_all)) == 0

    def is_killed() -> None:
        for number, letter in enumerate(letters):
            work(letter, 1, f"killed {number}")
        die()

    assert reap(child(is_killed)) == -signal.SIGKILL
    for letter in letters:
        letter.close(40)
    assert {letter.stats()["adopted"] for letter in letters} == {1}


def thrown_away() -> None:
    def use(times: int) -> None:
        for number in range(times):
            letter = Letter("k", API, **LATER)
            if number % 100 == 0:
                work(letter, 1, f"client {number}")
                letter.close()

    def held() -> tuple[int, int, int, int]:
        while _thread._count():  # of a thread that has left the last instructions may be to come
            time.sleep(0.01)
        gc.collect()
        return len(descriptors()), len(atfork.this_process().locks), mappings(), kilobytes("VmRSS")

    use(101)
    before = held()
    use(2000)
    after = held()
    assert after[:2] == before[:2], (before, after)
    assert after[2] <= before[2] + 20 and after[3] <= before[3] + 4096, (before, after)


def many_forks() -> None:
    letter = make()
    work(letter, 1, "parent")
    assert letter.flush()

    def held() -> tuple[list[str], int, object]:
        gc.collect()
        process = atfork.this_process()
        return sorted(what.split(":")[0] for what in descriptors().values()), len(process.locks), process.children

    def uses(number: int) -> int | None:
        work(letter, 1, f"child {number}")
        if number % 40:
            letter.close()
            return slot(letter)
        die()
        return None

    before, lines = held(), mappings()
    slots = set()
    for number in range(0, 2_000, 20):
        slots.add(reap(child(lambda n=number: uses(n))))  # type: ignore[misc]
        if number % 40 == 0:
            assert letter.flush()
        children = []
        for _ in range(19):
            pid = os.fork()
            if not pid:
                os._exit(0)
            children.append(pid)
        assert {reap(pid) for pid in children} == {0}
    assert slots == {1, -signal.SIGKILL}, slots
    assert held() == before and mappings() <= lines + 10
    assert letter.stats()["adopted"] == 50


class Bursts:
    """A client that is given many events at once, and the shared memory that it uses."""

    def __init__(self) -> None:
        self.letter = make_client(max_queue_events=20_000, exit_timeout=40)
        letter: Any = self.letter
        self._shared = letter._delivery._recovery._backends._backends[0].memory

    def __call__(self, count: int = 10_000, size: int = 20) -> None:
        for _ in range(count):
            self.letter.track("program", "Worked", {"text": "x" * size})

    def held(self) -> int:
        """KiB of the shared memory that are in use, whoever of the family wrote there."""
        pages = (ctypes.c_ubyte * (len(self._shared) // mmap.PAGESIZE))()
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._shared))
        assert ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(self._shared)), pages) == 0
        return sum(page & 1 for page in pages) * mmap.PAGESIZE >> 10


def idle_after_a_backlog() -> None:
    burst = Bursts()
    letter = burst.letter
    burst(10)
    assert letter.flush()
    assert burst.held() <= 40, burst.held()
    burst()
    assert letter.flush(40)
    assert burst.held() <= 160, burst.held()

    def one_more() -> None:
        burst()
        letter.close(40)

    for pid in [child(one_more) for _ in range(4)]:
        assert reap(pid) == 0
    assert burst.held() <= 5 * 160, burst.held()


def large_events() -> None:
    burst = Bursts()
    burst()
    burst.letter.flush(40)
    burst(900, 4000)
    assert burst.letter.flush(40)
    assert burst.held() <= 2 * 160, burst.held()


def killed_process() -> None:
    burst = Bursts()

    def is_killed() -> None:
        burst()
        die()

    assert reap(child(is_killed)) == -signal.SIGKILL
    assert burst.letter.flush(40)
    assert burst.held() <= 2 * 160, burst.held()


def killed_before_its_thread_left() -> None:
    burst = Bursts()
    letter: Any = burst.letter

    def settles_and_dies() -> None:
        burst()
        worker = letter._delivery._worker
        worker.stop_when_idle = worker.await_stop = lambda *_: None  # the thread stays, and the call does not wait
        assert letter.flush(40)
        die()

    def uses() -> None:
        burst(1)
        letter.close(40)

    assert reap(child(settles_and_dies)) == -signal.SIGKILL
    assert burst.held() > 4 * 160, burst.held()
    assert reap(child(uses)) == 0
    assert burst.held() <= 2 * 160, burst.held()


main(globals())
