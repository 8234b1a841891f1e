"""The ring by itself: how it lies in memory, and what another process finds there when its own was killed.

A kill is played by looking at the memory from outside at every store, and in the middle of each: a process writes in
the order of its program, so it leaves one of these states and no other.
"""

from __future__ import annotations

import struct
import sys
from binascii import crc32
from itertools import count
from typing import Any, Callable, Iterable, Iterator

import pytest
from driven import Slot
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from letterapp._storage import ring as ring_module
from letterapp._storage.ring import IN_FLIGHT, KEPT, STATE, UNIT, Ring, holds_events, rooms

WRAP = b"\xff\xff\xff\xff"
EMPTY = struct.pack("<II", 0, 0)


def copy(slot: Slot) -> Slot:
    """What another process sees."""
    other = Slot(slot.room, slot.hand)
    other.memory[:] = slot.memory
    other.words[:] = slot.words
    return other


def drain(ring: Ring, items: int = 3, size: int = 1000) -> list[bytes]:
    """All that waits, as a sender gets it."""
    events: list[bytes] = []
    for _ in range(1000):
        batch = list(ring.take(items, size))
        if not batch:
            assert ring.is_empty() and len(ring) == 0 and ring.size == 0
            return events
        assert ring.settle() == batch
        events += batch
    raise AssertionError("it has no end")


def found(slot: Slot) -> tuple[list[bytes], str]:
    """What would be found if the process were killed now, and what would be said to be wrong."""
    ring, wrong = Ring.recovered_from(copy(slot))
    count, size = len(ring), ring.size
    events = drain(ring)
    assert (count, size) == (len(events), sum(map(len, events)))
    return events, wrong


def record(event: bytes) -> bytes:
    data = struct.pack("<II", len(event), crc32(event)) + event
    return data + bytes(-len(data) % UNIT)


def numbered(serial: int, size: int = 8) -> bytes:
    return (b"%08d" % serial).ljust(size, b"x")


def filled(ring: Ring, *sizes: int, start: int = 0) -> list[bytes]:
    events = [numbered(serial, size) for serial, size in enumerate(sizes, start)]
    assert all([ring.append(event) for event in events])
    return events


def cover(start: int, end: int) -> int:
    return start // UNIT << 32 | end // UNIT


# The layout.


def test_a_record_is_its_size_its_checksum_and_the_event_filled_up() -> None:
    slot = Slot(160, 80)
    ring = Ring(slot)
    first, second = filled(ring, 13, 16)
    assert slot.memory.startswith(record(first) + record(second) + bytes(80))
    assert slot.words[:2] == [cover(0, 24 + 24), 0] and len(record(first)) == len(record(second)) == 24
    assert ring.take(1, 1000) == [first]
    assert slot.memory[160:] == record(first) + bytes(56)
    assert slot.words[:2] == [cover(24, 48), cover(0, 24)]
    assert ring.settle() == [first]
    assert slot.words[:2] == [cover(24, 48), 0]


@pytest.mark.parametrize("base", [0, 64])
def test_a_ring_that_begins_within_the_memory_touches_nothing_else(base: int) -> None:
    slot = Slot(base + 96, 48)
    slot.base, slot.room = base, 96
    slot.memory += b"after"
    slot.memory[:base] = b"b" * base
    ring = Ring(slot)
    for serial in range(0, 60, 3):
        events = filled(ring, 8, 9, 15, start=serial)
        assert drain(ring, 2) == events
    assert slot.memory.startswith(b"b" * base) and slot.memory.endswith(b"after")


def test_what_is_empty_begins_anew() -> None:
    slot = Slot(160, 80)
    ring = Ring(slot)
    for _ in range(50):
        filled(ring, 8, 8)
        assert slot.words[STATE] == cover(0, 32)
        drain(ring)
        assert slot.words[:2] == [0, 0] and not holds_events(slot.words)


