"""The queue by itself: order, bounds, settlement, and calls that interrupt it."""

from __future__ import annotations

import threading
from typing import Any, Callable

import pytest
from driven import Slot
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from letterapp._runtime.condition import Condition
from letterapp._storage.queue import CLOSED, FULL, QUEUED, WAKE, BoundedQueue
from letterapp._storage.ring import Ring, rooms


def outbox(
    max_events: int = 100,
    max_bytes: int = 10_000,
    flush_at: int = 5,
    drops_oldest: bool = False,
    clock: Callable[[], float] = lambda: 0.0,
) -> BoundedQueue:
    slot = Slot(*rooms(max_bytes, max_events, 100, max_bytes))
    return BoundedQueue(Ring(slot), max_events, max_bytes, flush_at, drops_oldest, clock)


def test_put_asks_for_the_sender_at_the_first_event_and_when_a_batch_is_full() -> None:
    box = outbox(flush_at=3)
    box.claim_worker().started = True
    assert [box.put(b"x") for _ in range(5)] == [WAKE, QUEUED, WAKE, QUEUED, QUEUED]


def test_put_asks_for_the_sender_as_long_as_nobody_has_begun_to_look() -> None:
    box = outbox(flush_at=30)
    assert [box.put(b"x"), box.put(b"x")] == [WAKE, WAKE]
    claim = box.claim_worker()
    assert not box.has_worker and box.put(b"x") == WAKE  # whoever was to keep it has been cut short
    with claim.starting:
        assert box.has_worker and box.put(b"x") == QUEUED and box.claim_worker() is None
    assert not box.has_worker
    claim.started = True
    assert box.has_worker and box.put(b"x") == QUEUED
    box.release_worker()
    assert not box.has_worker and box.put(b"x") == WAKE


def test_what_was_taken_is_waiting_until_it_is_settled() -> None:
    box = outbox()
    for event in (b"a", b"b", b"c"):
        box.put(event)
    assert list(box.take(2, 100)) == [b"a", b"b"]
    assert list(box.take(2, 100)) == [b"a", b"b"], "the batch in hand, again"
    assert box.counts()["waiting"] == 3
    box.settle()
    assert box.counts()["delivered"] == 2 and box.counts()["waiting"] == 1
    assert list(box.take(2, 100)) == [b"c"]
    box.settle("rejected")
    assert box.counts()["lost"] == {"rejected": 1} and box.is_empty()


def test_a_halved_batch_keeps_its_order() -> None:
    box = outbox()
    for number in range(6):
        box.put(b"%d" % number)
    box.take(5, 100)
    box.halve()
    assert list(box.take(5, 100)) == [b"0", b"1"]
    box.settle()
    assert list(box.take(5, 100)) == [b"2", b"3", b"4"]
    box.settle()
    assert list(box.take(5, 100)) == [b"5"]


def test_take_never_exceeds_its_bytes_but_for_a_single_event() -> None:
    box = outbox()
    for event in (b"x" * 50, b"y" * 30, b"z" * 30):
        box.put(event)
    assert len(box.take(10, 82)) == 2
    box.settle()
    assert len(box.take(10, 1)) == 1


def test_due_counts_from_the_oldest_event() -> None:
    now = [10.0]
    box = outbox(clock=lambda: now[0])
    assert box.due(10.0, 0.1) == float("inf")
    box.put(b"x")
    now[0] = 10.05
    box.put(b"y")
    assert box.due(10.05, 0.1) == pytest.approx(0.05)
    assert box.due(10.2, 0.1) == 0
    assert box.request_flush() == 2 and box.due(10.0, 0.1) == 0


def test_a_closed_queue_hands_out_what_it_has() -> None:
    box = outbox()
    box.put(b"x")
    box.close()
    assert box.put(b"y") == CLOSED
    assert box.due(0, 100) == 0 and box.take(10, 100) == [b"x"]


def test_abandoned_events_are_lost_even_when_the_wire_settles_them_later() -> None:
    box = outbox()
    box.put(b"a")
    box.put(b"b")
    box.take(1, 100)
    assert box.abandon("exit") == [b"a", b"b"]
    box.settle()  # the answer comes after all
    assert box.counts() == {**box.counts(), "accepted": 2, "delivered": 0, "lost": {"exit": 2}, "waiting": 0}


class Interrupted:
    """A clock, a stand-in for any place inside the queue's lock where a signal handler may run and call `put`."""

    def __init__(self) -> None:
        self.box: Any = None
        self.answers: list[int] = []
        self.times = 1

    def __call__(self) -> float:
        if self.box is not None and self.times:
            self.times -= 1
            self.answers.append(self.box.put(b"from the handler"))
        return 0.0


