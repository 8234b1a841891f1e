"""A directory with a spool's files, which a test makes, spoils and takes over itself.

Lives here: `Bench`, which the fixture `bench` of conftest.py hands out, and what tests do with a slot. Never here: what
is right.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
from pathlib import Path
from typing import Any, Callable

from harness import DEADLINE

from letterapp import Letter, LetterError
from letterapp._storage.ring import Ring
from letterapp._storage.spool import Spool, SpoolSlot

NOWHERE = "http://127.0.0.1:9"
SMALL = {"max_queue_bytes": 4000, "max_queue_events": 20, "max_batch_bytes": 2000}  # files of some 11 KB


class Bench:
    """Spools of one directory, and what they reported."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.reports: list[LetterError] = []

    def spool(self, key: str = "k", **options: Any) -> Spool:
        settings = Letter(key, enabled=False, spool=self.directory, **{**SMALL, **options})._settings
        return Spool(settings, self.reports.append)

    def files(self) -> list[str]:
        return sorted(os.listdir(self.directory))

    def left(self, *events: bytes, **options: Any) -> str:
        """The path of a file that a process with these events has left."""
        slot = claimed(self.spool(**options))
        fill(slot, *events)
        path = slot.path
        slot.release()
        return path

    def adopt(self, spool: Spool) -> list[list[bytes]]:
        """The events of each file that can be taken over now, which are then settled."""
        events = [settle(slot) for slot in spool.orphans()]
        self.reports += spool.losses()
        return events

    def said(self, text: str) -> bool:
        return [text in str(report) for report in self.reports] == [True]


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
    """The exit code of a forked child that does ``job``: 0 or 1 for what it returned, 99 for an exception."""
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


def is_locked(path: str) -> bool:
    """True when another process could not lock the file."""

    import fcntl  # not on Windows, where these tests are skipped

    def try_it() -> bool:
        with open(path, "r+b") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
            except BlockingIOError:
                return True
        return False

    code = in_child(try_it)
    assert code in (0, 1), code
    return code == 1


def descriptors() -> int:
    """How many files are open. No connections: those of the test before may still be closing."""
    found = 0
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):  # that of the directory itself
            found += stat.S_ISREG(os.fstat(int(name)).st_mode)
    return found
