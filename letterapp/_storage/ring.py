"""A ring buffer of encoded events in one block of memory, which another process can recover.

Responsible for: `Ring`, the layout of its memory, what remains if the process is killed at any instant. Not responsible
for: allocating the memory and locking it (`Slot`), bounds, counters, locks.

    memory   [ ring: the waiting records, wrapping around ][ in-flight area: the records of the batch being sent ]
    record   [ size: 4 bytes ][ CRC-32 or 0: 4 bytes ][ the event, padded to a multiple of 8 ]
    words    STATE: start and end of the records in the ring, in units of 8 bytes
             IN_FLIGHT: start and end of the records in the in-flight area, in the same units
             EPOCH: a fencing token, a random number that each process writes when it starts to use the memory

A record is written before the word that covers it, and a word is stored by one instruction. So the words always cover
complete records, whenever the process is killed. If it is killed during `take`, the batch is in both areas, which can
be detected.
"""

from __future__ import annotations

from binascii import crc32
from struct import Struct

from .._runtime.random_bytes import random_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterator, Protocol

    class Slot(Protocol):
        """A block of memory for this process's exclusive use until `release`, or until the object is deleted."""

        kind: str
        memory: Any  # an `mmap` or a bytearray
        words: Any  # WORDS words of 8 bytes
        base: int  # offset of the ring in the memory
        capacity: int  # bytes of the ring; the in-flight area follows it
        in_flight_size: int  # bytes of the in-flight area
        is_durable: bool  # events in it outlive all processes
        checked: bool  # records have a checksum, because the memory may be damaged

        def is_own(self) -> bool:
            """False if the lock was lost, for instance because other code closed its descriptor."""

        def has_successor(self) -> bool:
            """True if another process will recover the events in this slot after it has been released."""

        def mark_exiting(self, exiting: bool) -> None:
            """Record, for other processes, whether the process that uses this slot has stopped recovering orphans."""

        def release(self) -> None:
            """Let other processes use the slot and recover the events in it."""

        def mark_corrupt(self) -> None:
            """Record that part of the contents cannot be read."""

        def trim(self, start: int, end: int) -> None:
            """Return these unused bytes of memory to the system."""

        def sync(self) -> None:
            """Block until everything written would survive a power loss, if `spool_sync` is set."""


STATE, IN_FLIGHT, EPOCH = range(3)
WORDS = 3
UNIT = 8  # bytes: every position is a multiple of it, and a record's header has this size
LARGEST = 1 << 34  # bytes that 31 bits of units can address
KEPT = 65_536  # bytes of an empty ring that are not returned to the system
_WRAP = 0xFFFFFFFF  # in place of a size: the next record is at the beginning of the ring
_header = Struct("<II")
_pack, _unpack_from = _header.pack, _header.unpack_from


def ring_sizes(event_bytes: int, events: int, batch_items: int, batch_bytes: int) -> tuple[int, int]:
    """The capacity of a ring within these bounds, wherever it wraps, and the size of its in-flight area, in bytes."""
    frames = 2 * UNIT  # a record's header and at most this much padding
    return (
        _padded(event_bytes + events * frames + batch_bytes + 2 * frames),
        _padded(batch_bytes + (batch_items + 1) * frames),
    )


def are_valid_sizes(capacity: int, in_flight_size: int) -> bool:
    """True if `ring_sizes` can return these values: a ring of that size stays within its memory."""
    return all(0 < size <= LARGEST and size % UNIT == 0 for size in (capacity, in_flight_size))


def _padded(size: int) -> int:
    return (size + UNIT - 1) & -UNIT


def _record(event: bytes) -> int:
    return _padded(UNIT + len(event))


def _word(start: int, end: int) -> int:
    return start << 29 | end >> 3


def _span(word: int) -> tuple[int, int]:
    return (word >> 32) << 3, (word & 0xFFFFFFFF) << 3


def holds_events(words: Any, at: int = 0) -> bool:
    """True if the words of a ring, starting at index ``at``, cover a record."""
    state, in_flight = words[at + STATE], words[at + IN_FLIGHT]
    return bool(state >> 32 != state & 0xFFFFFFFF or in_flight >> 32 != in_flight & 0xFFFFFFFF)


