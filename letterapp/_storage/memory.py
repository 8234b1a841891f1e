"""Storage of events in memory.

Responsible for: `SharedMemory`, mapped before the fork and so shared with every descendant; `PrivateMemory`, the
fallback; the file whose bytes lock the slots. Not responsible for: the contents of a slot.

    shared memory   [ words of slot 0, of slot 1, ... ][ slot 0: ring and in-flight area ][ slot 1 ] ...

A process locks one slot of a client. If the lock of a slot is free, its owner has ended. A client reserves address
space; memory is allocated page by page as rings fill. All slots exist from the start: memory that is mapped after a
fork can be shared only through a descriptor, which daemons close, and before Python 3.13 each mapping needs another.
"""

from __future__ import annotations

import os

try:
    import mmap
except ImportError:
    mmap = None  # type: ignore[assignment]  # a Python that was built without it

from .._config import MAX_ITEMS
from .._runtime.random_bytes import random_bytes
from .._runtime.signal_errors import reraise_signal_error
from .file_lock import POSSIBLE, Lock, above_stderr, is_held, is_locked
from .ring import LARGEST, UNIT, WORDS, holds_events, ring_sizes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterable, Iterator

    from .._config import Settings
    from ..errors import LetterError

SLOTS = 128  # processes that can use one client at a time; any other one uses private memory
_REPORTED = WORDS + 1  # a word of the first slot: 1 when it was reported that a process of the family has no slot
_STRIDE = 64  # bytes from the words of one slot to those of the next: a cache line
_MIN_CAPACITY = 4096  # bytes; allocating less would be no use
_ALIVE = WORDS  # the word after those of the ring: 1 until the process that uses the slot begins to end
# Linux constants that `mmap` does not define in every version.
_NO_RESERVE = 0x4000  # MAP_NORESERVE: the address space does not count as committed memory
_REMOVE = 9  # MADV_REMOVE
_FUTURE, _ON_FAULT = 2, 4  # MCL_FUTURE, MCL_ONFAULT (Linux 4.4); processors where they differ report an error


class Unavailable(Exception):
    """There is no shared memory. The text says why; it is empty on systems that never have it."""


class MemorySlot:
    """A block of private memory for a ring; implements `ring.Slot`."""

    kind = "private"
    is_durable = False
    checked = False

    def __init__(self, memory: Any, words: Any, base: int, capacity: int, in_flight_size: int) -> None:
        self.memory = memory
        self.words = words
        self.base = base
        self.capacity = capacity
        self.in_flight_size = in_flight_size

    def is_own(self) -> bool:
        return True

    def has_successor(self) -> bool:
        return False

    def mark_exiting(self, exiting: bool) -> None:
        pass

    def release(self) -> None:
        pass

    def mark_corrupt(self) -> None:
        pass  # events before the corrupt record are delivered, and the rest is given up

    def trim(self, start: int, end: int) -> None:
        pass

    def sync(self) -> None:
        pass  # memory does not survive a power loss


