"""One file of a spool, which contains the queue of one process.

Responsible for: `SpoolSlot`, the position of the ring and its words in a file. Not responsible for: creating, finding
and trusting files, their header (`spool`), the contents of the ring (`ring`).
"""

from __future__ import annotations

import os

from .ring import UNIT, WORDS, holds_events

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .file_lock import LockedFile
    from .spool import Spool

    Sizes = tuple[int, int]  # bytes of the ring and of the in-flight area

HEADER = 4096  # bytes before the ring
WORDS_AT = 128  # offset of the words of the ring
CORRUPT_AT = WORDS_AT + WORDS * UNIT  # offset of a byte that is 1 after a process found a corrupt record


class SpoolSlot:
    """A file that contains a ring; implements `ring.Slot`."""

    kind = "spool"
    is_durable = True
    checked = True

    def __init__(self, spool: Spool, path: str, file: LockedFile, sizes: Sizes) -> None:
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
