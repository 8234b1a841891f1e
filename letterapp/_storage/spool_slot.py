"""One file of a spool, which contains the queue of one process.

Responsible for: `SpoolSlot`, the position of the ring and its words in a file. Not responsible for: creating and
finding files (`spool`), their header, which files are trusted (`spool_header`), the contents of the ring (`ring`).
"""

from __future__ import annotations

import os

from .ring import WORDS, holds_events
from .spool_header import CORRUPT_AT, HEADER, WORDS_AT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from .file_lock import LockedFile
    from .spool_header import Sizes

    class Owner(Protocol):
        """The spool that a file belongs to."""

        def sync(self, file: LockedFile) -> None:
            """Write the file to the disk, if the spool is set to do that."""

        def discard(self, path: str, file: LockedFile, corrupt: bool) -> None:
            """Remove an empty file, or set it aside, before it is closed."""


class SpoolSlot:
    """A file that contains a ring; implements `ring.Slot`."""

    kind = "spool"
    is_durable = True
    checked = True

    def __init__(self, spool: Owner, path: str, file: LockedFile, sizes: Sizes) -> None:
        self._spool = spool
        self._file = file
        self.path = path
        self.sizes = sizes
        self.capacity, self.in_flight_size = sizes
        self.base = HEADER
        self.memory = file.map(HEADER + self.capacity + self.in_flight_size)
        self.words = file.words(WORDS_AT, WORDS)

    def is_own(self) -> bool:
        """False if other code has closed, removed or truncated the file. Accessing a missing page raises SIGBUS."""
        status = self._file.status()
        return status is not None and status.st_nlink > 0 and status.st_size >= len(self.memory)

    def check_space(self) -> None:
        """Raise `OSError` if a copy-on-write file system is full: writing to the mapping would raise SIGBUS then."""
        os.pwrite(self._file.descriptor(), self.memory[:1], 0)

    def has_successor(self) -> bool:
        return True

    def mark_exiting(self, exiting: bool) -> None:
        pass  # the next start recovers the file in any case

    def mark_corrupt(self) -> None:
        self.memory[CORRUPT_AT] = 1

    def trim(self, start: int, end: int) -> None:
        pass  # if the disk were full when a hole is filled again, the process would be killed

    def sync(self) -> None:
        self._spool.sync(self._file)

    def release(self) -> None:
        status = self._file.status()
        if status is not None and status.st_size >= len(self.memory) and self.is_empty():
            self._spool.discard(self.path, self._file, self.is_corrupt())
        self._file.close()

    def is_corrupt(self) -> bool:
        return bool(self.memory[CORRUPT_AT])

    def is_empty(self) -> bool:
        return not holds_events(self.words)

    def __del__(self) -> None:
        try:
            self.release()
        except (AttributeError, TypeError):
            pass  # the constructor failed, or the interpreter is shutting down; the lock ends with the process
