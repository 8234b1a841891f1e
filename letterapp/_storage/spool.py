"""Storage of events in files, which outlive all processes: `spool=`.

Responsible for: `Spool`, the names and the total size of its files. Not responsible for: a file's header and which
files are trusted (`spool_header`), a file in use (`spool_slot`), its ring (`ring`), when an event is sent.

    letter-KEY-RANDOM.ring            a process's queue: [ header and words of the ring ][ ring ][ in-flight area ]
    .letter-KEY-RANDOM.ring           a file that is being created
    letter-KEY-RANDOM.ring.damaged    a file that could not be read, kept for inspection

A process uses the file whose first byte it has locked. If the lock of a file is free, its process has ended, and
another process of the same user and key recovers it. The directory belongs to this user only. Nevertheless, files that
somebody else may have created are not trusted: no link is followed, and no file is opened that belongs to another user
or has more than one hard link.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from time import localtime, strftime

from .._config import MAX_ITEMS
from .._path_trust import must_be_ours
from .._reporter import unreadable
from .._runtime.random_bytes import random_bytes
from .._runtime.signal_errors import reraise_signal_error
from ..errors import LetterError
from .file_lock import POSSIBLE, LockedFile
from .ring import LARGEST, Ring, bytes_in, ring_sizes
from .spool_header import (
    HEADER,
    NAME_OF_KEY,
    STATE_END,
    CorruptFile,
    UntrustedFile,
    may_hold_events,
    must_be_trusted,
    packed,
    parse,
)
from .spool_slot import SpoolSlot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Iterator

    from .._config import Settings
    from .spool_header import Sizes

KEPT = 8  # reports of damaged files at a time, and the default of `Spool.most_damaged`
_ZEROS = bytes(1 << 20)
_NEARLY_EMPTY = 8  # a file is nearly empty if at most 1 / _NEARLY_EMPTY of its ring is used
# Errors that may be temporary, and so are no reason to refuse the directory.
_TRANSIENT = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE}


class Spool:
    """The files of one API key in one directory. Any thread of any process may call; blocks only on disk I/O."""

    most_damaged = KEPT  # damaged files of one key that are kept; older ones are removed

    def __init__(
        self,
        settings: Settings,
        report: Callable[[LetterError], None],
        may_only_fork: Callable[[], bool] = lambda: False,
    ) -> None:
        """Create the directory if it does not exist. Raises `LetterError` if it cannot be used.

        ``may_only_fork``: returns True if this process may never send, and so must not claim events of others.
        """
        from hashlib import sha256  # not at import time, to keep that cheap

        self._directory = settings.spool or ""
        self._overflow = settings.overflow
        self._limit = settings.spool_max_bytes
        self._may_only_fork = may_only_fork
        self._syncs = settings.spool_sync
        self._report = report
        self._key = sha256(settings.api_key.encode()).digest()
        self._prefix = f"letter-{self._key.hex()[:NAME_OF_KEY]}-"
        self._sizes = ring_sizes(
            settings.max_queue_bytes, settings.max_queue_events, MAX_ITEMS, settings.max_batch_bytes
        )
        self._size = HEADER + sum(self._sizes)
        self._reported: dict[str, object] = {}  # texts that were reported, by this process or its ancestors
        self._losses: list[LetterError] = []
        self._damage: list[str] = []  # files that were set aside, to be reported
        self._aside: deque[str] | None = None  # files that were set aside, oldest first, as of the last listing
        self._has_looked = False  # has searched for files of other keys
        if not POSSIBLE:
            raise LetterError("spool needs POSIX file locks, which this system does not have: leave it out")
        if self._sizes[0] > LARGEST:
            raise LetterError(
                f"max_queue_bytes and max_queue_events are too large for a spool: its file would need "
                f"{self._sizes[0]:,} bytes, and may have {LARGEST:,}"
            )
        if self._size > self._limit:
            raise LetterError(
                f"spool_max_bytes must be {self._size:,} or more, not {self._limit:,}: a file for a queue of "
                "max_queue_bytes and max_queue_events has that size"
            )
        self._prepare()

    # A storage backend's methods.

    def claim(self) -> SpoolSlot | None:
        """A file for this process, if possible an empty one of an ended process; None, and a report, if there is none.

        If a new file would exceed the maximum size, the file may contain events of an ended process.
        """
        try:
            if not self._has_looked:
                self._has_looked = True
                self._report_other_keys()
            self._remove_incomplete()
            slot = self._reuse()
            if slot is None:
                slot = self._create() if self._size_with_another() <= self._limit else self._claim_from_full_spool()
            return slot
        except OSError as problem:
            reraise_signal_error(problem)
            self._report_once(
                f"the spool {self._directory} cannot be used: {_text(problem)}; events are kept in memory"
            )
            return None

    def orphans(self) -> Iterator[SpoolSlot]:
        """The files with events of ended processes, claimed for this process. Empty ones are removed."""
        try:
            for slot in self._free():
                if slot.is_empty():
                    slot.release()
                else:
                    slot.check_space()
                    yield slot
        except OSError as problem:
            reraise_signal_error(problem)
            self._report_once(f"the spool {self._directory} cannot be read: {_text(problem)}")

    def for_child(self) -> Spool:
        return self  # it keeps no file open

    # Called by the sender and by slots.

    def has_orphans_in_memory(self) -> bool:
        return False  # finding out would need a listing of the directory

    def losses(self) -> list[LetterError]:
        """Reports of events that were dropped for lack of room or cannot be read, since the last call."""
        losses, self._losses = self._losses, []
        damage, self._damage = self._damage, []
        # The number of events in a damaged file is unknown: at least one.
        losses += [LetterError(text, cause="damaged", lost=1) for text in damage[:KEPT]]
        more = len(damage) - KEPT
        if more > 0:
            said = f"{more:,} more files of the spool {self._directory} cannot be read; the latest are kept as .damaged"
            losses.append(LetterError(said, cause="damaged", lost=more))
        return losses

    def discard(self, path: str, file: LockedFile, corrupt: bool) -> None:
        """Remove an empty file, or set it aside, before it is closed."""
        if not file.is_at(path):
            pass  # another program has removed or replaced it
        elif corrupt:
            self._set_aside(path)
        else:
            _remove(path)

    def sync(self, file: LockedFile) -> None:
        if self._syncs:
            try:
                file.sync()
            except OSError as problem:
                reraise_signal_error(problem)
                self._report_once(f"the spool {self._directory} cannot be synced: {_text(problem)}")

    # Files.

    def _free(self) -> Iterator[SpoolSlot]:
        """The files of ended processes, oldest first. Each belongs to this process until it is released."""
        self._aside = None
        for path, status in self._listed(self._prefix, ".ring"):
            slot = self._open(path, status)
            if slot is not None:
                yield slot

    def _open(self, path: str, status: os.stat_result) -> SpoolSlot | None:
        file = None
        try:
            must_be_trusted(status)
            file = LockedFile.open(path, status)
            if file is None:
                return None
            return SpoolSlot(self, path, file, self._sizes_of(file))
        except UntrustedFile as problem:
            self._report_once(f"{path} is left alone: {problem}")
        except OSError as problem:
            reraise_signal_error(problem)
            self._report_once(f"{path} cannot be recovered: {_text(problem)}")
        except CorruptFile as problem:
            self._set_aside(path)
            self._note_damage(f"{path} cannot be read: {problem}; it is kept as .damaged")
        if file is not None:
            file.close()
        return None

    def _sizes_of(self, file: LockedFile) -> Sizes:
        size = os.fstat(file.descriptor()).st_size
        sizes, _ = parse(os.pread(file.descriptor(), HEADER, 0), size, self._key)
        if size > self._limit:
            raise UntrustedFile(f"it has {size:,} bytes, more than spool_max_bytes={self._limit:,} allows")
        return sizes

    def _reuse(self) -> SpoolSlot | None:
        for slot in self._free():
            if slot.sizes == self._sizes and slot.is_empty() and not slot.is_corrupt():
                os.utime(slot.path)
                slot.check_space()
                return slot
            slot.release()
        return None

    def _claim_from_full_spool(self) -> SpoolSlot | None:
        slot = None if self._may_only_fork() else self._reuse_nearly_empty()
        if slot is None:
            if self._overflow == "drop_oldest" and self._free_space():
                return self._create()
            full = f"the spool {self._directory} is full (spool_max_bytes={self._limit:,})"
            self._report_once(f"{full}; events are kept in memory")
        return slot

    def _reuse_nearly_empty(self) -> SpoolSlot | None:
        """The emptiest file with events of ended processes, if it is nearly empty.

        Without this, processes that run one job each would fill the spool with a few events per file.
        """
        emptiest: SpoolSlot | None = None
        least = self._sizes[0] // _NEARLY_EMPTY
        for slot in self._free():
            if slot.sizes == self._sizes and not slot.is_corrupt() and bytes_in(slot) <= least:
                if emptiest is not None:
                    emptiest.release()
                emptiest, least = slot, bytes_in(slot) - 1
            else:
                slot.release()
        if emptiest is not None:
            emptiest.check_space()
        return emptiest

    def _read(self, slot: SpoolSlot) -> Ring:
        ring, wrong = Ring.recovered_from(slot)
        if wrong:
            slot.mark_corrupt()
            self._losses.append(unreadable(ring.unreadable, wrong))
        return ring

    def _create(self) -> SpoolSlot | None:
        for _ in range(3):
            name = f"{self._prefix}{random_bytes(8).hex()}.ring"
            slot = self._create_at(os.path.join(self._directory, "." + name), os.path.join(self._directory, name))
            if slot is not None:
                return slot
        raise OSError(errno.EBUSY, "another program removes the files that are created there")

    def _create_at(self, hidden: str, path: str) -> SpoolSlot | None:
        """A new file, visible to others when it is complete.

        None if another process removed it before that, as the file of an ended process.
        """
        file = LockedFile.make(hidden)
        if file is None:
            return None
        try:
            _allocate(file.descriptor(), self._size)
            slot = SpoolSlot(self, path, file, self._sizes)
            head = packed(self._sizes, self._key)
            slot.memory[: len(head)] = head
            if self._syncs:
                os.fsync(file.descriptor())
            os.rename(hidden, path)
            if self._syncs:
                _sync_directory(self._directory)
            return slot
        except FileNotFoundError:
            file.close()
            return None
        except OSError:
            _remove(hidden)
            file.close()
            raise

    def _size_with_another(self) -> int:
        return self._size + sum(status.st_size for _, status in self._listed(self._prefix, ".ring"))

    def _free_space(self) -> bool:
        """Drop events of ended processes, oldest first, until there is room for another file."""
        size = self._size_with_another()
        if size > self._limit:
            dropped: list[bytes] = []
            for slot in self._free():
                size -= len(slot.memory)
                dropped += self._read(slot).clear()
                slot.release()
                if size <= self._limit:
                    break
            if dropped:
                why = f"the spool {self._directory} was full (spool_max_bytes={self._limit:,})"
                said = f"{len(dropped):,} events of ended processes dropped (drop_oldest): {why}"
                self._losses.append(LetterError(said, cause="overflow", events=dropped))
        return size <= self._limit

    def _report_other_keys(self) -> None:
        """Report events of another API key, which no process with this key can send."""
        found = []
        for path, status in self._listed("letter-", ".ring"):
            if os.path.basename(path).startswith(self._prefix):
                continue
            try:
                must_be_trusted(status)
                file = LockedFile.open(path, status)
            except (UntrustedFile, OSError):
                continue  # it is reported to processes with that key
            if file is not None:
                if may_hold_events(os.pread(file.descriptor(), STATE_END, 0)):
                    found.append((path, status))
                file.close()
        if found:
            names = {f"{os.path.basename(path)[: len('letter-') + NAME_OF_KEY]}-*" for path, _ in found}
            size = sum(status.st_size for _, status in found)
            since = strftime("%Y-%m-%d %H:%M", localtime(min(status.st_mtime for _, status in found)))
            self._report_once(
                f"{len(found):,} files of {size:,} bytes, the oldest of {since}, hold events of another API key "
                f"({', '.join(sorted(names))} in {self._directory}): start a process with that key once, or remove them"
            )

    def _remove_incomplete(self) -> None:
        """Remove incomplete files of killed processes."""
        for path, status in self._listed("." + self._prefix, ""):
            try:
                must_be_trusted(status)
                file = LockedFile.open(path, status)
            except (UntrustedFile, OSError):
                continue
            if file is not None:
                _remove(path)
                file.close()

    def _set_aside(self, path: str) -> None:
        aside = path + ".damaged"
        while os.path.lexists(aside):
            aside = f"{path}.{random_bytes(4).hex()}.damaged"
        try:
            os.rename(path, aside)
            before = self._aside
            if before is None:  # the directory is listed once, not for each damaged file
                since = [(status.st_ctime, old) for old, status in self._listed(self._prefix, ".damaged")]
                before = self._aside = deque(old for _, old in sorted(since))
            else:
                before.append(aside)
        except OSError:
            return  # the next process that finds the file tries again
        for _ in range(len(before) - self.most_damaged):
            _remove(before.popleft())

    def _listed(self, start: str, end: str) -> list[tuple[str, os.stat_result]]:
        """The files whose names begin with ``start`` and end with ``end``, oldest first."""
        must_be_ours(self._directory)
        found = []
        for name in os.listdir(self._directory):
            if name.startswith(start) and name.endswith(end):
                path = os.path.join(self._directory, name)
                try:
                    found.append((path, os.lstat(path)))
                except FileNotFoundError:
                    pass  # another process has just removed it
        return sorted(found, key=lambda one: one[1].st_mtime)

    # The directory.

    def _prepare(self) -> None:
        try:
            os.mkdir(self._directory, 0o700)
            if self._syncs:
                _sync_directory(os.path.dirname(self._directory))
        except FileExistsError:
            pass
        except OSError as problem:
            raise LetterError(
                f"spool={self._directory!r} cannot be created: {_text(problem)}. "
                "The parent directory must exist and be writable"
            )
        try:
            must_be_ours(self._directory)
            self._try_out(os.path.join(self._directory, f".{self._prefix}{random_bytes(8).hex()}.probe"))
        except OSError as problem:
            if problem.errno not in _TRANSIENT:
                raise LetterError(f"spool={self._directory!r} cannot be used: {_text(problem)}")

    def _try_out(self, path: str) -> None:
        file = LockedFile.make(path)
        if file is not None:
            _remove(path)
            file.close()

    def _report_once(self, text: str) -> None:
        """Report a problem that is not a loss, unless the same text was already reported."""
        if self._is_new(text):
            self._report(LetterError(text, cause="degraded"))

    def _note_damage(self, text: str) -> None:
        """Report a file that cannot be read, unless the same text was already reported."""
        if self._is_new(text):
            self._damage.append(text)

    def _is_new(self, text: str) -> bool:
        mark = object()
        return self._reported.setdefault(text, mark) is mark


def _allocate(descriptor: int, size: int) -> None:
    """Reserve disk space for the whole file: without it, writing to the mapping could kill the process (SIGBUS)."""
    try:
        failure = os.posix_fallocate(descriptor, 0, size)  # type: ignore[func-returns-value]
        if failure:  # PyPy returns the error number instead of raising
            raise OSError(failure, os.strerror(failure))
        return
    except AttributeError:
        pass  # macOS
    except OSError as problem:
        if problem.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
    written = 0
    while written < size:
        written += os.pwrite(descriptor, _ZEROS[: size - written], written)


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass  # another process was faster, or the next one tries again


def _text(problem: OSError) -> str:
    return problem.strerror or str(problem)