def test_words_tell_whether_there_are_events() -> None:
    slot = Slot(160, 80)
    ring = Ring(slot)
    assert not holds_events(slot.words)
    filled(ring, 8, 8)
    assert holds_events(slot.words)
    ring.take(2, 1000)
    assert slot.words[STATE] == 0 and holds_events(slot.words)
    ring.halve()
    ring.settle()
    assert holds_events(slot.words)
    ring.settle()
    ring.take(2, 1000)
    ring.settle()
    assert not holds_events(slot.words)
    assert holds_events([9, 9, 1, 0], 2) and not holds_events([1, 1, 0, 0], 2)


# Round the end.


def test_events_that_fill_it_exactly() -> None:
    slot = Slot(6 * 16, 48)
    ring = Ring(slot)
    first = filled(ring, 8, 8, 8, 8, 8, 8)
    assert slot.words[STATE] == cover(0, 96)
    assert not ring.append(numbered(6)) and len(ring) == 6
    assert found(slot) == (first, "")
    assert ring.pop() == first[0]
    assert not ring.append(numbered(6)), "a tail on the head would read as empty"
    assert ring.pop() == first[1]
    second = filled(ring, 8, start=6)
    assert not ring.append(numbered(7))
    assert slot.words[STATE] == cover(32, 16)
    assert found(slot) == (first[2:] + second, "")
    assert drain(ring) == first[2:] + second


def test_what_is_left_before_the_end_is_marked() -> None:
    slot = Slot(80, 48)
    ring = Ring(slot)
    first = filled(ring, 8, 8, 8, 8)
    for event in first[:3]:
        assert ring.pop() == event
    second = filled(ring, 24, start=4)  # 32 bytes, where 16 are left
    assert slot.memory[64:72] == WRAP + bytes(4)
    assert slot.words[STATE] == cover(48, 32)
    assert found(slot) == ([first[3], *second], "")
    assert ring.take(5, 1000) == [first[3]], "a batch ends where the ring does"
    ring.settle()
    assert found(slot) == (second, "")
    assert ring.take(5, 1000) == second


def test_popped_up_to_the_mark() -> None:
    slot = Slot(80, 48)
    ring = Ring(slot)
    first = filled(ring, 8, 8, 8, 8)
    ring.pop(), ring.pop(), ring.pop()
    second = filled(ring, 24, start=4)
    assert ring.pop() == first[3]
    assert slot.words[STATE] == cover(64, 32) and found(slot) == (second, "")
    third = filled(ring, 8, start=5)
    assert found(slot) == (second + third, "")
    assert ring.pop() == second[0]
    assert found(slot) == (third, "")
    fourth = filled(ring, 8, 8, start=6)  # up to the end, which is free again
    assert slot.words[STATE] == cover(32, 80) and drain(ring) == third + fourth


def test_a_single_event_as_large_as_the_ring() -> None:
    ring = Ring(Slot(160, 160))
    assert ring.append(b"x" * 152) and not ring.append(b"y")
    assert ring.take(1, 1) == [b"x" * 152]
    assert ring.append(b"z" * 152) and not ring.append(b"y")
    ring.settle()
    assert drain(ring) == [b"z" * 152]
    assert not ring.append(b"x" * 153)


# The batch in hand.


def test_a_batch_ends_at_its_items_and_at_its_bytes() -> None:
    ring = Ring(Slot(400, 400))
    events = filled(ring, 10, 10, 10, 10, 10, 10)
    assert ring.take(2, 1000) == events[:2]
    assert ring.take(5, 1000) == events[:2], "the batch in hand, again"
    ring.settle()
    assert ring.take(5, 32) == events[2:4], "a comma counts"
    ring.settle()
    assert ring.take(5, 33) == events[4:6]
    ring.settle()
    assert ring.take(5, 1) == []


def test_halves_are_sent_in_order_and_shrink_what_is_in_hand() -> None:
    slot = Slot(400, 400)
    ring = Ring(slot)
    events = filled(ring, 8, 8, 8, 8, 8, 8)
    ring.take(5, 1000)
    ring.halve()
    assert ring.take(9, 1000) == events[:2]
    ring.halve()
    assert ring.take(9, 1000) == events[:1] and found(slot) == (events, "")
    assert ring.settle() == events[:1]
    assert slot.words[IN_FLIGHT] == cover(16, 80) and found(slot) == (events[1:], "")
    assert ring.take(9, 1000) == events[1:2]  # each part by itself: who looks for one event halves what it is in
    assert ring.settle() == events[1:2]
    assert ring.take(9, 1000) == events[2:5]
    ring.halve()
    assert ring.settle() == events[2:3]
    assert slot.words[IN_FLIGHT] == cover(48, 80) and len(ring) == 3
    assert ring.take(9, 1000) == events[3:5]
    assert ring.settle() == events[3:5] and slot.words[IN_FLIGHT] == 0
    assert drain(ring) == events[5:]


