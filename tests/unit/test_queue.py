"""The queue in isolation: order, bounds, settlement, and calls that interrupt it."""

from __future__ import annotations

from typing import Any, Callable

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from properties import examples
from rings import Slot

from letterapp._storage.queue import CLOSED, FULL, QUEUED, WAKE, BoundedQueue
from letterapp._storage.ring import Ring, ring_sizes


def make_queue(
    max_events: int = 100,
    max_bytes: int = 10_000,
    flush_at: int = 5,
    drops_oldest: bool = False,
    clock: Callable[[], float] = lambda: 0.0,
) -> BoundedQueue:
    slot = Slot(*ring_sizes(max_bytes, max_events, 100, max_bytes))
    return BoundedQueue(Ring(slot), max_events, max_bytes, flush_at, drops_oldest, clock)


def test_put_wakes_the_worker_at_the_first_event_and_when_a_batch_is_full() -> None:
    queue = make_queue(flush_at=3)
    claim = queue.claim_worker()
    assert claim is not None
    claim.started = True
    assert [queue.put(b"x") for _ in range(5)] == [WAKE, QUEUED, WAKE, QUEUED, QUEUED]


def test_put_wakes_the_worker_until_one_has_started() -> None:
    queue = make_queue(flush_at=30)
    assert [queue.put(b"x"), queue.put(b"x")] == [WAKE, WAKE]
    claim = queue.claim_worker()
    assert claim is not None
    assert not queue.has_worker and queue.put(b"x") == WAKE  # the claim was given up before its thread started
    with claim.starting:
        assert queue.has_worker and queue.put(b"x") == QUEUED and queue.claim_worker() is None
    assert not queue.has_worker
    claim.started = True
    assert queue.has_worker and queue.put(b"x") == QUEUED
    queue.release_worker()
    assert not queue.has_worker and queue.put(b"x") == WAKE


def test_a_batch_counts_as_waiting_until_it_is_settled() -> None:
    queue = make_queue()
    for event in (b"a", b"b", b"c"):
        queue.put(event)
    assert list(queue.take(2, 100)) == [b"a", b"b"]
    assert list(queue.take(2, 100)) == [b"a", b"b"], "the same batch again"
    assert queue.counts()["waiting"] == 3
    queue.settle()
    assert queue.counts()["delivered"] == 2 and queue.counts()["waiting"] == 1
    assert list(queue.take(2, 100)) == [b"c"]
    queue.settle("rejected")
    assert queue.counts()["lost"] == {"rejected": 1} and queue.is_empty()


def test_a_halved_batch_keeps_its_order() -> None:
    queue = make_queue()
    for number in range(6):
        queue.put(b"%d" % number)
    queue.take(5, 100)
    queue.halve()
    assert list(queue.take(5, 100)) == [b"0", b"1"]
    queue.settle()
    assert list(queue.take(5, 100)) == [b"2", b"3", b"4"]
    queue.settle()
    assert list(queue.take(5, 100)) == [b"5"]


def test_take_never_exceeds_its_bytes_except_for_a_single_event() -> None:
    queue = make_queue()
    for event in (b"x" * 50, b"y" * 30, b"z" * 30):
        queue.put(event)
    assert len(queue.take(10, 82)) == 2
    queue.settle()
    assert len(queue.take(10, 1)) == 1


def test_due_counts_from_the_oldest_event() -> None:
    now = [10.0]
    queue = make_queue(clock=lambda: now[0])
    assert queue.due(10.0, 0.1) == float("inf")
    queue.put(b"x")
    now[0] = 10.05
    queue.put(b"y")
    assert queue.due(10.05, 0.1) == pytest.approx(0.05)
    assert queue.due(10.2, 0.1) == 0
    assert queue.request_flush() == 2 and queue.due(10.0, 0.1) == 0


def test_a_closed_queue_still_returns_its_events() -> None:
    queue = make_queue()
    queue.put(b"x")
    queue.close()
    assert queue.put(b"y") == CLOSED
    assert queue.due(0, 100) == 0 and queue.take(10, 100) == [b"x"]


def test_abandoned_events_stay_lost_when_they_are_settled_later() -> None:
    queue = make_queue()
    queue.put(b"a")
    queue.put(b"b")
    queue.take(1, 100)
    assert queue.abandon("exit") == [b"a", b"b"]
    queue.settle()  # the answer comes after all
    assert queue.counts() == {**queue.counts(), "accepted": 2, "delivered": 0, "lost": {"exit": 2}, "waiting": 0}


