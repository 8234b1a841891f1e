"""Looking at the files of a spool, without a key and without changing anything.

Responsible for: what each file is, which process uses it, the events in it. Not responsible for: recovering events
(`spool`), how they are shown (`_cli.spool_command`).

A file is opened for reading only, and its bytes are copied. So nothing can go wrong for the processes that use it: no
lock is taken, and a mapping cannot be hit by a file that becomes shorter. Do not call this in a process that has a
client with a spool: closing a file releases the locks that the process has on it.
"""

from __future__ import annotations

import enum
import os

from .._runtime.signal_errors import reraise_signal_error
from .file_lock import POSSIBLE, READ_ONLY, holder
from .ring import IN_FLIGHT, STATE, UNIT, WORDS, Ring, span
from .spool_header import (
    CORRUPT_AT,
    HEADER,
    NAME_OF_KEY,
    WORDS_AT,
    CorruptFile,
    UntrustedFile,
    must_be_trusted,
    parse,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterator

    from .spool_header import Sizes

_PREFIX = "letter-"
_TRIES = 5  # copies of a file that a process uses, until one was not changed meanwhile
_CHUNK = 1 << 20  # bytes


class State(enum.Enum):
    """What a file of a spool is."""

    IN_USE = "in use"  # the queue of a process that runs
    LEFT = "left"  # with events of an ended process
    EMPTY = "empty"  # of an ended process, without events
    UNFINISHED = "unfinished"  # being created, or its creator was killed
    DAMAGED = "damaged"  # cannot be read, from some point on
    UNTRUSTED = "untrusted"  # left alone by all processes


class SpoolFile:
    """What is known of one file."""

    def __init__(self, path: str, state: State, problem: str = "") -> None:
        self.path = path
        self.state = state
        self.problem = problem  # why it is damaged or untrusted
        self.key = ""  # the fingerprint of its API key, if known
        self.pid = 0  # of the process that uses it, if the system says so
        self.size = 0
        self.written = 0.0  # when it was changed last, in seconds since the epoch
        self.events: list[bytes] = []
        self.unreadable = 0  # events that cannot be read, as far as they can be counted
        self.changes = False  # it was changed whenever it was read, so `events` is only about right


def look(directory: str) -> Iterator[SpoolFile]:
    """The files of the spool, the oldest first. Raises `OSError` if the directory cannot be read."""
    if not POSSIBLE:
        raise OSError(0, "a spool needs POSIX file locks, which this system does not have")
    found = []
    for name in os.listdir(directory):
        if name.lstrip(".").startswith(_PREFIX) and name.endswith((".ring", ".damaged")):
            path = os.path.join(directory, name)
            try:
                found.append((os.lstat(path), path))
            except FileNotFoundError:
                pass  # a process has just removed it
    for status, path in sorted(found, key=lambda each: (each[0].st_mtime, each[1])):
        file = _looked_at(path, status)
        if file is not None:
            yield file


def _looked_at(path: str, status: os.stat_result) -> SpoolFile | None:
    name = os.path.basename(path)
    file = SpoolFile(path, State.UNFINISHED if name.startswith(".") else State.EMPTY)
    file.size, file.written = status.st_size, status.st_mtime
    file.key = name.lstrip(".")[len(_PREFIX) : len(_PREFIX) + NAME_OF_KEY]
    try:
        must_be_trusted(status)
        descriptor = os.open(path, READ_ONLY)
    except UntrustedFile as problem:
        file.state, file.problem = State.UNTRUSTED, str(problem)
        return file
    except FileNotFoundError:
        return None
    except OSError as problem:
        reraise_signal_error(problem)
        file.state, file.problem = State.UNTRUSTED, problem.strerror or str(problem)
        return file
    try:
        _read(file, descriptor, is_set_aside=name.endswith(".damaged"))
    except (OSError, MemoryError, OverflowError) as problem:
        reraise_signal_error(problem)
        file.state, file.problem = State.DAMAGED, getattr(problem, "strerror", None) or str(problem)
    finally:
        os.close(descriptor)
    return file


def _read(file: SpoolFile, descriptor: int, is_set_aside: bool) -> None:
    owner = holder(descriptor, 0)
    if owner is not None:
        file.pid = owner
    if file.state is State.UNFINISHED:
        return
    start = os.pread(descriptor, HEADER, 0)
    try:
        sizes, key = parse(start, os.fstat(descriptor).st_size)
    except UntrustedFile as problem:
        file.state, file.problem = State.UNTRUSTED, str(problem)
        return
    except CorruptFile as problem:
        file.state, file.problem = State.DAMAGED, str(problem)
        return
    file.key = key.hex()[:NAME_OF_KEY]
    for _ in range(_TRIES if owner is not None else 1):
        copy: Any = Copy(descriptor, sizes)
        words = list(copy.words[: IN_FLIGHT + 1])
        ring, wrong = Ring.recovered_from(copy)
        file.events = [*ring.in_flight(), *_waiting(ring)]
        # The words may be the same again, while the records between them were replaced.
        file.changes = owner is not None and (bool(wrong) or words != copy.words_now(descriptor))
        if not file.changes:
            break
    file.state = State.IN_USE if owner is not None else State.LEFT if file.events else State.EMPTY
    if wrong and not file.changes:
        file.state, file.problem, file.unreadable = State.DAMAGED, wrong, ring.unreadable
    elif is_set_aside or start[CORRUPT_AT]:
        file.state, file.problem = State.DAMAGED, "a record could not be read; those before it were recovered"


def _waiting(ring: Ring) -> Iterator[bytes]:
    while ring.waiting:
        yield ring.pop()


class Copy:
    """The used parts of a file, copied to memory; implements what `Ring.recovered_from` needs of a `ring.Slot`."""

    kind = "copy"
    is_durable = False
    checked = True
    base = HEADER

    def __init__(self, descriptor: int, sizes: Sizes) -> None:
        import mmap

        self.capacity, self.in_flight_size = sizes
        self._words = bytearray(os.pread(descriptor, UNIT * WORDS, WORDS_AT))
        self.words = memoryview(self._words).cast("Q")
        self.memory: Any = mmap.mmap(-1, HEADER + sum(sizes))  # allocated page by page, when it is written
        (head, tail), (first, last) = span(self.words[STATE]), span(self.words[IN_FLIGHT])
        parts = [(head, tail)] if head <= tail else [(head, self.capacity), (0, tail)]
        for begin, end in parts:
            self._copy(descriptor, HEADER, begin, min(end, self.capacity))
        self._copy(descriptor, HEADER + self.capacity, first, min(last, self.in_flight_size))

    def words_now(self, descriptor: int) -> list[int]:
        """The words STATE and IN_FLIGHT of the file."""
        return list(memoryview(os.pread(descriptor, UNIT * (IN_FLIGHT + 1), WORDS_AT)).cast("Q"))

    def _copy(self, descriptor: int, base: int, begin: int, end: int) -> None:
        while begin < end:
            data = os.pread(descriptor, min(_CHUNK, end - begin), base + begin)
            if not data:
                return  # it was truncated: the checksums will not match
            self.memory[base + begin : base + begin + len(data)] = data
            begin += len(data)
