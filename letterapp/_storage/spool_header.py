"""The beginning of a spool file, and which files are trusted.

Responsible for: the format of the header, what it says, the checks of a file's owner and mode. Not responsible for:
opening files (`spool`, `spool_view`), the ring in them (`ring`).
"""

from __future__ import annotations

import os
import stat
from binascii import crc32
from struct import Struct

from .ring import UNIT, WORDS, are_valid_sizes, holds_events

TYPE_CHECKING = False
if TYPE_CHECKING:
    Sizes = tuple[int, int]  # bytes of the ring and of the in-flight area

HEADER = 4096  # bytes before the ring
WORDS_AT = 128  # offset of the words of the ring
CORRUPT_AT = WORDS_AT + WORDS * UNIT  # offset of a byte that is 1 after a process found a corrupt record
NAME_OF_KEY = 16  # characters of a key's fingerprint in the names of its files
MAGIC = b"LTRSPOOL"
VERSION = 1
# The first bytes of the file in every version, in native byte order, like the words of the ring. On a machine with the
# other byte order the checksum is wrong.
HEAD = Struct("=8sIIQQ32s")  # magic, version, HEADER, capacity, in_flight_size, SHA-256 of the key
CHECKSUM = Struct("=I")
_STATE = Struct("=QQ")  # the words STATE and IN_FLIGHT of a ring


class UntrustedFile(Exception):
    """A file that must not be touched."""


class CorruptFile(Exception):
    """A file of a spool that cannot be read."""


def packed(sizes: Sizes, key: bytes) -> bytes:
    """The header of a new file, for the SHA-256 of a key."""
    head = HEAD.pack(MAGIC, VERSION, HEADER, *sizes, key)
    return head + CHECKSUM.pack(crc32(head))


def parse(start: bytes, size: int, key: bytes | None = None) -> tuple[Sizes, bytes]:
    """The sizes in a header and the SHA-256 of its key. ``start``: the first `HEADER` of a file's ``size`` bytes.

    Raises `CorruptFile`; or `UntrustedFile` for a newer version's, and for another key's if ``key`` is given.
    """
    if not start.startswith(MAGIC):
        raise CorruptFile("it is not a spool file")
    if len(start) < HEADER:
        raise CorruptFile("it is truncated")
    if CHECKSUM.unpack_from(start, HEAD.size)[0] != crc32(start[: HEAD.size]):
        raise CorruptFile("its header's checksum is wrong")
    _, version, header, capacity, in_flight_size, its_key = HEAD.unpack_from(start)
    if version > VERSION:
        raise UntrustedFile("it was written by a newer version of letterapp")
    if key is not None and its_key != key:
        raise UntrustedFile("it belongs to another API key")
    if version < 1 or header != HEADER or not are_valid_sizes(capacity, in_flight_size):
        raise CorruptFile(f"its header has impossible sizes: {header:,}, {capacity:,} and {in_flight_size:,} bytes")
    if size != header + capacity + in_flight_size:
        raise CorruptFile(f"it has {size:,} bytes instead of {header + capacity + in_flight_size:,}")
    return (capacity, in_flight_size), its_key


def may_hold_events(start: bytes) -> bool:
    """True if the words in the first bytes of a file cover a record."""
    if not start.startswith(MAGIC) or len(start) < STATE_END:
        return False
    return holds_events(_STATE.unpack_from(start, WORDS_AT))


STATE_END = WORDS_AT + _STATE.size  # the bytes that `may_hold_events` needs


def must_be_trusted(status: os.stat_result) -> None:
    """Raise `UntrustedFile` if somebody else may have created the file, or may change it."""
    if not stat.S_ISREG(status.st_mode):
        raise UntrustedFile("it is not a regular file")
    if status.st_uid != os.geteuid():
        raise UntrustedFile("it belongs to another user")
    if status.st_mode & 0o077:
        raise UntrustedFile("its permissions are too open, expected 0600")
    if status.st_nlink != 1:
        raise UntrustedFile("it has more than one hard link")
