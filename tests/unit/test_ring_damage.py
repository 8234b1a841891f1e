"""A ring whose memory is damaged: what is noticed, what can still be read, and that reading ends."""

from __future__ import annotations

from typing import Any, Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import examples
from rings import WRAP, Slot, cover, drain, filled, found, record

from letterapp._storage.ring import IN_FLIGHT, STATE, UNIT, Ring, holds_events


def damaged(slot: Slot, part: Any, position: int, value: int) -> Slot:
    other = slot.copy()
    (other.memory if part == "memory" else other.words)[position] = value
    return other


def flips(slot: Slot) -> Iterator[tuple[str, int, int, Slot]]:
    """The slot with each of its bits flipped: which part, where, which bit."""
    for position, byte in enumerate(slot.memory):
        for bit in range(8):
            yield "memory", position, bit, damaged(slot, "memory", position, byte ^ 1 << bit)
    for position, word in enumerate(slot.words):
        for bit in range(64):
            yield "word", position, bit, damaged(slot, "word", position, word ^ 1 << bit)


def used_slot() -> tuple[Slot, list[bytes], list[bytes], set[bytes]]:
    """A small ring that has wrapped: its slot, the events in flight, those waiting, and all that were ever in it."""
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


def covered(slot: Slot, in_flight: Iterable[bytes], waiting: Iterable[bytes]) -> set[int]:
    """Where the headers and the events are in the memory, without their padding."""
    places: set[int] = set()
    for events, first, last in ((in_flight, slot.capacity, len(slot.memory)), (waiting, 0, slot.capacity)):
        for event in events:
            at = slot.memory.rindex(record(event), first, last)
            places.update(range(at, at + UNIT + len(event)))
    return places


def test_any_flipped_bit_in_an_event_or_its_header_is_detected() -> None:
    slot, in_flight, waiting, _ = used_slot()
    places = covered(slot, in_flight, waiting)
    wraps = range(slot.memory.index(WRAP), slot.memory.index(WRAP) + 4)
    noticed = 0
    for part, position, bit, other in flips(slot):
        if part != "memory":
            continue
        events, wrong = found(other)
        if position in places or position in wraps:
            assert wrong, (position, bit)
            noticed += 1
            kept, broken = (waiting, in_flight) if position >= slot.capacity else (in_flight, waiting)
            rest = [event for event in events if event not in kept]
            assert rest == broken[: len(rest)] and len(rest) < len(broken) and len(events) == len(rest) + len(kept)
        else:
            assert (events, wrong) == (in_flight + waiting, "")
    assert noticed == 8 * (len(places) + 4)


def test_no_flipped_bit_in_a_word_creates_an_event() -> None:
    slot, in_flight, waiting, ever = used_slot()
    for part, position, bit, other in flips(slot):
        if part == "word":
            events, wrong = found(other)
            assert set(events) <= ever, (position, bit)
            whole = waiting if position == IN_FLIGHT else in_flight  # what the other word covers
            assert [event for event in events if event in whole] == whole, (position, bit)
            if events != in_flight + waiting and not wrong:  # it happens to cover records still
                start, end = divmod(other.words[position], 1 << 32)
                assert max(start, end) * UNIT <= (slot.in_flight_size if position == IN_FLIGHT else slot.capacity), (
                    position,
                    bit,
                )
                assert position == STATE or start <= end, (position, bit)


def test_damage_is_reported_once() -> None:
    # What cannot be read is forgotten when the rest was delivered; otherwise each recovery would find it again.
    slot, *_ = used_slot()
    for part, position, bit, other in flips(slot):
        ring, _wrong = Ring.recovered_from(other)
        drain(ring)
        assert not holds_events(other.words), (part, position, bit)


def test_events_before_a_damaged_one_in_flight_survive_another_kill() -> None:
    slot = Slot(160, 96)
    ring = Ring(slot)
    events = filled(ring, 8, 8, 8, 8)
    ring.take(4, 1000)
    slot.memory[slot.capacity + 3 * 16 + UNIT] ^= 1
    recovered, wrong = Ring.recovered_from(slot)
    assert wrong and recovered.take(4, 1000) == events[:3]
    recovered.halve()
    assert recovered.settle() == events[:1]
    assert found(slot)[0] == events[1:3]
    assert drain(recovered) == events[1:3] and not holds_events(slot.words)


@pytest.mark.parametrize("fill", [b"\0", b"\xff", b"\x10\0\0\0\0\0\0\0"], ids=["zeros", "ones", "sizes"])
def test_truncated_memory_leaves_the_events_before(fill: bytes) -> None:
    slot, in_flight, waiting, ever = used_slot()
    for end in range(len(slot.memory)):
        other = slot.copy()
        rest = len(slot.memory) - end
        other.memory[end:] = (fill * rest)[:rest]
        events, wrong = found(other)
        assert set(events) <= ever and (wrong or events == in_flight + waiting)


@given(st.binary(min_size=256, max_size=256), st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)))
@examples(200)
def test_random_memory_holds_no_events(memory: bytes, words: tuple[int, int]) -> None:
    slot = Slot(160, 96)
    slot.memory[:] = memory
    slot.words[:2] = words
    events, _wrong = found(slot)
    assert events == []


@given(st.integers(0, 24), st.integers(0, 24), st.integers(0, 16), st.integers(0, 16))
@examples(300)
def test_no_words_over_real_records_create_an_event(a: int, b: int, c: int, d: int) -> None:
    slot, _, _, ever = used_slot()
    slot.words[:2] = [a << 32 | b, c << 32 | d]
    events, _wrong = found(slot)
    assert set(events) <= ever


@pytest.mark.parametrize("area", [(8, 0), (0, 104), (96, 96 + 16)], ids=["backwards", "too long", "outside"])
def test_an_in_flight_word_that_points_outside_is_reported_even_if_events_are_waiting(area: tuple[int, int]) -> None:
    slot = Slot(160, 96)
    waiting = filled(Ring(slot), 8, 8)
    slot.words[IN_FLIGHT] = cover(*area)
    assert found(slot) == (waiting, "a word points outside of the ring")
