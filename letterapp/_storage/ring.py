"""A ring buffer of encoded events in one piece of memory, which another process can continue to read.

Responsible for: `Ring`, the layout of its memory, what remains if the process is killed at any instant. Not responsible
for: where the memory comes from and whose it is (`Slot`), bounds, counters, locks.

    memory   [ ring: the records that wait, wrapping around ][ in-flight area: the records of the batch being sent ]
    record   [ size: 4 bytes ][ CRC-32 or 0: 4 bytes ][ the event, padded to a multiple of 8 ]
    words    STATE: start and end of the records in the ring.  IN_FLIGHT: those in the in-flight area.  In units of 8
    bytes.
             OWNER: a random number, drawn by whoever uses the memory.

A record is written before the word that covers it, and a word is stored by one instruction. So the words always cover
whole records, at whatever instant the process is killed. If it is killed during `take`, the batch is in both parts,
which can be detected.
"""

from __future__ import annotations

from binascii import crc32
from struct import Struct

from .._runtime.random_bytes import random_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterator, Protocol

    class Slot(Protocol):
        """A piece of memory, for this process's exclusive use until `release`, or until the object is deleted."""

        kind: str
        memory: Any  # an `mmap` or a bytearray
        words: Any  # WORDS words of 8 bytes
        base: int  # where the ring begins in the memory
        room: int  # bytes of the ring; the in-flight area follows it
        hand: int  # bytes of the in-flight area
        is_durable: bool  # what it holds when this process ends will be found
        checked: bool  # records have a checksum, because the memory may be damaged

        def is_own(self) -> bool:
            """False when the lock was lost, for instance because somebody closed its descriptor."""

        def has_successor(self) -> bool:
            """True while another process goes on that will find what this slot holds when it is released."""

        def mark_exiting(self, leaves: bool) -> None:
            """Tell the others whether this process, whose own slot this is, no longer delivers what they leave."""

        def release(self) -> None:
            """Let others use it. What it still holds is theirs."""

        def mark_corrupt(self) -> None:
            """Note that its contents cannot be read from some point on."""

        def trim(self, start: int, end: int) -> None:
            """Return these bytes of memory, which hold nothing, to the system."""

        def sync(self) -> None:
            """Return when what was written would survive a power loss, if that was asked for."""


STATE, IN_FLIGHT, OWNER = range(3)
WORDS = 3
UNIT = 8  # every position is a multiple of it, and a record's header has this size, in bytes
LARGEST = 1 << 34  # bytes that 31 bits of units can address
KEPT = 65_536  # bytes that an empty ring does not return to the system
_WRAP = 0xFFFFFFFF  # in place of a size: the next record is at the beginning of the ring
_header = Struct("<II")
_pack = _header.pack


def rooms(event_bytes: int, events: int, batch_items: int, batch_bytes: int) -> tuple[int, int]:
    """Bytes of a ring that has room for these bounds wherever it wraps, and of an in-flight area for any batch."""
    frames = 2 * UNIT  # of a record: its header and its padding
    return (
        _padded(event_bytes + events * frames + batch_bytes + 2 * frames),
        _padded(batch_bytes + (batch_items + 1) * frames),
    )


def are_rooms(room: int, hand: int) -> bool:
    """True when `rooms` may have returned these: a ring of that size stays within its memory."""
    return 0 < room <= LARGEST and 0 < hand <= LARGEST and not (room % UNIT or hand % UNIT)


def _padded(size: int) -> int:
    return (size + UNIT - 1) & -UNIT


def _record(event: bytes) -> int:
    return _padded(UNIT + len(event))


def _word(start: int, end: int) -> int:
    return start << 29 | end >> 3


def _span(word: int) -> tuple[int, int]:
    return (word >> 32) << 3, (word & 0xFFFFFFFF) << 3


def holds_events(words: Any, at: int = 0) -> bool:
    """True when the words of a ring, which begin at index ``at``, cover a record."""
    state, hand = words[at + STATE], words[at + IN_FLIGHT]
    return bool(state >> 32 != state & 0xFFFFFFFF or hand >> 32 != hand & 0xFFFFFFFF)


