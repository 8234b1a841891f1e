"""Locks that the kernel releases when their process ends, however it ends.

Responsible for: `Lock`, on a byte of a file that is used for nothing else; `LockedFile`, which is mapped too.
Not responsible for: what is locked.

They are POSIX record locks (fcntl(2)). A stopped process keeps them, a process that is killed or calls `exec` loses
them before its parent can reap it, and a forked child does not inherit them. Process IDs would not do, because they are
reused and may be hidden. Record locks have two weaknesses. A process can acquire a lock that it already holds, so each
process has a table of its locks. And a process loses all locks on a file when it closes any descriptor of the file, so
no file is opened twice in a process: it is in the table from before it is opened until after its last descriptor is
closed (before Python 3.13 a mapping of a file has a separate descriptor).
"""

from __future__ import annotations

import errno
import os
import sys
from _weakref import ref
from struct import Struct

from .._runtime.atfork import NETWORK, block_forks, register_inherited, this_process
from .._runtime.signal_errors import reraise_signal_error

try:
    import fcntl
    import mmap
except ImportError:  # Windows, or a Python that was built without them
    fcntl = mmap = None  # type: ignore[assignment]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Hashable

POSSIBLE = fcntl is not None
_FLAGS = sum(getattr(os, name, 0) for name in ("O_RDWR", "O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK"))
# With this a lock can be asked for. Where that means to take it for a moment, the file has to be writable.
READ_ONLY = _FLAGS & ~os.O_RDWR if sys.platform == "linux" else _FLAGS
# Linux's `struct flock`: type, whence, start, length, pid.
_FLOCK = Struct("@hhqqi4x") if sys.platform == "linux" else None
_MAPS_ALONE: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}  # without a descriptor


class Lock:
    """A lock on one byte of a file, held until `release`, until the object is deleted, or until the process ends."""

    def __init__(self, name: Hashable, offset: int) -> None:
        self._name = name
        self._descriptor = -1  # until the lock is ours to release
        self._offset = offset
        self._process = this_process()
        self._mark = ref(self)

    @classmethod
    def take(cls, name: Hashable, descriptor: int, offset: int) -> Lock | None:
        """The lock; None if another process holds it, or this one does under that ``name``. Never blocks."""
        # The table does not keep the lock alive. If an exception of a signal handler interrupts this method, the lock
        # is released, and its name removed, when there is no reference to it any more.
        lock = cls(name, offset)
        held = lock._process.locks
        if held.setdefault(name, lock._mark) is not lock._mark:  # atomic, between the threads of this process
            return None
        lock._descriptor = descriptor
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
        except OSError as problem:
            lock._descriptor = -1
            held.pop(name, None)
            reraise_signal_error(problem)
            return None
        return lock

    def release(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if self._process.pid != os.getpid():
            return  # the parent's
        try:
            if descriptor >= 0:
                fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, self._offset)
        except OSError:
            pass  # other code has closed the descriptor, which released the lock
        finally:
            if self._process.locks.get(self._name) is self._mark:
                del self._process.locks[self._name]

    def __del__(self) -> None:
        try:
            self.release()
        except (AttributeError, TypeError):
            pass  # the interpreter is shutting down and names are None; the lock ends with the process


def is_held(name: Hashable) -> bool:
    """True if this process holds the lock of that name."""
    return name in this_process().locks


def holder(descriptor: int, offset: int) -> int | None:
    """The ID of the other process that has locked that byte of a file; None if none has, 0 if its ID is unknown."""
    if _FLOCK is None:
        return 0 if is_locked(descriptor, offset) else None
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)
    kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    return None if kind == fcntl.F_UNLCK else max(0, pid)  # of another PID namespace


def is_locked(descriptor: int, offset: int) -> bool:
    """True if another process has locked that byte of a file.

    Acquiring and releasing the lock would show it too, and is the fallback. But for a moment all other processes would
    see the byte as locked.
    """
    try:
        if _FLOCK is not None:
            asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)
            kind: int = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))[0]
            return kind != fcntl.F_UNLCK
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, offset)
        return False
    except OSError as problem:
        reraise_signal_error(problem)
        return _FLOCK is None


