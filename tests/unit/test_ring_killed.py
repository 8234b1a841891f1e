"""What another process finds in a ring whose process was killed, or whose calls a signal handler interrupted.

A kill is simulated by looking at the memory from outside at every store, and in the middle of each: a process writes in
the order of its program, so it leaves one of these states and no other.
"""

from __future__ import annotations

import sys
from functools import partial
from itertools import count
from typing import Any, Callable

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from properties import examples
from rings import Slot, cover, drain, filled, found, numbered

from letterapp._storage import ring as ring_module
from letterapp._storage.ring import IN_FLIGHT, Ring, holds_events


class Memory(bytearray):
    """Calls ``look`` after each store, and in the middle of it."""

    look: Callable[[], None]
    grain = 1  # bytes from one such look to the next

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
    """A ring in which, at any instant, one of the allowed lists of events must be found, and nothing in between."""

    def __init__(self, capacity: int, in_flight_size: int, grain: int = 1) -> None:
        self.slot = Slot(capacity, in_flight_size)
        self.slot.memory = memory = Memory(self.slot.memory)
        self.slot.words = words = Words(self.slot.words)
        memory.grain = grain
        memory.look = words.look = self.look
        self.there: list[bytes] = []  # that were appended and have not left
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
        events, in_flight = self.there, self.there[: self.in_flight]
        self.in_flight = 0
        fewer = [in_flight + events[len(in_flight) + popped :] for popped in range(len(events))]
        assert self._becomes([], self.ring.clear, *fewer) == events

    def be_recovered(self) -> None:
        """Another process recovers the same memory."""
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


# Killed at any instant.


def test_a_kill_leaves_the_state_before_or_after_the_call() -> None:
    watched = Watched(160, 96)
    for size in (8, 9, 16, 24, 31):
        assert watched.append(size)
    watched.take(2)
    assert watched.append(8) and watched.append(9) and not watched.append(8)  # it wraps, and is full
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


def test_a_kill_during_recovery_leaves_the_same() -> None:
    watched = Watched(160, 96)
    for _ in range(9):
        assert watched.append()
    watched.take(5)
    watched.be_recovered()
    watched.take(5)
    watched.halve()
    watched.settle()
    watched.be_recovered()
    for left in (6, 5, 3, 1):
        assert len(watched.there) - len(watched.ring.batch) <= left + 1
        watched.take(2)
        watched.be_recovered()
        watched.take(2)
        watched.settle()
    assert not holds_events(watched.slot.words) and not watched.there


def test_any_call_works_after_recovery_from_a_kill_in_the_middle_of_take() -> None:
    for looks in range(1, 200):
        for go_on in (Watched.append, Watched.pop, Watched.take, Watched.clear):
            watched = Watched(160, 96, grain=5)
            for size in (8, 20, 9, 16):
                watched.append(size)
            watched.fuse = looks
            try:
                watched.take(3)
            except Killed:
                watched.be_recovered()
            else:
                return  # `take` returned before
            go_on(watched)
            watched.take(1)
            watched.settle()
            watched.take(2)
            watched.settle()


def test_after_a_kill_in_the_middle_of_take_the_batch_is_found_once() -> None:
    slot = Slot(96, 96)
    events = filled(Ring(slot), 8, 8, 8, 8)
    slot.memory[96 : 96 + 48] = slot.memory[:48]
    slot.words[IN_FLIGHT] = cover(0, 48)  # and killed before it left the ring
    ring, wrong = Ring.recovered_from(slot)
    assert not wrong and len(ring) == 4 and not ring.has_in_flight()
    assert ring.take(2, 1000) == events[:2]
    assert slot.words[:2] == [cover(32, 64), cover(0, 32)]
    assert found(slot) == (events, "")
    assert drain(ring) == events and not holds_events(slot.words)


class Model(RuleBasedStateMachine):
    """Any calls in any order, by any process: at each store, and in the middle of it, all events are found."""

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
    def be_recovered(self) -> None:
        self._unless_killed(self.watched.be_recovered)

    def _unless_killed(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Killed:
            self.watched.be_recovered()

    @invariant()
    def counts(self) -> None:
        ring, there = self.watched.ring, self.watched.there
        assert (len(ring), ring.size) == (len(there), sum(map(len, there)))
        assert ring.is_empty() == (not there) == (not holds_events(self.watched.slot.words))
        assert ring.has_in_flight() == bool(self.watched.in_flight)
        assert ring.waiting == len(there) - self.watched.in_flight


Model.TestCase.settings = examples(80, stateful_step_count=40)
TestModel = pytest.mark.slow(Model.TestCase)


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

    def take() -> None:
        ring.take(2, 1000)

    def settle() -> None:
        left.extend(ring.batch)  # the server has it
        ring.settle()

    acts: list[Callable[[], None]] = [partial(append, serial) for serial in range(6)]
    acts += [take, settle, partial(append, 6)] * 2
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


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info[:2] == (3, 12), reason="3.12.1 traces no instructions of a frame that asks late")
def test_an_exception_of_a_signal_handler_between_two_instructions_loses_nothing() -> None:
    assert next(at for at in count(1) if not interrupted(at)) > 500
