"""A spool directory whose files a test creates, damages and recovers itself.

Responsible for: `SpoolDir`, which the fixture `spool_dir` of conftest.py hands out, and helpers for a single slot.
Not responsible for: what is right.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import tempfile
from pathlib import Path
from typing import Any, Callable

from harness import DEADLINE
from programs.spools import SMALL, lock_is_taken

from letterapp import Letter, LetterError
from letterapp._storage.ring import Ring
from letterapp._storage.spool import Spool
from letterapp._storage.spool_slot import SpoolSlot

NOWHERE = "http://127.0.0.1:9"
# So many, for a queue as `SMALL`, that no other process would append to the file.
MANY = [b'{"messageId":"%d","rest":"%s"}' % (number, b"x" * 50) for number in range(1, 12)]
NOBODY = 65534


class SpoolDir:
    """One directory, its spools, and what they reported."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reports: list[LetterError] = []

    def spool(self, key: str = "k", **options: Any) -> Spool:
        settings = Letter(key, enabled=False, spool=self.path, **{**SMALL, **options})._settings
        return Spool(settings, self.reports.append)

    def files(self) -> list[str]:
        return sorted(os.listdir(self.path))

    def leave(self, *events: bytes, **options: Any) -> str:
        """Create a file with these events, as an ended process leaves it. Returns its path."""
        slot = claimed(self.spool(**options))
        fill(slot, *events)
        path = slot.path
        slot.release()
        return path

    def recover(self, spool: Spool) -> list[list[bytes]]:
        """The events of each file that can be recovered now, which are then settled."""
        events = [settle(slot) for slot in spool.orphans()]
        self.reports += spool.losses()
        return events

    def reported_once(self, text: str) -> bool:
        """True if there is exactly one report, and it contains ``text``."""
        return [text in str(report) for report in self.reports] == [True]

    def room_for_two(self) -> dict[str, Any]:
        """The option that bounds a spool to two files."""
        slot = claimed(self.spool())
        size = len(slot.memory)
        slot.release()
        return {"spool_max_bytes": 2 * size + 100}


def claimed(spool: Spool) -> SpoolSlot:
    slot = spool.claim()
    assert slot is not None
    return slot


def fill(slot: SpoolSlot, *events: bytes) -> Ring:
    ring = Ring(slot)
    assert all([ring.append(event) for event in events])
    return ring


def settle(slot: SpoolSlot) -> list[bytes]:
    ring, wrong = Ring.recovered_from(slot)
    if wrong:
        slot.mark_corrupt()
    events = ring.clear()
    slot.release()
    return events


def change(path: str, at: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


def in_child(job: Callable[[], object]) -> int:
    """The exit status of a forked child that runs ``job``: 0 or 1 for what it returned, 99 for an exception."""
    pid = os.fork()
    if not pid:
        code = 99
        try:
            signal.alarm(int(DEADLINE))
            code = int(bool(job()))
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)


def as_another_user(job: Callable[[str], object]) -> None:
    """Run ``job`` with a temporary directory, as a user whom file modes restrict: root becomes another one."""
    with tempfile.TemporaryDirectory() as home:
        is_root = os.geteuid() == 0
        if is_root:
            os.chown(home, NOBODY, NOBODY)

        def child() -> bool:
            if is_root:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            job(home)
            return False

        assert in_child(child) == 0


def is_locked(path: str) -> bool:
    """True when another process could not lock the file."""
    code = in_child(lambda: lock_is_taken(path))
    assert code in (0, 1), code
    return code == 1


def descriptors() -> int:
    """How many files are open. Connections do not count: those of the test before may still be closing."""
    found = 0
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):  # that of the directory itself
            found += stat.S_ISREG(os.fstat(int(name)).st_mode)
    return found