def bytes_in(slot: Slot) -> int:
    """Bytes of the records in ``slot``, according to its words; reads no record."""
    (start, end), held = _span(slot.words[STATE]), _span(slot.words[IN_FLIGHT])
    return (end - start) % slot.room + held[1] - held[0]


class _InFlightArea:
    """The batch being sent, and what was split off from it, in the part of the memory that follows the ring."""

    def __init__(self, base: int, size: int) -> None:
        self.base = base
        self.used = size  # bytes that were used since memory was last returned: all, by the previous process
        self.clear()

    def clear(self) -> None:
        self.span = (0, 0)  # start and end of the records within the area
        self.batch: list[bytes] = []  # being sent
        self.later: list[list[bytes]] = []  # split off from it: the next one is last

    def is_empty(self) -> bool:
        return not (self.batch or self.later)

    def events(self) -> list[bytes]:
        """All events, in the order in which they were queued."""
        return [event for part in (self.batch, *reversed(self.later)) for event in part]

    def next_batch(self) -> list[bytes]:
        """The batch being sent, or the next part of what was split off."""
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
    """First in, first out. For one process; its caller ensures that one thread at a time uses it."""

    def __init__(self, slot: Slot) -> None:
        """An empty ring in ``slot``. `recovered_from` is the other way to make one."""
        self._lay_out(slot)
        self._words[IN_FLIGHT] = self._words[STATE] = 0

    def _lay_out(self, slot: Slot) -> None:
        self.slot = slot
        self._memory = slot.memory
        self._words = slot.words
        self._checked = slot.checked
        self._base = slot.base
        self.largest = slot.hand - UNIT  # bytes of an event that can be taken in hand
        self._token = slot.words[OWNER] = int.from_bytes(random_bytes(8), "big")
        self._used = slot.room  # bytes that were used since memory was last returned: all, by the previous process
        self._area = _InFlightArea(slot.base + slot.room, slot.hand)
        self.unreadable = 0  # events that the previous process left and that cannot be read, as far as can be counted
        self._forget()

    def _forget(self) -> None:
        self._head = self._tail = 0  # within the ring; equal when nothing waits
        self._limit = self.slot.room  # the next record must end here at the latest
        self._area.clear()
        self.waiting = 0  # events that are not in flight
        self.held = 0  # events that are
        self.size = 0  # bytes of all events

    def is_lost(self) -> bool:
        """True when somebody else uses the memory, because our lock was lost. What was here is theirs."""
        try:
            return bool(self._words[OWNER] != self._token)
        except ValueError:
            return True  # it was released, and closed

    def __len__(self) -> int:
        return self.waiting + self.held

    def is_empty(self) -> bool:
        return self._head == self._tail and self._area.is_empty()

    def has_batches(self) -> bool:
        """True while something is in flight."""
        return not self._area.is_empty()

    def append(self, event: bytes) -> bool:
        """Add ``event``; False when there is no room, it is too large ever to be sent, or the memory is lost."""
        size = len(event)
        tail = self._tail
        end = tail + ((size + 15) & -8)  # `_record`, inlined: this is on the path of every call
        words = self._words
        if end > self._limit or size > self.largest or words[OWNER] != self._token:
            if size > self.largest or self.is_lost() or not self._go_round(end - tail):
                return False
            tail, end = 0, end - tail
        start = self._base + tail
        self._memory[start : start + UNIT + size] = _pack(size, crc32(event) if self._checked else 0) + event
        words[STATE] = self._head << 29 | end >> 3  # from now on the event survives the process
        self._tail = end
        self.waiting += 1
        self.size += size
        return True

    def _go_round(self, length: int) -> bool:
        """Wrap around, so that the next record is at the beginning of the ring; False if it has no room there."""
        tail = self._tail
        if tail < self._head or length > self._head - UNIT:
            return False
        if tail < self.slot.room:
            self._memory[self._base + tail : self._base + tail + UNIT] = _pack(_WRAP, 0)
        self._limit = self._head - UNIT
        self._used = self.slot.room
        return True

    def pop(self) -> bytes:
        """Remove and return the oldest event that is not in flight. There must be one."""
        self._skip_wrap()
        event = self._read(self._base + self._head)
        self._advance(self._head + _record(event), 1)
        self.size -= len(event)
        return event

    def take(self, max_items: int, max_bytes: int) -> list[bytes]:
        """The batch in flight, or else the next one. ``max_bytes`` counts a comma after each event."""
        if not self._area.next_batch() and self._head != self._tail:
            self._fill_in_flight(max_items, max_bytes)
        return self._area.batch

    @property
    def batch(self) -> list[bytes]:
        """The events of the batch in flight."""
        return self._area.batch

    def in_flight(self) -> list[bytes]:
        """The events of the batch in flight, and of what was split off from it."""
        return self._area.events()

    def halve(self) -> None:
        """Split the batch in flight: its first half is the batch now, the rest the next one."""
        self._area.halve()

    def settle(self) -> list[bytes]:
        """Remove and return the batch in flight."""
        batch = self._area.settle()
        if not self.is_lost():
            self._words[IN_FLIGHT] = _word(*self._area.span)
        self.size -= sum(map(len, batch))
        self.held = sum(map(len, self._area.later))
        if self.is_empty():
            self.size = self.waiting = 0  # an exception from a signal handler may have come between a write and its sum
        return batch

    def clear(self) -> list[bytes]:
        """Remove and return all events."""
        if self.is_empty():
            return []
        if self.is_lost():
            self._forget()
            return []
        events = self._area.events()
        while self._head != self._tail:
            events.append(self.pop())
        self._words[IN_FLIGHT] = self._words[STATE] = 0
        self._forget()
        return events

    def detach(self) -> None:
        """Forget all events. They stay in the memory, for whoever gets the slot when it is released."""
        if not self.is_lost():
            self._words[OWNER] = 0
        self._forget()

    def trim(self) -> None:
        """Return memory to the system, if the ring is empty and has been large."""
        if self.is_empty() and not self.is_lost():
            if self._used > KEPT:
                self.slot.trim(self._base + KEPT, self._base + self._used)
            area = self._area
            if area.used > KEPT:
                self.slot.trim(area.base, area.base + area.used)
            self._used = area.used = 0

    def _fill_in_flight(self, max_items: int, max_bytes: int) -> None:
        self._skip_wrap()
        start = position = self._head
        end = self._tail if self._tail > start else self.slot.room
        base, memory = self._base, self._memory
        batch: list[bytes] = []
        while position < end and len(batch) < max_items:
            size = _header.unpack_from(memory, base + position)[0]
            if size == _WRAP:
                break
            max_bytes -= size + 1
            after = position + ((size + 15) & -8)
            if batch and (max_bytes < 0 or after - start > self.slot.hand):
                break
            record = base + position + UNIT
            batch.append(bytes(memory[record : record + size]))
            position = after
        length = position - start
        held = memory[base + start : base + position]
        area = self._area
        memory[area.base : area.base + length] = held
        area.span = (0, length)
        area.used = max(area.used, length)
        self._words[IN_FLIGHT] = _word(0, length)
        area.batch = batch  # before it leaves the ring: an exception of a signal handler may come in between
        self.held = len(batch)
        self._advance(position, len(batch))

    def _advance(self, head: int, events: int) -> None:
        """Forget ``events``, which lie before ``head``."""
        tail = self._tail
        self._used = max(self._used, tail)
        if head == tail:
            head = tail = 0  # start at the beginning again, so that a ring that is mostly empty uses few pages
            self._limit = self.slot.room
        elif tail < head:
            self._limit = head - UNIT
        self._words[STATE] = _word(head, tail)
        self._head, self._tail = head, tail
        self.waiting -= events

    def _skip_wrap(self) -> None:
        if self._head == self.slot.room or self._is_wrap(self._head):
            self._head = 0
            self._limit = self.slot.room

    def _is_wrap(self, position: int) -> bool:
        return bool(_header.unpack_from(self._memory, self._base + position)[0] == _WRAP)

    def _read(self, start: int) -> bytes:
        size = _header.unpack_from(self._memory, start)[0]
        return bytes(self._memory[start + UNIT : start + UNIT + size])

    # What an ended process left.

    @classmethod
    def recovered_from(cls, slot: Slot) -> tuple[Ring, str]:
        """The ring that the slot's previous process left, and what is wrong with it: it ends before that then."""
        spans = _span(slot.words[STATE]), _span(slot.words[IN_FLIGHT])
        ring = cls.__new__(cls)
        ring._lay_out(slot)
        return ring, ring._load(*spans)

    def _load(self, ring: tuple[int, int], hand: tuple[int, int]) -> str:
        self._head = self._tail = ring[0]
        wrong = ""
        try:
            for after, event in self._verified(self._base, self.slot.room, *ring):
                self._tail = after
                self.waiting += 1
                self.size += len(event)
        except ValueError as problem:
            wrong = str(problem)
            self.unreadable += self._count(self._base, self.slot.room, self._tail, ring[1])
        if self._head == self._tail:
            self._head = self._tail = 0  # the word may have pointed anywhere
        self._limit = self._head - UNIT if self._tail < self._head else self.slot.room
        if not self._was_killed_in_take(*hand):
            held: list[bytes] = []
            position = hand[0]
            try:
                for after, event in self._verified(self._area.base, self.slot.hand, *hand):
                    position = after
                    self._area.span = hand[0], after
                    held.append(event)
                    self._area.later = [held]
                    self.held += 1
                    self.size += len(event)
            except ValueError as problem:
                wrong = wrong or str(problem)
                self.unreadable += self._count(self._area.base, self.slot.hand, position, hand[1])
        # What is in both parts is in the ring only from now on, or `pop` would not reach it. What cannot be read is
        # forgotten, or each look would find it again.
        self._words[IN_FLIGHT] = _word(*self._area.span)
        self._words[STATE] = _word(self._head, self._tail)
        return wrong

    def _verified(self, base: int, room: int, position: int, end: int) -> Iterator[tuple[int, bytes]]:
        """The events between two positions, and where each ends; `ValueError` if there is no valid one."""
        for start, after, checksum in self._records(base, room, position, end):
            event = self._read(base + start)
            if self._checked and crc32(event) != checksum:
                raise ValueError("a checksum is wrong")
            yield after, event

    def _count(self, base: int, room: int, position: int, end: int) -> int:
        """How many records there seem to be between two positions, the first of which cannot be read."""
        count = 0
        try:
            for _ in self._records(base, room, position, end):
                count += 1
        except ValueError:
            count += 1  # where the next one begins cannot be known
        return max(1, count)

    def _records(self, base: int, room: int, position: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Where the records between two positions begin and end, and their checksums."""
        goes_round = end < position
        if max(position, end) > room or (goes_round and base == self._area.base):
            raise ValueError("a word points outside of the ring")
        while position != end:
            limit = room if goes_round else end
            size, checksum = _header.unpack_from(self._memory, base + position) if position < limit else (_WRAP, 0)
            if size == _WRAP and goes_round:
                position, goes_round = 0, False
                continue
            after = position + _padded(UNIT + size)
            if not size or after > limit or after - position > self.slot.hand:
                raise ValueError(f"a record of {size:,} bytes does not fit")
            yield position, after, checksum
            position = after

    def _was_killed_in_take(self, start: int, end: int) -> bool:
        """True when what is in flight still waits as well."""
        if not (start < end <= self.slot.hand and self.waiting):
            return False
        self._skip_wrap()
        waits = self._base + self._head
        held = self._memory[self._area.base + start : self._area.base + end]
        return bool(held and held == self._memory[waits : waits + len(held)])
