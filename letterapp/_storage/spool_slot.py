"""One file of a spool, with the queue of one process in it.

Responsible for: `SpoolSlot`, and where in a file the words of its ring lie. Not responsible for: creating, finding and
trusting files, and the header (`spool`), what is in the ring (`ring`).
"""

from __future__ import annotations

import os

from .ring import UNIT, WORDS, holds_events

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .file_lock import LockedFile
    from .spool import Spool

    Rooms = tuple[int, int]  # bytes of the ring and of the in-flight area

HEADER = 4096  # bytes before the ring
WORDS_AT = 128  # where the words of the ring begin
CORRUPT_AT = WORDS_AT + WORDS * UNIT  # one byte: 1 when a process found something that it could not read


class SpoolSlot:
    """A file with a ring in it: a `ring.Slot`."""

    kind = "spool"
    is_durable = True
    checked = True

    def __init__(self, spool: Spool, path: str, file: LockedFile, of_rooms: Rooms) -> None:
        self._spool = spool
        self._file = file
        self.path = path
        self.rooms = of_rooms
        self.room, self.hand = of_rooms
        self.base = HEADER
        self.memory = file.map(HEADER + self.room + self.hand)
        self.words = file.words(WORDS_AT, WORDS)

    def is_own(self) -> bool:
        """False if other code has closed, removed or truncated the file: access to a missing page is a SIGBUS."""
        status = self._file.status()
        return status is not None and status.st_nlink > 0 and status.st_size >= len(self.memory)

    def must_have_room(self) -> None:
        """Raise the `OSError` of a full copy-on-write file system: a store to the mapping would be a SIGBUS there."""
        os.pwrite(self._file.descriptor(), self.memory[:1], 0)

    def has_successor(self) -> bool:
        return True

    def mark_exiting(self, leaves: bool) -> None:
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