def bytes_in(slot: Slot) -> int:
    """Size in bytes of the records in ``slot``, according to its words. Reads no record."""
    (start, end), in_flight = _span(slot.words[STATE]), _span(slot.words[IN_FLIGHT])
    return (end - start) % slot.capacity + in_flight[1] - in_flight[0]


class _InFlightArea:
    """The batch being sent, and the parts split off from it. They are stored after the ring."""

    def __init__(self, base: int, size: int) -> None:
        self.base = base
        self.used = size  # bytes used since memory was last returned; the previous process may have used all of them
        self.clear()

    def clear(self) -> None:
        self.span = (0, 0)  # start and end of the records within the area
        self.batch: list[bytes] = []  # being sent
        self.later: list[list[bytes]] = []  # the parts split off from it; the next one to send is last

    def is_empty(self) -> bool:
        return not (self.batch or self.later)

    def events(self) -> list[bytes]:
        """All events, in the order in which they were queued."""
        return [event for part in (self.batch, *reversed(self.later)) for event in part]

    def next_batch(self) -> list[bytes]:
        """The batch being sent or, if it is settled, the next part that was split off."""
        if not self.batch and self.later:
            self.batch, self.later = self.later[-1], self.later[:-1]
        return self.batch

    def halve(self) -> None:
        keep = len(self.batch) // 2
        self.later, self.batch = [*self.later, self.batch[keep:]], self.batch[:keep]

    def settle(self) -> list[bytes]:
        """Remove and return the batch being sent."""
        batch, self.batch = self.batch, []
        start, end = self.span
        self.span = (start + sum(map(_record, batch)), end) if self.later else (0, 0)
        return batch