def test_the_oldest_that_is_not_in_hand_is_popped() -> None:
    slot = Slot(96, 48)
    ring = Ring(slot)
    events = filled(ring, 8, 8, 8, 8)
    assert ring.take(2, 1000) == events[:2]
    assert ring.pop() == events[2]
    assert found(slot) == ([*events[:2], events[3]], "")
    later = filled(ring, 8, 8, 8, start=4)
    assert ring.pop() == events[3] and ring.waiting == 3
    assert found(slot) == (events[:2] + later, "")
    assert drain(ring) == events[:2] + later


def test_clear_returns_all_in_order() -> None:
    slot = Slot(96, 96)
    ring = Ring(slot)
    events = filled(ring, 8, 8, 8, 8, 8)
    ring.take(3, 1000)
    ring.halve()
    assert ring.clear() == events
    assert slot.words[:2] == [0, 0] and ring.is_empty() and len(ring) == ring.size == 0
    assert drain(ring) == [] and filled(ring, 8) == drain(ring)


def test_an_empty_ring_gives_back_what_it_used_beyond_a_little() -> None:
    slot = Slot(4 * KEPT, 2 * KEPT)
    given: list[tuple[int, int]] = []
    slot.trim = lambda start, end: given.append((start, end))  # type: ignore[method-assign]
    ring = Ring(slot)
    ring.trim()
    assert given == [(KEPT, slot.room), (slot.room, slot.room + slot.hand)], (
        "whoever had it before may have used it all"
    )
    given.clear()
    filled(ring, 100)
    ring.trim()
    drain(ring)
    ring.trim()
    assert given == [], "it is little"
    filled(ring, KEPT + 100, KEPT, 100)
    ring.take(1, 1)
    ring.settle()
    ring.trim()
    assert given == [], "it is not empty"
    drain(ring)
    ring.trim()
    ring.trim()
    assert len(given) == 2 and given[0][0] == KEPT and 2 * KEPT <= given[0][1] <= slot.room
    assert given[1][0] == slot.room, "the hand too"


def test_a_record_that_fits_into_no_hand_is_not_taken_and_one_that_lies_there_is_damage() -> None:
    slot = Slot(160, 48)
    ring = Ring(slot)
    assert not ring.append(b"x" * 41) and ring.is_empty() and ring.largest == 40
    assert ring.append(b"x" * 40) and drain(ring, size=1) == [b"x" * 40]
    filled(ring, 8, 40, 8)
    slot.memory[16:24] = struct.pack("<II", 56, crc32(slot.memory[24:80]))  # as one before that bound could write it
    slot.words[STATE] = cover(0, 96)
    assert found(slot) == ([numbered(0)], "a record of 56 bytes does not fit")


@pytest.mark.parametrize("start, end", [(1 << 34, 1 << 34), (168, 168), (1 << 34, 8), (176, 160)])
def test_words_that_point_anywhere_leave_a_ring_that_works(start: int, end: int) -> None:
    slot = Slot(160, 48)
    slot.words[STATE], slot.words[IN_FLIGHT] = cover(start, end), cover(end, start)
    ring, _ = Ring.recovered_from(slot)
    for turn in range(30):
        assert filled(ring, 16, 16, start=turn) == drain(ring)
    assert len(slot.memory) == 208


