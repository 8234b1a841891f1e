"""The ring in isolation: how events lie in memory, how it wraps, and the batch in flight."""

from __future__ import annotations

import struct
from binascii import crc32

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from properties import examples
from rings import WRAP, Slot, cover, drain, filled, found, numbered, record

from letterapp._storage.ring import IN_FLIGHT, KEPT, STATE, Ring, holds_events, ring_sizes

# The layout.


def test_a_record_is_its_size_its_checksum_and_the_padded_event() -> None:
    slot = Slot(160, 80)
    ring = Ring(slot)
    first, second = filled(ring, 13, 16)
    assert slot.memory.startswith(record(first) + record(second) + bytes(80))
    assert slot.words[:2] == [cover(0, 24 + 24), 0] and len(record(first)) == len(record(second)) == 24
    assert ring.take(1, 1000) == [first]
    assert [type(event) for event in ring.batch] == [bytes]  # hashable, whatever the memory is
    assert slot.memory[160:] == record(first) + bytes(56)
    assert slot.words[:2] == [cover(24, 48), cover(0, 24)]
    assert ring.settle() == [first]
    assert slot.words[:2] == [cover(24, 48), 0]


@pytest.mark.parametrize("base", [0, 64])
def test_a_ring_that_begins_within_the_memory_touches_nothing_else(base: int) -> None:
    slot = Slot(base + 96, 48)
    slot.base, slot.capacity = base, 96
    slot.memory += b"after"
    slot.memory[:base] = b"b" * base
    ring = Ring(slot)
    for serial in range(0, 60, 3):
        events = filled(ring, 8, 9, 15, start=serial)
        assert drain(ring, 2) == events
    assert slot.memory.startswith(b"b" * base) and slot.memory.endswith(b"after")


def test_an_empty_ring_starts_again_at_its_beginning() -> None:
    slot = Slot(160, 80)
    ring = Ring(slot)
    for _ in range(50):
        filled(ring, 8, 8)
        assert slot.words[STATE] == cover(0, 32)
        drain(ring)
        assert slot.words[:2] == [0, 0] and not holds_events(slot.words)


def test_the_words_show_whether_there_are_events() -> None:
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


# Wrapping.


def test_events_that_fill_the_ring_exactly() -> None:
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


def test_space_that_is_left_before_the_end_is_marked() -> None:
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


def test_events_can_be_popped_up_to_the_mark() -> None:
    slot = Slot(80, 48)
    ring = Ring(slot)
    first = filled(ring, 8, 8, 8, 8)
    for event in first[:3]:
        assert ring.pop() == event
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


# The batch in flight.


def test_a_batch_ends_at_its_items_and_at_its_bytes() -> None:
    ring = Ring(Slot(400, 400))
    events = filled(ring, 10, 10, 10, 10, 10, 10)
    assert ring.take(2, 1000) == events[:2]
    assert ring.take(5, 1000) == events[:2], "the same batch again"
    ring.settle()
    assert ring.take(5, 32) == events[2:4], "a comma counts"
    ring.settle()
    assert ring.take(5, 33) == events[4:6]
    ring.settle()
    assert ring.take(5, 1) == []


def test_halves_are_sent_in_order_and_shrink_what_is_in_flight() -> None:
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
    assert ring.take(9, 1000) == events[1:2]  # each part separately: who looks for one event halves what it is in
    assert ring.settle() == events[1:2]
    assert ring.take(9, 1000) == events[2:5]
    ring.halve()
    assert ring.settle() == events[2:3]
    assert slot.words[IN_FLIGHT] == cover(48, 80) and len(ring) == 3
    assert ring.take(9, 1000) == events[3:5]
    assert ring.settle() == events[3:5] and slot.words[IN_FLIGHT] == 0
    assert drain(ring) == events[5:]


def test_the_oldest_event_that_is_not_in_flight_is_popped() -> None:
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


def test_an_empty_ring_returns_most_of_the_memory_it_used() -> None:
    slot = Slot(4 * KEPT, 2 * KEPT)
    given: list[tuple[int, int]] = []
    slot.trim = lambda start, end: given.append((start, end))  # type: ignore[method-assign]
    ring = Ring(slot)
    ring.trim()
    assert given == [(KEPT, slot.capacity), (slot.capacity, slot.capacity + slot.in_flight_size)], (
        "a process that had it before may have used all"
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
    assert len(given) == 2 and given[0][0] == KEPT and 2 * KEPT <= given[0][1] <= slot.capacity
    assert given[1][0] == slot.capacity, "of the in-flight area too"


def test_a_record_larger_than_the_in_flight_area_is_refused_and_counts_as_damage() -> None:
    slot = Slot(160, 48)
    ring = Ring(slot)
    assert not ring.append(b"x" * 41) and ring.is_empty() and ring.largest == 40
    assert ring.append(b"x" * 40) and drain(ring, size=1) == [b"x" * 40]
    filled(ring, 8, 40, 8)
    slot.memory[16:24] = struct.pack("<II", 56, crc32(slot.memory[24:80]))  # as one before that bound could write it
    slot.words[STATE] = cover(0, 96)
    assert found(slot) == ([numbered(0)], "a record of 56 bytes does not fit")


@pytest.mark.parametrize("start, end", [(1 << 34, 1 << 34), (168, 168), (1 << 34, 8), (176, 160)])
def test_a_ring_works_whatever_its_words_were(start: int, end: int) -> None:
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
@examples()
def test_a_ring_has_room_up_to_the_bounds_wherever_it_wraps(
    event_bytes: int, max_events: int, items: int, batch_bytes: int, acts: list[tuple[str, int]]
) -> None:
    ring = Ring(Slot(*ring_sizes(event_bytes, max_events, items, batch_bytes)))
    for serial, (act, size) in enumerate(acts):
        if act == "a" and len(ring) < max_events and ring.size + size <= event_bytes and size <= batch_bytes:
            assert ring.append(numbered(serial, size))
        elif act == "t":
            ring.take(items, batch_bytes + 1)
        elif act == "s":
            ring.settle()
        elif act == "p" and ring.waiting:
            ring.pop()