class Interrupted:
    """A clock, a stand-in for any place inside the queue's lock where a signal handler may run and call `put`."""

    def __init__(self) -> None:
        self.queue: Any = None
        self.answers: list[int] = []
        self.times = 1

    def __call__(self) -> float:
        if self.queue is not None and self.times:
            self.times -= 1
            self.answers.append(self.queue.put(b"from the handler"))
        return 0.0


def test_a_put_that_interrupts_a_put_is_queued_after_it() -> None:
    clock = Interrupted()
    queue = make_queue(clock=clock)
    clock.queue = queue
    assert queue.put(b"interrupted") == WAKE
    assert clock.answers == [WAKE]
    assert queue.take(10, 100) == [b"interrupted", b"from the handler"]
    assert queue.counts()["accepted"] == 2


def test_a_put_that_interrupts_any_other_method_is_queued_by_the_next_call() -> None:
    queue = make_queue()
    queue.put(b"a")
    with queue._lock:  # as in the middle of `take` or `settle`
        assert queue.is_held_by_this_thread()
        queue.put(b"b")
        assert len(queue._ring) == 1
    assert not queue.is_held_by_this_thread()
    assert queue.counts()["waiting"] == 2 and not queue.is_empty()


def test_a_put_that_interrupts_a_full_queue_is_dropped_and_counted() -> None:
    queue = make_queue(max_events=1)
    queue.put(b"a")
    with queue._lock:
        queue.put(b"b")
    assert queue.counts()["lost"] == {"overflow": 1}
    report, _ = queue.take_overflow_report(now=10.0, longest=1.0)
    assert report is not None and report.sample == [b"b"]


class Model(RuleBasedStateMachine):
    """Any calls in any order: nothing vanishes, the bounds hold, the order is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = make_queue(8, 60, 3, self.drops_oldest)
        self.accepted = 0
        self.settled: list[bytes] = []

    drops_oldest = False

    @rule(size=st.integers(1, 30))
    def put(self, size: int) -> None:
        event = b"%03d" % self.accepted + b"x" * size
        self.accepted += 1
        answer = self.queue.put(event)
        if answer == FULL:
            self.queue.drop(event)

    @rule(items=st.integers(1, 5), room=st.integers(1, 100))
    def take(self, items: int, room: int) -> None:
        batch = self.queue.take(items, room)
        assert bool(batch) == bool(self.queue.counts()["waiting"])

    @rule(cause=st.sampled_from([None, "rejected"]))
    def settle(self, cause: Any) -> None:
        self.settled += self.queue.settle(cause)

    @rule()
    def halve(self) -> None:
        if len(self.queue._ring.batch) > 1:
            self.queue.halve()

    @rule()
    def take_overflow_report(self) -> None:
        self.queue.take_overflow_report(10.0, 1.0)

    @invariant()
    def balances(self) -> None:
        counts: Any = self.queue.counts()
        assert (
            self.accepted
            == counts["accepted"]
            == counts["delivered"] + sum(counts["lost"].values()) + counts["waiting"]
        )
        assert counts["waiting"] <= 8 and counts["waiting_bytes"] <= 60
        # As it would be found if the process were killed now.
        slot = self.queue._ring.slot
        assert isinstance(slot, Slot)
        found, wrong = Ring.recovered_from(slot.copy())
        assert not wrong and len(found) == counts["waiting"] and found.size == counts["waiting_bytes"]
        assert self.settled == sorted(self.settled)


class ModelThatDropsTheOldest(Model):
    drops_oldest = True


for machine in (Model, ModelThatDropsTheOldest):
    machine.TestCase.settings = examples(60, stateful_step_count=40)
TestModel = Model.TestCase
TestModelThatDropsTheOldest = pytest.mark.slow(ModelThatDropsTheOldest.TestCase)


@pytest.mark.parametrize(
    "ask", [BoundedQueue.is_empty, lambda queue: queue.has_settled(0)], ids=["is_empty", "has_settled"]
)
def test_events_recovered_during_the_check_are_not_missed(ask: Any, monkeypatch: Any) -> None:
    queue, found = make_queue(), Ring(Slot(*ring_sizes(10_000, 100, 100, 10_000)))
    found.append(b"of a dead one")

    def recovery_ends() -> bool:
        queue.add_recovered(found)
        return False

    assert ask(queue)
    monkeypatch.setattr(queue.recovering, "has_others", recovery_ends)
    assert not ask(queue)