@example(60, 2, 1, 30, [("a", 30), ("a", 30), ("t", 0), ("s", 0), ("a", 30)])  # round the end, with no byte to spare
@given(
    st.integers(30, 90),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(8, 40),
    st.lists(st.tuples(st.sampled_from("aaatsp"), st.sampled_from([8, 9, 16, 17, 30, 40])), max_size=40),
)
@settings(deadline=None, derandomize=True)
def test_there_is_room_below_the_bounds_however_it_lies(
    event_bytes: int, max_events: int, items: int, batch_bytes: int, acts: list[tuple[str, int]]
) -> None:
    ring = Ring(Slot(*rooms(event_bytes, max_events, items, batch_bytes)))
    for serial, (act, size) in enumerate(acts):
        if act == "a" and len(ring) < max_events and ring.size + size <= event_bytes and size <= batch_bytes:
            assert ring.append(numbered(serial, size))
        elif act == "t":
            ring.take(items, batch_bytes + 1)
        elif act == "s":
            ring.settle()
        elif act == "p" and ring.waiting:
            ring.pop()


# Killed at any instant.


class Memory(bytearray):
    """Calls ``look`` after each store, and where one is torn."""

    look: Callable[[], None]
    grain = 1  # bytes from one tear to the next

    def __setitem__(self, where: Any, data: Any) -> None:
        for end in range(self.grain, len(data), self.grain):
            super().__setitem__(slice(where.start, where.start + end), data[:end])
            self.look()
        super().__setitem__(where, data)
        self.look()


class Words(list):  # type: ignore[type-arg]
    """Calls ``look`` after each store, which is one instruction."""

    look: Callable[[], None]

    def __setitem__(self, where: Any, word: Any) -> None:
        super().__setitem__(where, word)
        self.look()


class Killed(BaseException):
    """The end of a process, whose objects are gone with it."""


class Watched:
    """A ring of which, at any instant, one of the ``allowed`` lists must be found and nothing in between."""

    def __init__(self, room: int, hand: int, grain: int = 1) -> None:
        self.slot = Slot(room, hand)
        self.slot.memory = memory = Memory(self.slot.memory)
        self.slot.words = words = Words(self.slot.words)
        memory.grain = grain
        memory.look = words.look = self.look  # type: ignore[method-assign]
        self.there: list[bytes] = []  # whose `append` has returned, and which have not left
        self.in_flight = 0  # how many of those
        self.serial = 0
        self.looks = 0
        self.fuse = 0  # looks until the process is killed
        self._allowed = [self.there]
        self.ring = Ring(self.slot)

    def look(self) -> None:
        self.looks += 1
        events, wrong = found(self.slot)
        assert not wrong and events in self._allowed
        self.fuse -= 1
        if not self.fuse:
            self.there = events
            raise Killed

    def append(self, size: int = 8) -> bool:
        event = numbered(self.serial, size)
        self.serial += 1
        took: bool = self._becomes([*self.there, event], lambda: self.ring.append(event))
        return took

    def pop(self) -> None:
        popped = self.there[self.in_flight]
        assert self._becomes([event for event in self.there if event != popped], self.ring.pop) == popped

    def take(self, items: int = 3, size: int = 1000) -> None:
        batch = self._becomes(self.there, lambda: self.ring.take(items, size))
        assert batch == self.there[: len(batch)] and bool(batch) == bool(self.there)
        self.in_flight = max(self.in_flight, len(batch))

    def halve(self) -> None:
        self._becomes(self.there, self.ring.halve)

    def settle(self) -> None:
        count = len(self.ring.batch)
        settled = self.there[:count]
        self.in_flight -= count
        assert self._becomes(self.there[count:], self.ring.settle) == settled

    def clear(self) -> None:
        events, hand = self.there, self.there[: self.in_flight]
        self.in_flight = 0
        fewer = [hand + events[len(hand) + popped :] for popped in range(len(events))]
        assert self._becomes([], self.ring.clear, *fewer) == events

    def be_inherited(self) -> None:
        """Another process goes on in the same memory."""
        self._allowed = [self.there]
        self.ring, wrong = Ring.recovered_from(self.slot)
        assert not wrong
        self.in_flight = len(self.ring) - self.ring.waiting
        self.look()

    def _becomes(self, after: list[bytes], act: Callable[[], Any], *between: list[bytes]) -> Any:
        self._allowed = [self.there, after, *between]
        answer = act()
        if answer is not False:
            self.there = after
        self._allowed = [self.there]
        self.look()
        return answer


