"""A queue of encoded events in one piece of memory, which another process can go on reading.

Lives here: `Ring`, the layout of its memory, and what a kill at any instant leaves. Never here: where the memory comes
from and whose it is (a `Slot` says so), bounds, counters, locks.

    memory   [ ring: the records that wait, around its end ][ hand: the records of the batch that is being sent ]
    record   [ size: 4 bytes ][ CRC-32 or 0: 4 bytes ][ the event, filled up to a multiple of 8 ]
    words    STATE: from where to where the records of the ring are.  HAND: those of the hand.  In units of 8 bytes.
             OWNER: a number that whoever uses the memory has drawn.

A record is written before the word that covers it, and a word is stored by one instruction. So at any instant the words
cover whole records, and the process that writes may be killed at any. Killed in the middle of a `take` it leaves the
batch in both parts, which can be seen.
"""

from __future__ import annotations

from binascii import crc32
from struct import Struct

from ._random import random_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterator, Protocol

    class Slot(Protocol):
        """A piece of memory and who may use it: until `release`, or until it is forgotten, nobody else."""

        kind: str
        memory: Any  # an `mmap` or a bytearray
        words: Any  # WORDS words of 8 bytes
        base: int  # where the ring begins in the memory
        room: int  # bytes of the ring; the hand comes after it
        hand: int  # bytes of the hand
        lasts: bool  # what it holds at this process's end will be found
        checked: bool  # records carry a checksum: what may be spoilt between two processes

        def is_own(self) -> bool:
            """False when the lock that keeps others away was lost, as by somebody who closed its descriptor."""

        def has_heirs(self) -> bool:
            """True while another process goes on that will find what it holds when it is released."""

        def mark_leaving(self, leaves: bool) -> None:
            """Tell those others whether its process, whose own events lie here, delivers no more what they leave."""

        def release(self) -> None:
            """Let others have it. What it still holds is theirs."""

        def spoil(self) -> None:
            """Note that what it holds cannot be read from some point on."""

        def trim(self, start: int, end: int) -> None:
            """Let the system have these bytes of the memory, which hold nothing."""

        def sync(self) -> None:
            """Return when what was written would survive a loss of power, where that was asked for."""


STATE, HAND, OWNER = range(3)
WORDS = 3
UNIT = 8  # bytes that every position is a multiple of, and the size of a record's header
LARGEST = 1 << 34  # bytes that 31 bits of units can address
KEPT = 65_536  # bytes that an empty ring does not give back
_WRAP = 0xFFFFFFFF  # in place of a size: the next record is at the beginning
_header = Struct("<II")
_pack = _header.pack


def rooms(event_bytes: int, events: int, batch_items: int, batch_bytes: int) -> tuple[int, int]:
    """The bytes of a ring that never lacks room below these bounds, however it lies, and of a hand for any batch."""
    frames = 2 * UNIT  # of a record: its header, and what fills it up
    return (
        _padded(event_bytes + events * frames + batch_bytes + 2 * frames),
        _padded(batch_bytes + (batch_items + 1) * frames),
    )


def _padded(size: int) -> int:
    return (size + UNIT - 1) & -UNIT


def _record(event: bytes) -> int:
    return _padded(UNIT + len(event))


def _word(start: int, end: int) -> int:
    return start << 29 | end >> 3


def _span(word: int) -> tuple[int, int]:
    return (word >> 32) << 3, (word & 0xFFFFFFFF) << 3


def holds_events(words: Any, at: int = 0) -> bool:
    """True when the words of a ring, which begin at ``at``, cover a record."""
    state, hand = words[at + STATE], words[at + HAND]
    return bool(state >> 32 != state & 0xFFFFFFFF or hand >> 32 != hand & 0xFFFFFFFF)