def test_a_put_that_interrupts_a_put_is_queued_after_it() -> None:
    clock = Interrupted()
    box = outbox(clock=clock)
    clock.box = box
    assert box.put(b"interrupted") == WAKE
    assert clock.answers == [WAKE]
    assert box.take(10, 100) == [b"interrupted", b"from the handler"]
    assert box.counts()["accepted"] == 2


def test_a_put_that_interrupts_any_other_method_is_swept_in_by_the_next() -> None:
    box = outbox()
    box.put(b"a")
    with box._lock:  # as in the middle of `take` or `settle`
        assert box.is_held_by_this_thread()
        box.put(b"b")
        assert len(box._ring) == 1
    assert not box.is_held_by_this_thread()
    assert box.counts()["waiting"] == 2 and not box.is_empty()


def test_a_full_queue_counts_what_interrupted_it_as_dropped() -> None:
    box = outbox(max_events=1)
    box.put(b"a")
    with box._lock:
        box.put(b"b")
    assert box.counts()["lost"] == {"overflow": 1}
    burst, _ = box.take_overflow_report(now=10.0, longest=1.0)
    assert burst is not None and burst.sample == [b"b"]


class Model(RuleBasedStateMachine):
    """Whatever is done in whatever order: nothing vanishes, the bounds hold, the order is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.box = outbox(8, 60, 3, self.drops_oldest)
        self.accepted = 0
        self.left: list[bytes] = []

    drops_oldest = False

    @rule(size=st.integers(1, 30))
    def put(self, size: int) -> None:
        event = b"%03d" % self.accepted + b"x" * size
        self.accepted += 1
        answer = self.box.put(event)
        if answer == FULL:
            self.box.drop(event)

    @rule(items=st.integers(1, 5), room=st.integers(1, 100))
    def take(self, items: int, room: int) -> None:
        batch = self.box.take(items, room)
        assert bool(batch) == (self.box.counts()["waiting"] > 0)

    @rule(cause=st.sampled_from([None, "rejected"]))
    def settle(self, cause: Any) -> None:
        self.left += self.box.settle(cause)

    @rule()
    def halve(self) -> None:
        if len(self.box._ring.batch) > 1:
            self.box.halve()

    @rule()
    def take_overflow_report(self) -> None:
        self.box.take_overflow_report(10.0, 1.0)

    @invariant()
    def balances(self) -> None:
        counts: Any = self.box.counts()
        assert (
            self.accepted
            == counts["accepted"]
            == counts["delivered"] + sum(counts["lost"].values()) + counts["waiting"]
        )
        assert counts["waiting"] <= 8 and counts["waiting_bytes"] <= 60
        left, wrong = Ring.recovered_from(
            self.box._ring.slot.copy()
        )  # as it would be found, were the process killed now
        assert not wrong and len(left) == counts["waiting"] and left.size == counts["waiting_bytes"]
        assert self.left == sorted(self.left)


class ModelThatDropsTheOldest(Model):
    drops_oldest = True


for machine in (Model, ModelThatDropsTheOldest):
    machine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestModel = Model.TestCase
TestModelThatDropsTheOldest = ModelThatDropsTheOldest.TestCase


def test_no_ring_is_missed_between_the_look_and_the_sleep() -> None:
    bell = Condition()
    with bell.waiter() as sleeper:
        bell.notify_all()
        assert sleeper.wait(30) is True
    with bell.waiter() as sleeper:
        assert sleeper.wait(0.001) is False
    bell.notify_all()
    assert not bell._waiters


def test_every_sleeper_is_woken_by_one_ring_and_none_twice_by_many_that_ring() -> None:
    bell = Condition()
    ready = threading.Barrier(9)
    woken: list[bool] = []

    def sleep() -> None:
        with bell.waiter() as sleeper:
            ready.wait(30)
            woken.append(sleeper.wait(30))

    sleepers = [threading.Thread(target=sleep) for _ in range(8)]
    for thread in sleepers:
        thread.start()
    ready.wait(30)
    ringers = [threading.Thread(target=bell.notify_all) for _ in range(4)]
    for thread in ringers:
        thread.start()
    for thread in [*ringers, *sleepers]:
        thread.join(30)
    assert woken == [True] * 8


@pytest.mark.parametrize(
    "ask", [BoundedQueue.is_empty, lambda box: box.has_settled(0)], ids=["is_empty", "has_settled"]
)
def test_what_a_look_finds_that_ends_while_it_is_asked_for_is_not_missed(ask: Any, monkeypatch: Any) -> None:
    box, found = outbox(), Ring(Slot(*rooms(10_000, 100, 100, 10_000)))
    found.append(b"of a dead one")

    def look_ends() -> bool:
        box.add_recovered(found)
        return False

    assert ask(box)
    monkeypatch.setattr(box.recovering, "has_others", look_ends)
    assert not ask(box)