def test_killed_anywhere_it_leaves_what_was_there_before_an_act_or_after_it() -> None:
    watched = Watched(160, 96)
    for size in (8, 9, 16, 24, 31):
        assert watched.append(size)
    watched.take(2)
    assert watched.append(8) and watched.append(9) and not watched.append(8)  # round the end, and full
    watched.pop()
    watched.halve()
    watched.settle()
    assert watched.append(9)
    watched.settle()
    watched.take(5)
    watched.pop()
    watched.settle()
    watched.take(5)
    assert watched.append(8)
    watched.clear()
    assert watched.append(8)
    assert watched.looks > 300


def test_an_heir_that_is_killed_leaves_the_same() -> None:
    watched = Watched(160, 96)
    for _ in range(9):
        assert watched.append()
    watched.take(5)
    watched.be_inherited()
    watched.take(5)
    watched.halve()
    watched.settle()
    watched.be_inherited()
    for left in (6, 5, 3, 1):
        assert len(watched.there) - len(watched.ring.batch) <= left + 1
        watched.take(2)
        watched.be_inherited()
        watched.take(2)
        watched.settle()
    assert not holds_events(watched.slot.words) and not watched.there


def test_an_heir_of_one_that_was_killed_in_the_middle_of_a_take_may_do_anything() -> None:
    for looks in range(1, 200):
        for go_on in (Watched.append, Watched.pop, Watched.take, Watched.clear):
            watched = Watched(160, 96, grain=5)
            for size in (8, 20, 9, 16):
                watched.append(size)
            watched.fuse = looks
            try:
                watched.take(3)
            except Killed:
                watched.be_inherited()
            else:
                return  # it was over before
            go_on(watched)
            watched.take(1)
            watched.settle()
            watched.take(2)
            watched.settle()


def test_killed_in_the_middle_of_a_take_the_batch_is_found_once() -> None:
    slot = Slot(96, 96)
    events = filled(Ring(slot), 8, 8, 8, 8)
    slot.memory[96 : 96 + 48] = slot.memory[:48]
    slot.words[IN_FLIGHT] = cover(0, 48)  # and killed before it left the ring
    ring, wrong = Ring.recovered_from(slot)
    assert not wrong and len(ring) == 4 and not ring.has_batches()
    assert ring.take(2, 1000) == events[:2]
    assert slot.words[:2] == [cover(32, 64), cover(0, 32)]
    assert found(slot) == (events, "")
    assert drain(ring) == events and not holds_events(slot.words)