class Ring:
    """First in, first out. For one process, whose caller sees to it that one thread at a time is inside."""

    def __init__(self, slot: Slot) -> None:
        """An empty ring in ``slot``. `left_in` is the other way to make one."""
        self._lay_out(slot)
        self._words[HAND] = self._words[STATE] = 0

    def _lay_out(self, slot: Slot) -> None:
        self.slot = slot
        self._memory = slot.memory
        self._words = slot.words
        self._checked = slot.checked
        self._base = slot.base
        self._room = slot.room
        self._hand_base = slot.base + slot.room
        self._token = slot.words[OWNER] = int.from_bytes(random_bytes(8), "big")
        self._used = slot.room  # what records have lain in since memory was given back: all, by who was here before
        self._hand_used = slot.hand
        self.unreadable = 0  # events that the last process left and that cannot be read, as far as one can count them
        self._forget()

    def _forget(self) -> None:
        self._head = self._tail = 0  # within the ring; equal when nothing waits there
        self._limit = self._room  # where the next record must end at the latest
        self._in_hand = (0, 0)  # from where to where in the hand
        self.batch: list[bytes] = []  # in hand, and being sent
        self._next: list[list[bytes]] = []  # in hand, split off from the batch: what comes first stands last
        self.waiting = 0  # events that are not in hand
        self.held = 0  # events that are
        self.size = 0  # bytes of all events

    def is_lost(self) -> bool:
        """True when somebody else uses the memory, because our lock was lost: what was here is theirs."""
        try:
            return bool(self._words[OWNER] != self._token)
        except ValueError:
            return True  # it was let go of, and closed

    def __len__(self) -> int:
        return self.waiting + self.held

    def is_empty(self) -> bool:
        return self._head == self._tail and not self.batch and not self._next

    def has_batches(self) -> bool:
        """True while something is in hand."""
        return bool(self.batch or self._next)

    def append(self, event: bytes) -> bool:
        """Add ``event``; False when there is no room, or the memory is lost."""
        size = len(event)
        tail = self._tail
        end = tail + ((size + 15) & -8)  # `_record`, in the one place where a call counts
        words = self._words
        if end > self._limit or words[OWNER] != self._token:
            if self.is_lost() or not self._go_round(end - tail):
                return False
            tail, end = 0, end - tail
        start = self._base + tail
        self._memory[start : start + UNIT + size] = _pack(size, crc32(event) if self._checked else 0) + event
        words[STATE] = self._head << 29 | end >> 3  # from here on the event outlives the process
        self._tail = end
        self.waiting += 1
        self.size += size
        return True

    def _go_round(self, length: int) -> bool:
        """Have the next record begin where the ring begins; False when it has no room there."""
        tail = self._tail
        if tail < self._head or length > self._head - UNIT:
            return False
        if tail < self._room:
            self._memory[self._base + tail : self._base + tail + UNIT] = _pack(_WRAP, 0)
        self._limit = self._head - UNIT
        self._used = self._room
        return True

    def pop(self) -> bytes:
        """Remove and return the oldest event that is not in hand. There must be one."""
        self._skip_wrap()
        event = self._read(self._base + self._head)
        self._advance(self._head + _record(event), 1)
        self.size -= len(event)
        return event

    def take(self, max_items: int, max_bytes: int) -> list[bytes]:
        """The batch in hand, or the next one. ``max_bytes`` counts a comma after each event."""
        if not self.batch:
            if self._next:
                self.batch, self._next = self._next[-1], self._next[:-1]
            elif self._head != self._tail:
                self._fill_hand(max_items, max_bytes)
        return self.batch

    def in_hand(self) -> list[bytes]:
        """The events of the batch in hand, and of what was split off from it."""
        return self.batch + [event for part in self._next for event in part]

    def halve(self) -> None:
        """Have the first half of the batch in hand be the batch, and the rest the next one."""
        keep = len(self.batch) // 2
        self._next, self.batch = [*self._next, self.batch[keep:]], self.batch[:keep]

    def settle(self) -> list[bytes]:
        """Remove and return the batch in hand."""
        batch, self.batch = self.batch, []
        start, end = self._in_hand
        self._in_hand = (start + sum(map(_record, batch)), end) if self._next else (0, 0)
        if not self.is_lost():
            self._words[HAND] = _word(*self._in_hand)
        self.size -= sum(map(len, batch))
        self.held = sum(map(len, self._next))
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
        events = [event for part in (self.batch, *reversed(self._next)) for event in part]
        while self._head != self._tail:
            events.append(self.pop())
        self._words[HAND] = self._words[STATE] = 0
        self._forget()
        return events

    def detach(self) -> None:
        """Forget all events, which stay in the memory for whoever gets the slot when it is released."""
        if not self.is_lost():
            self._words[OWNER] = 0
        self._forget()

    def trim(self) -> None:
        """Give memory back, if the ring is empty and has been large."""
        if self.is_empty() and not self.is_lost():
            if self._used > KEPT:
                self.slot.trim(self._base + KEPT, self._base + self._used)
            if self._hand_used > KEPT:
                self.slot.trim(self._hand_base, self._hand_base + self._hand_used)
            self._used = self._hand_used = 0

    def _fill_hand(self, max_items: int, max_bytes: int) -> None:
        self._skip_wrap()
        start = position = self._head
        end = self._tail if self._tail > start else self._room
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
        memory[self._hand_base : self._hand_base + length] = held
        self._in_hand = (0, length)
        self._hand_used = max(self._hand_used, length)
        self._words[HAND] = _word(0, length)
        self.batch = batch  # before it leaves the ring: a signal handler's exception may come in between
        self.held = len(batch)
        self._advance(position, len(batch))

    def _advance(self, head: int, events: int) -> None:
        """Forget ``events``, which lie before ``head``."""
        tail = self._tail
        self._used = max(self._used, tail)
        if head == tail:
            head = tail = 0  # begin anew, so that a ring which is mostly empty uses few pages
            self._limit = self._room
        elif tail < head:
            self._limit = head - UNIT
        self._words[STATE] = _word(head, tail)
        self._head, self._tail = head, tail
        self.waiting -= events

    def _skip_wrap(self) -> None:
        if self._head == self._room or self._is_wrap(self._head):
            self._head = 0
            self._limit = self._room

    def _is_wrap(self, position: int) -> bool:
        return bool(_header.unpack_from(self._memory, self._base + position)[0] == _WRAP)

    def _read(self, start: int) -> bytes:
        size = _header.unpack_from(self._memory, start)[0]
        return bytes(self._memory[start + UNIT : start + UNIT + size])

    # What a dead process left.

    @classmethod
    def left_in(cls, slot: Slot) -> tuple[Ring, str]:
        """The ring that the slot's last process left, and what is wrong with it: then it ends before that."""
        spans = _span(slot.words[STATE]), _span(slot.words[HAND])
        ring = cls.__new__(cls)
        ring._lay_out(slot)
        return ring, ring._load(*spans)

    def _load(self, ring: tuple[int, int], hand: tuple[int, int]) -> str:
        self._head = self._tail = ring[0]
        wrong = ""
        try:
            for after, event in self._verified(self._base, self._room, *ring):
                self._tail = after
                self.waiting += 1
                self.size += len(event)
        except ValueError as problem:
            wrong = str(problem)
            self.unreadable += self._count(self._base, self._room, self._tail, ring[1])
        self._limit = self._head - UNIT if self._tail < self._head else self._room
        if not self._was_killed_in_take(*hand):
            held: list[bytes] = []
            position = hand[0]
            try:
                for after, event in self._verified(self._hand_base, self.slot.hand, *hand):
                    position = after
                    self._in_hand = hand[0], after
                    held.append(event)
                    self._next = [held]
                    self.held += 1
                    self.size += len(event)
            except ValueError as problem:
                wrong = wrong or str(problem)
                self.unreadable += self._count(self._hand_base, self.slot.hand, position, hand[1])
        # What is in both parts is in the ring alone from now on, or a `pop` would not reach it. What cannot be read is
        # forgotten, or each look would find it anew.
        self._words[HAND] = _word(*self._in_hand)
        self._words[STATE] = _word(self._head, self._tail)
        return wrong

    def _verified(self, base: int, room: int, position: int, end: int) -> Iterator[tuple[int, bytes]]:
        """The events between two positions, and where each ends; `ValueError` where there is none."""
        for start, after, checksum in self._records(base, room, position, end):
            event = self._read(base + start)
            if self._checked and crc32(event) != checksum:
                raise ValueError("a checksum is wrong")
            yield after, event

    def _count(self, base: int, room: int, position: int, end: int) -> int:
        """How many records seem to lie between two positions, at the first of which is one that cannot be read."""
        count = 0
        try:
            for _ in self._records(base, room, position, end):
                count += 1
        except ValueError:
            count += 1  # where the next one begins is not to be known
        return max(1, count)

    def _records(self, base: int, room: int, position: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Where the records between two positions begin and end, and their checksums."""
        goes_round = end < position
        if max(position, end) > room or (goes_round and base == self._hand_base):
            raise ValueError("it points outside of itself")
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
        """True when what is in hand still waits as well."""
        if start == end or not self.waiting:
            return False
        self._skip_wrap()
        waits = self._base + self._head
        held = self._memory[self._hand_base + start : self._hand_base + end]
        return bool(held and held == self._memory[waits : waits + len(held)])