class Ring:
    """A FIFO ring buffer for one process. Not thread-safe: the caller holds a lock."""

    def __init__(self, slot: Slot) -> None:
        """Create an empty ring in ``slot``. `recovered_from` reads the one that is there."""
        self._lay_out(slot)
        self._words[IN_FLIGHT] = self._words[STATE] = 0

    def _lay_out(self, slot: Slot) -> None:
        self.slot = slot
        self._memory = slot.memory
        self._words = slot.words
        self._checked = slot.checked
        self._base = slot.base
        self.largest = slot.in_flight_size - UNIT  # bytes of the largest event that fits into the in-flight area
        self._epoch = slot.words[EPOCH] = int.from_bytes(random_bytes(8), "big")
        self._used = slot.capacity  # bytes used since memory was last returned; all, if by the previous process
        self._area = _InFlightArea(slot.base + slot.capacity, slot.in_flight_size)
        self.unreadable = 0  # events of the previous process that cannot be read, as far as they can be counted
        self._forget()

    def _forget(self) -> None:
        self._head = self._tail = 0  # offsets in the ring; equal if no event is waiting
        self._limit = self.slot.capacity  # the next record must not extend beyond this offset
        self._area.clear()
        self.waiting = 0  # number of events that are not in flight
        self.in_flight_count = 0
        self.size = 0  # bytes of all events

    def is_taken_over(self) -> bool:
        """True if this process lost the lock of the slot, and another one uses it. That one delivers the events."""
        try:
            return bool(self._words[EPOCH] != self._epoch)
        except ValueError:
            return True  # it was released and closed

    def __len__(self) -> int:
        return self.waiting + self.in_flight_count

    def is_empty(self) -> bool:
        return self._head == self._tail and self._area.is_empty()

    def has_in_flight(self) -> bool:
        """True while something is in flight."""
        return not self._area.is_empty()

    def append(self, event: bytes) -> bool:
        """Add ``event``; False if it does not fit, is too large to be sent at all, or the slot is lost."""
        size = len(event)
        tail = self._tail
        end = tail + ((size + 15) & -8)  # `_record`, inlined: this is on the path of every call
        words = self._words
        if end > self._limit or size > self.largest or words[EPOCH] != self._epoch:
            if size > self.largest or self.is_taken_over() or not self._wrap_around(end - tail):
                return False
            tail, end = 0, end - tail
        start = self._base + tail
        self._memory[start : start + UNIT + size] = _pack(size, crc32(event) if self._checked else 0) + event
        words[STATE] = self._head << 29 | end >> 3  # from here on the event survives if the process is killed
        self._tail = end
        self.waiting += 1
        self.size += size
        return True

    def _wrap_around(self, length: int) -> bool:
        """Wrap around: the next record goes to the beginning of the ring. False if it does not fit there."""
        tail = self._tail
        if tail < self._head or length > self._head - UNIT:
            return False
        if tail < self.slot.capacity:
            self._memory[self._base + tail : self._base + tail + UNIT] = _pack(_WRAP, 0)
        self._limit = self._head - UNIT
        self._used = self.slot.capacity
        return True

    def pop(self) -> bytes:
        """Remove and return the oldest event that is not in flight. There must be one."""
        self._skip_wrap()
        event = self._read(self._base + self._head)
        self._advance(self._head + _record(event), 1)
        self.size -= len(event)
        return event

    def take(self, max_items: int, max_bytes: int) -> list[bytes]:
        """The batch in flight or, if there is none, the next one. ``max_bytes`` includes a comma after each event."""
        if not self._area.next_batch() and self._head != self._tail:
            self._fill_in_flight(max_items, max_bytes)
        return self._area.batch

    @property
    def batch(self) -> list[bytes]:
        """The events of the batch in flight."""
        return self._area.batch

    def in_flight(self) -> list[bytes]:
        """The events of the batch in flight and of the parts split off from it."""
        return self._area.events()

    def halve(self) -> None:
        """Split the batch in flight: its first half becomes the batch, its second half the next one."""
        self._area.halve()

    def settle(self) -> list[bytes]:
        """Remove and return the batch in flight."""
        batch = self._area.settle()
        if not self.is_taken_over():
            self._words[IN_FLIGHT] = _word(*self._area.span)
        self.size -= sum(map(len, batch))
        self.in_flight_count = sum(map(len, self._area.later))
        if self.is_empty():
            self.size = self.waiting = 0  # a signal handler may have raised between a write and the update of these
        return batch

    def clear(self) -> list[bytes]:
        """Remove and return all events."""
        if self.is_empty():
            return []
        if self.is_taken_over():
            self._forget()
            return []
        events = self._area.events()
        while self._head != self._tail:
            events.append(self.pop())
        self._words[IN_FLIGHT] = self._words[STATE] = 0
        self._forget()
        return events

    def detach(self) -> None:
        """Forget all events. They stay in memory for the process that claims the slot after its release."""
        if not self.is_taken_over():
            self._words[EPOCH] = 0
        self._forget()

    def trim(self) -> None:
        """Return memory to the system if the ring is empty and has grown large."""
        if self.is_empty() and not self.is_taken_over():
            if self._used > KEPT:
                self.slot.trim(self._base + KEPT, self._base + self._used)
            area = self._area
            if area.used > KEPT:
                self.slot.trim(area.base, area.base + area.used)
            self._used = area.used = 0

    def _fill_in_flight(self, max_items: int, max_bytes: int) -> None:
        self._skip_wrap()
        start = position = self._head
        end = self._tail if self._tail > start else self.slot.capacity
        base, memory = self._base, self._memory
        batch: list[bytes] = []
        while position < end and len(batch) < max_items:
            size, _ = _unpack_from(memory, base + position)
            if size == _WRAP:
                break
            max_bytes -= size + 1
            after = position + ((size + 15) & -8)
            if batch and (max_bytes < 0 or after - start > self.slot.in_flight_size):
                break
            record = base + position + UNIT
            batch.append(memory[record : record + size])
            position = after
        if type(memory) is bytearray:  # whose slices are not bytes, as those of an `mmap` are
            batch = list(map(bytes, batch))
        length = position - start
        records = memory[base + start : base + position]
        area = self._area
        memory[area.base : area.base + length] = records
        area.span = (0, length)
        area.used = max(area.used, length)
        self._words[IN_FLIGHT] = _word(0, length)
        area.batch = batch  # before it leaves the ring, because a signal handler may raise in between
        self.in_flight_count = len(batch)
        self._advance(position, len(batch))

    def _advance(self, head: int, events: int) -> None:
        """Remove ``events`` events, which end at the offset ``head``."""
        tail = self._tail
        self._used = max(self._used, tail)
        if head == tail:
            head = tail = 0  # start again at the beginning, so that a mostly empty ring uses few pages
            self._limit = self.slot.capacity
        elif tail < head:
            self._limit = head - UNIT
        self._words[STATE] = _word(head, tail)
        self._head, self._tail = head, tail
        self.waiting -= events

    def _skip_wrap(self) -> None:
        if self._head == self.slot.capacity or self._is_wrap(self._head):
            self._head = 0
            self._limit = self.slot.capacity

    def _is_wrap(self, position: int) -> bool:
        return bool(_unpack_from(self._memory, self._base + position)[0] == _WRAP)

    def _read(self, start: int) -> bytes:
        size = _unpack_from(self._memory, start)[0]
        return bytes(self._memory[start + UNIT : start + UNIT + size])

    # Recovery of what an ended process left.

    @classmethod
    def recovered_from(cls, slot: Slot) -> tuple[Ring, str]:
        """The ring that the slot's previous process left, and a description of damage if there is any.

        A damaged ring contains the events before the first corrupt record.
        """
        spans = _span(slot.words[STATE]), _span(slot.words[IN_FLIGHT])
        ring = cls.__new__(cls)
        ring._lay_out(slot)
        return ring, ring._load(*spans)

    def _load(self, ring: tuple[int, int], in_flight: tuple[int, int]) -> str:
        self._head = self._tail = ring[0]
        wrong = ""
        try:
            for after, event in self._verified(self._base, self.slot.capacity, *ring):
                self._tail = after
                self.waiting += 1
                self.size += len(event)
        except ValueError as problem:
            wrong = str(problem)
            self.unreadable += self._count(self._base, self.slot.capacity, self._tail, ring[1])
        if self._head == self._tail:
            self._head = self._tail = 0  # a corrupt word may have pointed anywhere
        self._limit = self._head - UNIT if self._tail < self._head else self.slot.capacity
        if not self._was_killed_in_take(*in_flight):
            batch: list[bytes] = []
            position = in_flight[0]
            try:
                for after, event in self._verified(self._area.base, self.slot.in_flight_size, *in_flight):
                    position = after
                    self._area.span = in_flight[0], after
                    batch.append(event)
                    self._area.later = [batch]
                    self.in_flight_count += 1
                    self.size += len(event)
            except ValueError as problem:
                wrong = wrong or str(problem)
                self.unreadable += self._count(self._area.base, self.slot.in_flight_size, position, in_flight[1])
        # Events in both areas stay only in the ring; otherwise `pop` would not reach them. Corrupt records are removed;
        # otherwise each scan would find them again.
        self._words[IN_FLIGHT] = _word(*self._area.span)
        self._words[STATE] = _word(self._head, self._tail)
        return wrong

    def _verified(self, base: int, capacity: int, position: int, end: int) -> Iterator[tuple[int, bytes]]:
        """Yield the end and the bytes of each event between two positions. Raises `ValueError` at a corrupt record."""
        for start, after, checksum in self._records(base, capacity, position, end):
            event = self._read(base + start)
            if self._checked and crc32(event) != checksum:
                raise ValueError("a checksum is wrong")
            yield after, event

    def _count(self, base: int, capacity: int, position: int, end: int) -> int:
        """Estimate the number of records between two positions, the first of which is corrupt."""
        count = 0
        try:
            for _ in self._records(base, capacity, position, end):
                count += 1
        except ValueError:
            count += 1  # the start of the next one cannot be determined
        return max(1, count)

    def _records(self, base: int, capacity: int, position: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield start, end and checksum of each record between two positions."""
        wraps = end < position
        if max(position, end) > capacity or (wraps and base == self._area.base):
            raise ValueError("a word points outside of the ring")
        while position != end:
            limit = capacity if wraps else end
            size, checksum = _unpack_from(self._memory, base + position) if position < limit else (_WRAP, 0)
            if size == _WRAP and wraps:
                position, wraps = 0, False
                continue
            after = position + _padded(UNIT + size)
            if not size or after > limit or after - position > self.slot.in_flight_size:
                raise ValueError(f"a record of {size:,} bytes does not fit")
            yield position, after, checksum
            position = after

    def _was_killed_in_take(self, start: int, end: int) -> bool:
        """True if the batch in flight is still in the ring too."""
        if not (start < end <= self.slot.in_flight_size and self.waiting):
            return False
        self._skip_wrap()
        waiting = self._base + self._head
        taken = self._memory[self._area.base + start : self._area.base + end]
        return bool(taken and taken == self._memory[waiting : waiting + len(taken)])
