"""Programs of test_memory: memory limits of a process, and clients that should use little or no memory."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import resource
import signal
import sys

from letterapp import Letter, LetterError
from letterapp._storage.memory import PrivateMemory
from programs.common import child, main, work
from programs.family import die, make, reap
from programs.footprint import kilobytes, kind, lock_files, mappings


def limit_address_space(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))


def near_limit() -> None:
    limit_address_space((kilobytes("VmSize") << 10) + (200 << 20))
    reported: list[LetterError] = []
    letter, other = [make(on_error=reported.append) for _ in range(2)]
    assert kind(letter) == kind(other) == "private"
    for error in reported:
        assert (error.cause, error.lost, error.events) == ("degraded", 0, [])
        assert "private memory (Cannot allocate memory)" in str(error)
    assert len(reported) == 2  # one a client
    work(letter, 500, "parent")

    def ends() -> None:
        work(letter, 100, "child")
        letter.close()
        assert len(reported) == 2

    assert reap(child(ends)) == 0
    work(other, 100, "other")
    limit_address_space(resource.RLIM_INFINITY)
    assert kind(make()) == "shared"


def lost_for_good() -> None:
    reports, report = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 600) for end in os.pipe()]
    letter = make(on_error=lambda error: os.write(report, f"{error.cause}: {error}\n".encode()))
    limit_address_space((kilobytes("VmSize") << 10) + (200 << 20))

    def daemon() -> None:
        os.closerange(3, 500)
        work(letter, 1, "child")
        assert kind(letter) == "private"
        letter.close()

    assert kind(letter) == "shared"
    assert [reap(child(daemon)) for _ in range(3)] == [0, 0, 0]
    (said,) = os.read(reports, 10_000).decode().splitlines()
    assert said.startswith("degraded: events are kept in private memory (other code closed"), said


def smaller_queue() -> None:
    lost: list[LetterError] = []
    letter = make(on_error=lost.append)

    def first_use() -> None:
        os.closerange(3, 500)
        limit_address_space((kilobytes("VmSize") << 10) + (3 << 20))
        work(letter, 10, "child")
        kept, other = kind(letter), make(on_error=lost.append)
        limit_address_space(resource.RLIM_INFINITY)
        assert kept == kind(other) == "private"
        work(other, 10, "other")
        letter.track("child", "Worked", {"large": "x" * 400_000})
        assert letter.flush(40) and other.flush(40)
        assert [error.cause for error in lost if error.lost] in ([], ["overflow"])
        assert letter.stats()["delivered"] + letter.stats()["lost"].get("overflow", 0) == 11

    assert reap(child(first_use)) == 0


def switched_off() -> None:
    before = mappings()
    letters = [Letter(enabled=False) for _ in range(20)]
    assert {kind(letter) for letter in letters} == {"private"}
    assert lock_files() == [] and mappings() < before + 20


def switched_off_often() -> None:
    Letter(enabled=False)  # loads what a client needs
    before, handler = kilobytes("VmRSS"), signal.getsignal(signal.SIGTERM)
    letters = [
        Letter(enabled=False, exit_signals=(signal.SIGTERM,), spool="none", base_url="https://localhost")
        for _ in range(200)
    ]
    assert kilobytes("VmRSS") - before < 200 * 20, kilobytes("VmRSS") - before
    assert signal.getsignal(signal.SIGTERM) is handler and not os.path.exists("none")

    def child_of_it() -> None:
        letters[0].track("u", "e")
        assert letters[0].stats()["pid"] == os.getpid() and letters[0].close()

    assert reap(child(child_of_it)) == 0
    letters[0].track("u", "e")
    stats = letters[0].stats()
    assert stats.pop("lost") == {} and stats.pop("pid") == os.getpid() and stats.pop("memory") == "private", stats
    assert stats.pop("mode") == "thread" and set(stats.values()) == {0}, stats
    assert {*stats, "lost", "pid", "memory", "mode"} == set(make().stats())


def private_pages() -> None:
    settings = make()._settings
    before = kilobytes("VmRSS")
    slots = [PrivateMemory(settings).claim() for _ in range(20)]
    assert kilobytes("VmRSS") - before < 20 * 100, kilobytes("VmRSS") - before
    slots[0].memory[slots[0].base] = 1

    def writes() -> None:
        slots[0].memory[slots[0].base] = 2

    assert reap(child(writes)) == 0
    assert slots[0].memory[slots[0].base] == 1 and bytes(slots[0].memory[-8:]) == bytes(8)


def locked_memory(flags: str, keeps: str) -> None:
    if ctypes.CDLL(None).mlockall(int(flags)):
        sys.exit(0)  # this user may not
    letter = make()
    assert kind(letter) == "shared"
    work(letter, 1000, "parent")
    assert kilobytes("RssShmem") < 4096, kilobytes("RssShmem")
    before = kilobytes("RssShmem")
    other = mmap.mmap(-1, 8 << 20)
    grown = kilobytes("RssShmem") - before
    assert abs(grown - int(keeps)) < 1024, "what the program asked for is as before"

    def is_killed() -> None:
        work(letter, 10, "killed")
        die()

    assert reap(child(is_killed)) == -signal.SIGKILL
    assert letter.flush(40)
    assert letter.stats()["adopted"] == 10
    other.close()


main(globals())