class Model(RuleBasedStateMachine):
    """Whatever is done in whatever order, and whoever goes on: at each store, and in its middle, all is found."""

    def __init__(self) -> None:
        super().__init__()
        self.watched = Watched(240, 120, grain=8)

    @rule(looks=st.integers(1, 12))
    def be_killed_soon(self, looks: int) -> None:
        self.watched.fuse = looks

    @rule(size=st.integers(8, 40))
    def append(self, size: int) -> None:
        self._unless_killed(lambda: self.watched.append(size))

    @precondition(lambda self: self.watched.ring.waiting)
    @rule()
    def pop(self) -> None:
        self._unless_killed(self.watched.pop)

    @rule(items=st.integers(1, 6), size=st.integers(1, 120))
    def take(self, items: int, size: int) -> None:
        self._unless_killed(lambda: self.watched.take(items, size))

    @precondition(lambda self: len(self.watched.ring.batch) > 1)
    @rule()
    def halve(self) -> None:
        self._unless_killed(self.watched.halve)

    @rule()
    def settle(self) -> None:
        self._unless_killed(self.watched.settle)

    @precondition(lambda self: len(self.watched.there) > 4)
    @rule()
    def clear(self) -> None:
        self._unless_killed(self.watched.clear)

    @rule()
    def be_inherited(self) -> None:
        self._unless_killed(self.watched.be_inherited)

    def _unless_killed(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Killed:
            self.watched.be_inherited()

    @invariant()
    def counts(self) -> None:
        ring, there = self.watched.ring, self.watched.there
        assert (len(ring), ring.size) == (len(there), sum(map(len, there)))
        assert ring.is_empty() == (not there) == (not holds_events(self.watched.slot.words))
        assert ring.has_batches() == bool(self.watched.in_flight)
        assert ring.waiting == len(there) - self.watched.in_flight


Model.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestModel = Model.TestCase


# Interrupted.


def interrupted(at: int) -> bool:
    """Use a ring, in which a signal handler raises at one instruction. False when there is none so late."""
    ring = Ring(Slot(160, 96))
    accepted: list[bytes] = []
    left: list[bytes] = []
    instructions = 0

    def trace(frame: Any, event: str, _: object) -> Any:
        nonlocal instructions
        if frame.f_code.co_filename == ring_module.__file__:
            frame.f_trace_opcodes = True
            if event == "opcode":
                instructions += 1
                if instructions == at:
                    raise KeyboardInterrupt
            return trace
        return None

    def append(serial: int) -> None:
        if ring.append(numbered(serial)):
            accepted.append(numbered(serial))

    def settle() -> None:
        left.extend(ring.batch)  # the server has it
        ring.settle()

    acts = [lambda serial=serial: append(serial) for serial in range(6)]
    acts += [lambda: ring.take(2, 1000), settle, lambda: append(6)] * 2
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        for act in acts:
            try:
                act()
            except KeyboardInterrupt:
                pass
    finally:
        sys.settrace(before)
    left += drain(ring)
    assert set(accepted) <= set(left), f"lost at instruction {at}"
    assert not holds_events(ring.slot.words)
    return instructions >= at


@pytest.mark.skipif(sys.version_info[:2] == (3, 12), reason="3.12.1 traces no instructions of a frame that asks late")
def test_an_exception_of_a_signal_handler_between_two_instructions_loses_nothing() -> None:
    assert next(at for at in count(1) if not interrupted(at)) > 500


# Spoilt.


def spoilt(slot: Slot, part: Any, position: int, value: int) -> Slot:
    other = copy(slot)
    (other.memory if part == "memory" else other.words)[position] = value
    return other


def flips(slot: Slot) -> Iterator[tuple[str, int, int, Slot]]:
    """The slot with each of its bits turned over: which part, where, which bit."""
    for position, byte in enumerate(slot.memory):
        for bit in range(8):
            yield "memory", position, bit, spoilt(slot, "memory", position, byte ^ 1 << bit)
    for position, word in enumerate(slot.words):
        for bit in range(64):
            yield "word", position, bit, spoilt(slot, "word", position, word ^ 1 << bit)


def used_slot() -> tuple[Slot, list[bytes], list[bytes], set[bytes]]:
    """A small ring that has been round its end: its slot, what is in hand, what waits, and all that ever was."""
    slot = Slot(160, 96)
    ring = Ring(slot)
    ever = filled(ring, 8, 11, 16, 8, 13, 9)
    for _ in range(2):
        ring.pop()
    ring.take(3, 1000)
    ring.halve()
    ring.settle()
    ever += filled(ring, 30, 8, start=6)
    events, wrong = found(slot)
    assert not wrong and events == ever[3:] and slot.words[STATE] >> 32 > slot.words[STATE] & 0xFFFFFFFF
    return slot, events[:2], events[2:], set(ever)


def covered(slot: Slot, hand: Iterable[bytes], waiting: Iterable[bytes]) -> set[int]:
    """Where the headers and the events of what waits are in the memory, without what fills them up."""
    places = set()
    for events, first, last in ((hand, slot.room, len(slot.memory)), (waiting, 0, slot.room)):
        for event in events:
            at = slot.memory.rindex(record(event), first, last)
            places.update(range(at, at + UNIT + len(event)))
    return places


def test_any_bit_turned_over_in_an_event_or_its_header_is_noticed() -> None:
    slot, hand, waiting, _ = used_slot()
    places = covered(slot, hand, waiting)
    wraps = range(slot.memory.index(WRAP), slot.memory.index(WRAP) + 4)
    noticed = 0
    for part, position, bit, other in flips(slot):
        if part != "memory":
            continue
        events, wrong = found(other)
        if position in places or position in wraps:
            assert wrong, (position, bit)
            noticed += 1
            in_flight = position >= slot.room
            kept, broken = (waiting, hand) if in_flight else (hand, waiting)
            rest = [event for event in events if event not in kept]
            assert rest == broken[: len(rest)] and len(rest) < len(broken) and len(events) == len(rest) + len(kept)
        else:
            assert (events, wrong) == (hand + waiting, "")
    assert noticed == 8 * (len(places) + 4)


def test_any_bit_turned_over_in_a_word_ends_in_nothing_that_never_was() -> None:
    slot, hand, waiting, ever = used_slot()
    for part, position, bit, other in flips(slot):
        if part == "word":
            events, wrong = found(other)
            assert set(events) <= ever, (position, bit)
            whole = waiting if position == IN_FLIGHT else hand  # what the other word covers
            assert [event for event in events if event in whole] == whole, (position, bit)
            if events != hand + waiting and not wrong:  # it happens to cover records still
                start, end = divmod(other.words[position], 1 << 32)
                assert max(start, end) * UNIT <= (slot.hand if position == IN_FLIGHT else slot.room), (position, bit)
                assert position == STATE or start <= end, (position, bit)


def test_what_was_spoilt_is_told_once() -> None:
    # Where it can no longer be read it is forgotten when the rest has been delivered, or each look would find it anew.
    slot, *_ = used_slot()
    for part, position, bit, other in flips(slot):
        ring, _wrong = Ring.recovered_from(other)
        drain(ring)
        assert not holds_events(other.words), (part, position, bit)


def test_what_comes_before_a_spoilt_event_in_hand_outlives_an_heir_that_is_killed_too() -> None:
    slot = Slot(160, 96)
    ring = Ring(slot)
    events = filled(ring, 8, 8, 8, 8)
    ring.take(4, 1000)
    slot.memory[slot.room + 3 * 16 + UNIT] ^= 1
    heir, wrong = Ring.recovered_from(slot)
    assert wrong and heir.take(4, 1000) == events[:3]
    heir.halve()
    assert heir.settle() == events[:1]
    assert found(slot)[0] == events[1:3]
    assert drain(heir) == events[1:3] and not holds_events(slot.words)


@pytest.mark.parametrize("fill", [b"\0", b"\xff", b"\x10\0\0\0\0\0\0\0"], ids=["zeros", "ones", "sizes"])
def test_memory_that_ends_early_leaves_what_lies_before(fill: bytes) -> None:
    slot, hand, waiting, ever = used_slot()
    for end in range(len(slot.memory)):
        other = copy(slot)
        rest = len(slot.memory) - end
        other.memory[end:] = (fill * rest)[:rest]
        events, wrong = found(other)
        assert set(events) <= ever and (wrong or events == hand + waiting)


@given(st.binary(min_size=256, max_size=256), st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)))
@settings(max_examples=200, deadline=None)
def test_garbage_is_empty_and_has_an_end(memory: bytes, words: tuple[int, int]) -> None:
    slot = Slot(160, 96)
    slot.memory[:] = memory
    slot.words[:2] = words
    events, _wrong = found(slot)
    assert events == []


@given(st.integers(0, 24), st.integers(0, 24), st.integers(0, 16), st.integers(0, 16))
@settings(max_examples=300, deadline=None)
def test_any_words_over_real_records_end_in_nothing_that_never_was(a: int, b: int, c: int, d: int) -> None:
    slot, _, _, ever = used_slot()
    slot.words[:2] = [a << 32 | b, c << 32 | d]
    events, _wrong = found(slot)
    assert set(events) <= ever


@pytest.mark.parametrize("hand", [(8, 0), (0, 104), (96, 96 + 16)], ids=["backwards", "too long", "outside"])
def test_a_hand_that_points_outside_of_itself_is_wrong_though_something_waits(hand: tuple[int, int]) -> None:
    slot = Slot(160, 96)
    waiting = filled(Ring(slot), 8, 8)
    slot.words[IN_FLIGHT] = cover(*hand)
    assert found(slot) == (waiting, "it points outside of itself")