class SharedSlot(MemorySlot):
    """A block of memory that the family shares."""

    kind = "shared"

    def __init__(self, owner: SharedMemory, number: int, lock: Lock, for_own_events: bool) -> None:
        capacity, in_flight_size = owner.sizes
        super().__init__(
            owner.memory, owner.words_of(number), owner.first + number * owner.stride, capacity, in_flight_size
        )
        self._page = owner.page
        self.is_own = owner.is_open  # type: ignore[method-assign]
        self.has_successor = owner.has_others  # type: ignore[method-assign]
        self.release = lock.release  # type: ignore[method-assign]
        self._owner = owner
        self._shared_words = owner.words_of(number, _ALIVE + 1)
        self._shared_words[_ALIVE] = for_own_events and not owner.is_exiting

    def mark_exiting(self, exiting: bool) -> None:
        self._owner.is_exiting = exiting
        self._shared_words[_ALIVE] = not exiting

    def trim(self, start: int, end: int) -> None:
        start, end = -(-start // self._page) * self._page, end // self._page * self._page
        try:
            self.memory.madvise(_REMOVE, start, end - start)
        except (AttributeError, ValueError, OSError):
            pass  # not Linux, or less than a page: the memory is used again by the next backlog


class PrivateMemory:
    """Memory of this process only."""

    kind = MemorySlot.kind

    def __init__(self, settings: Settings) -> None:
        self._sizes = _sizes(settings)

    def claim(self) -> MemorySlot:
        capacity, in_flight_size = self._sizes
        words = UNIT * WORDS
        while True:
            try:
                memory = _zeros(words + capacity + in_flight_size)
            except MemoryError:
                if capacity < _MIN_CAPACITY:
                    raise
                capacity = capacity // (2 * UNIT) * UNIT  # events that do not fit are reported
                in_flight_size = in_flight_size // (2 * UNIT) * UNIT
            else:
                return MemorySlot(memory, memoryview(memory)[:words].cast("Q"), words, capacity, in_flight_size)

    def orphans(self) -> Iterable[MemorySlot]:
        return ()

    def has_orphans_in_memory(self) -> bool:
        return False

    def losses(self) -> list[LetterError]:
        return []

    def for_child(self) -> PrivateMemory:
        return self


class SharedMemory:
    """The slots of one client in a family of processes. Any thread may call; nothing here blocks."""

    def __init__(self, settings: Settings) -> None:
        """Raises `Unavailable`. Allocates address space, but no memory."""
        self._settings = settings
        self.is_exiting = False  # this process is ending
        self.sizes = _sizes(settings)
        if not hasattr(os, "fork"):
            raise Unavailable
        if not POSSIBLE:
            raise Unavailable("this Python has no fcntl or no mmap")
        if self.sizes[0] > LARGEST:
            raise Unavailable("max_queue_bytes or max_queue_events is too large for shared memory")
        try:
            self.page = mmap.PAGESIZE
            self.first = -(-SLOTS * _STRIDE // self.page) * self.page
            self.stride = -(-sum(self.sizes) // self.page) * self.page
            self.memory = _shared_pages(self.first + SLOTS * self.stride)
            self._file = _lock_file()
            self.is_open = self._file.is_open
        except (AttributeError, ImportError, OSError, TypeError, ValueError, OverflowError, MemoryError) as problem:
            reraise_signal_error(problem)
            raise Unavailable(getattr(problem, "strerror", None) or repr(problem)) from problem
        self._words = memoryview(self.memory)[: self.first].cast("Q")
        # One file is used for all clients of all descendants. They cannot agree on ranges of bytes, so each client
        # chooses a random one.
        self._range = int.from_bytes(random_bytes(6), "big") * SLOTS

    def words_of(self, number: int, count: int = WORDS) -> Any:
        at = number * _STRIDE // UNIT
        return self._words[at : at + count]

    def claim(self) -> SharedSlot | None:
        """A slot for this process, if possible an empty one, otherwise one with events of an ended process.

        None if all slots are in use.
        """
        found = next(self._free(with_events=False), None) or next(self._free(with_events=True), None)
        return SharedSlot(self, *found, for_own_events=True) if found else None

    def orphans(self) -> Iterator[SharedSlot]:
        """The slots with events of ended processes, claimed for this process."""
        return (SharedSlot(self, *found, for_own_events=False) for found in self._free(with_events=True))

    def has_orphans_in_memory(self) -> bool:
        """True if there are events of an ended process. Takes microseconds, because a fork waits for it."""
        return any(self._holds_events(number) and self._has_ended(number) for number in range(SLOTS))

    def losses(self) -> list[LetterError]:
        return []

    def is_first_without(self) -> bool:
        """True for the first process of the family that has no slot."""
        was_noted, self._words[_REPORTED] = self._words[_REPORTED], 1
        return not was_noted

    def for_child(self) -> SharedMemory | PrivateMemory:
        """The same slots, in a descendant; new ones if other code has closed the descriptor that locks them."""
        self.is_exiting = False  # the parent may be
        if self.is_open():
            return self
        try:
            return SharedMemory(self._settings)
        except Unavailable:
            return PrivateMemory(self._settings)

    def has_others(self) -> bool:
        """True while another process of the family is running and not about to end."""
        return self.is_open() and any(
            self._words[number * _STRIDE // UNIT + _ALIVE]
            and not is_held(self._name(number))
            and is_locked(self._file.descriptor, self._range + number)
            for number in range(SLOTS)
        )

    def _has_ended(self, number: int) -> bool:
        return (
            not is_held(self._name(number))
            and self.is_open()
            and not is_locked(self._file.descriptor, self._range + number)
        )

    def _free(self, with_events: bool) -> Iterator[tuple[int, Lock]]:
        for number in range(SLOTS):
            if self._holds_events(number) == with_events:
                lock = self._lock(number)
                if lock is None:
                    continue
                if self._holds_events(number) == with_events:  # no other process was faster
                    yield number, lock
                else:
                    lock.release()

    def _holds_events(self, number: int) -> bool:
        return holds_events(self._words, number * _STRIDE // UNIT)

    def _name(self, number: int) -> tuple[LockFile, int]:
        return self._file, self._range + number

    def _lock(self, number: int) -> Lock | None:
        if not self.is_open():
            return None
        return Lock.take(self._name(number), self._file.descriptor, self._range + number)


def _sizes(settings: Settings) -> tuple[int, int]:
    return ring_sizes(settings.max_queue_bytes, settings.max_queue_events, MAX_ITEMS, settings.max_batch_bytes)


def _zeros(size: int) -> Any:
    """Memory that is allocated page by page when it is written, if the system can do that (a `bytearray` is not)."""
    try:
        # Not the default flags, with which a child would share the memory.
        flags = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if os.name == "posix" else {}
        return mmap.mmap(-1, size, **flags)
    except (AttributeError, OSError, ValueError) as problem:
        reraise_signal_error(problem)
        return bytearray(size)


def _shared_pages(size: int) -> Any:
    """Memory that descendants share, allocated page by page when it is written. Raises `OSError`."""
    flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | (_NO_RESERVE if os.uname().sysname == "Linux" else 0)
    if not _are_mappings_locked():
        return mmap.mmap(-1, size, flags=flags)
    return _locked_when_written(lambda: mmap.mmap(-1, size, flags=flags))


def _are_mappings_locked() -> bool:
    """True after ``mlockall(MCL_FUTURE)``: then a new mapping is allocated as a whole, all slots at once."""
    try:
        with mmap.mmap(-1, mmap.PAGESIZE), open("/proc/self/status", "rb") as status:
            return any(line.startswith(b"VmLck:") and line.split()[1] != b"0" for line in status)
    except OSError as problem:
        reraise_signal_error(problem)
        return False  # not Linux, or no descriptor


def _locked_when_written(map_it: Callable[[], Any]) -> Any:
    """Make a mapping of which only those pages are allocated, and locked, that have been written."""
    from ctypes import CDLL, addressof, byref, c_char, c_size_t, c_ubyte, c_void_p

    libc = CDLL(None)
    page = mmap.mmap(-1, mmap.PAGESIZE)
    is_there = c_ubyte()
    start = c_void_p(addressof(c_char.from_buffer(page)))
    libc.mincore(start, c_size_t(mmap.PAGESIZE), byref(is_there))
    if not is_there.value & 1:
        return map_it()  # the program has already set MCL_ONFAULT
    if libc.mlockall(_FUTURE | _ON_FAULT):
        raise OSError(0, "mlockall is in force, and memory cannot be locked page by page")
    try:
        return map_it()
    finally:
        libc.mlockall(_FUTURE)  # as before; existing mappings do not change


class LockFile:
    """An empty, unnamed file whose bytes can be locked. All descendants inherit its descriptor."""

    def __init__(self) -> None:
        self.descriptor = above_stderr(_nameless)
        self._identity = self._identify()

    def is_open(self) -> bool:
        """False if other code has closed the descriptor, whose number may belong to another file now."""
        try:
            return self._identify() == self._identity
        except OSError as problem:
            reraise_signal_error(problem)
            return False

    def _identify(self) -> tuple[int, int, int]:
        status = os.fstat(self.descriptor)
        return status.st_dev, status.st_ino, status.st_ctime_ns  # inode numbers are reused


_file: LockFile | None = None  # used by all clients, and never closed: that would release every lock


def _lock_file() -> LockFile:
    global _file
    if _file is None or not _file.is_open():
        _file = LockFile()
    return _file


def _nameless() -> int:
    if hasattr(os, "memfd_create"):
        try:
            return os.memfd_create("letterapp")
        except OSError:
            pass  # an old kernel or a sandbox
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