class LockedFile:
    """A file that is open once in this process, with a lock on its first byte, until `close`."""

    def __init__(self, status: os.stat_result) -> None:
        self._name = _identity(status)
        self._process = this_process()
        self._descriptors: list[int] = []  # the first is used; the others must not be closed before it
        self._memory: Any = None
        self._words: Any = None
        register_inherited(self)

    @classmethod
    def make(cls, path: str) -> LockedFile | None:
        """A new file, for this user only; None if another process found it and locked it first."""
        file: LockedFile | None = block_forks(NETWORK, cls._make, path)  # the file system may be on another host
        return file

    @classmethod
    def open(cls, path: str, status: os.stat_result) -> LockedFile | None:
        """The file at ``path``, whose `os.lstat` is ``status``; None if it is locked, or has been replaced."""
        file: LockedFile | None = block_forks(NETWORK, cls._open, path, status)
        return file

    @classmethod
    def _make(cls, path: str) -> LockedFile | None:
        descriptor = above_stderr(lambda: os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600))
        file = cls(os.fstat(descriptor))
        if not file._reserve():
            os.close(descriptor)
            return None
        if not file._lock(descriptor):
            file.close()
            return None
        os.fchmod(descriptor, 0o600)  # whatever the umask
        return file

    @classmethod
    def _open(cls, path: str, status: os.stat_result) -> LockedFile | None:
        file = cls(status)
        if not file._reserve():
            return None
        try:
            if file._lock(above_stderr(lambda: os.open(path, _FLAGS))) and file.is_at(path):
                return file
        except FileNotFoundError:
            pass  # another process has just removed it
        except BaseException:
            file.close()
            raise
        file.close()
        return None

    def is_at(self, path: str) -> bool:
        try:
            return _identity(os.lstat(path)) == self._name
        except OSError as problem:
            reraise_signal_error(problem)
            return False

    def status(self) -> os.stat_result | None:
        """`os.fstat` of the open file; None if it was closed, by this object or by other code."""
        if self._process.pid != os.getpid() or not self._descriptors:
            return None
        return self._status_of(self._descriptors[0])

    def descriptor(self) -> int:
        return self._descriptors[0]

    def map(self, size: int) -> Any:
        """Map the file. Raises `OSError`, for example if the file has just been truncated."""
        try:
            self._memory = above_stderr(lambda: mmap.mmap(self._descriptors[0], size, **_MAPS_ALONE))
        except (ValueError, OverflowError) as problem:  # `mmap` compares the sizes itself
            raise OSError(errno.EINVAL, str(problem)) from None
        return self._memory

    def words(self, start: int, count: int) -> Any:
        """``count`` words of 8 bytes in the mapping, from the byte ``start``."""
        self._words = memoryview(self._memory)[start : start + 8 * count].cast("Q")
        return self._words

    def sync(self) -> None:
        """Write changes to the disk, and return when that is done. Does nothing if the file is closed."""
        for descriptor in self._descriptors[:1]:
            getattr(os, "fdatasync", os.fsync)(descriptor)  # not `mmap.flush`, which stops all other threads

    def close(self) -> None:
        held = self._process.locks
        if self._process.pid == os.getpid() and held.get(self._name) is self:
            self.close_inherited()
            del held[self._name]  # after the last descriptor: see above

    def close_inherited(self) -> None:
        """Close the descriptors that are still its own.

        In a forked child they hold no locks, and closing them later would release locks that the child has taken.
        """
        memory, self._memory = self._memory, None
        if memory is not None:
            if self._words is not None:
                self._words.release()
            if _MAPS_ALONE or self._status_of(self._descriptors[0]):
                memory.close()
            else:
                _stranded.append(memory)
        while self._descriptors:
            descriptor = self._descriptors.pop()
            if self._status_of(descriptor):
                os.close(descriptor)

    def _reserve(self) -> bool:
        return self._process.locks.setdefault(self._name, self) is self  # atomic, between the threads of this process

    def _lock(self, descriptor: int) -> bool:
        name = _identity(os.fstat(descriptor))
        if name != self._name:
            self._part_with(descriptor, name)
            return False
        self._descriptors.append(descriptor)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
        except (BlockingIOError, PermissionError):  # POSIX allows both if another process holds the lock
            return False
        return True

    def _part_with(self, descriptor: int, name: Hashable) -> None:
        """Close a descriptor of another file. If this process has locked that file, it is closed with that lock."""
        owner = self._process.locks.setdefault(name, self)
        if owner is self:
            os.close(descriptor)
            del self._process.locks[name]
        else:
            owner._descriptors.append(descriptor)

    def _status_of(self, descriptor: int) -> os.stat_result | None:
        """None if other code has closed the descriptor, whose number may belong to another file now."""
        try:
            status = os.fstat(descriptor)
        except OSError as problem:
            reraise_signal_error(problem)
            return None
        return status if _identity(status) == self._name else None


_stranded: list[Any] = []  # mappings whose descriptor was closed by other code: deleting them would close another file


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def above_stderr(act: Callable[[], Any]) -> Any:
    """Call ``act`` so that a file that it opens gets a descriptor above 2, even if a standard descriptor is closed.

    Otherwise the output of the process would be written into that file.
    """
    places = []
    try:
        for number in range(3):
            try:
                os.fstat(number)
            except OSError:
                places.append(os.open(os.devnull, os.O_RDONLY))
        return act()
    finally:
        for place in places:
            os.close(place)
