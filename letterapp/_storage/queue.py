"""The bounded queue of one process's encoded events, and of those that ended processes left.

Responsible for: what waits, what is in flight, the two bounds and what gives way at them, the counters. Not responsible
for: I/O, time-outs, threads, callbacks, JSON, and how events are stored (`notify_all`). Every method returns at once.

An event leaves the queue when it is settled, not when it is taken: `take` returns the next batch and keeps it, `settle`
removes it. So accepted = delivered + lost + waiting, at any moment.
"""

from __future__ import annotations

import threading
from collections import deque

from .._runtime.guards import ReentrancyGuard, ThreadClaim

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Mapping

    from .ring import Ring, Slot

# What `put` returns. For all but the first the caller has something to do.
QUEUED, WAKE, FULL, CLOSED, SLOT_LOST = range(5)

OVERFLOW_SAMPLE = 100  # dropped events that one report carries: as many as a request


def _nobody_asks(events: list[bytes], cause: str | None) -> None:
    pass


class OverflowReport:
    """Events that were dropped at the bounds since the last report."""

    def __init__(self, began: float) -> None:
        self.began = began
        self.lost = 0
        self.sample: list[bytes] = []

    def add(self, event: bytes) -> None:
        self.lost += 1
        if len(self.sample) < OVERFLOW_SAMPLE:
            self.sample.append(event)


class BoundedQueue:
    """First in, first out, bounded in events and in bytes. Any thread, signal handler and callback may call.

    What ended processes left is sent before this process's own events, and does not count towards its bounds, unless it
    was in the very ring that the process uses.
    """

    def __init__(
        self,
        ring: Ring,
        max_events: int,
        max_bytes: int,
        flush_at: int,
        drops_oldest: bool,
        clock: Callable[[], float],
    ) -> None:
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._flush_at = flush_at
        self._drops_oldest = drops_oldest
        self._clock = clock

        # Guards everything below. Any thread takes it, for a few operations on these fields: no I/O, no callback, no
        # other lock. It is re-entrant, because a signal handler, a `__del__` or a GC callback may call `put` in the
        # thread that holds it. As the fields may be half changed then, such a `put` only backends its event in
        # `_nested`; the next call queues it.
        self._lock = threading.RLock()
        self._nested: deque[bytes] = deque()
        self._refused: list[bytes] = []  # of these, because the queue was closed by then: to be reported
        self.kind = ring.slot.kind
        self._ring = ring
        self._recovered: list[Ring] = []  # the first one first; none is empty
        self._drained: list[Ring] = []  # adopted, and empty by now
        self._in_flight: Ring | None = None  # whose batch is on the wire, or between two tries
        self.batch_number = 0  # of the batch in hand, and of all parts that it is split into
        self._since = 0.0  # when the oldest event in `notify_all` that is not in flight was queued
        self._overflow: OverflowReport | None = None
        # Events that have left the queue in any way, less those that were put at its head: what is queued now is
        # settled when as many more have left.
        self._settled = 0
        self._flush_target = 0  # send without delay until `_settled` is this: somebody waits
        self._early_flush_target = 0  # the same, because `flush_at` events were queued
        self.claim = ThreadClaim()  # of the thread that sends
        self._wake_on_put = len(ring) > 0  # every `put` returns WAKE
        self.closed = False
        self._is_exiting = False
        self._delivered = 0
        self._retried = 0
        self._recovered_total = len(ring)
        # The threads that look for orphans. Until they are done, nothing counts as settled for the others; for
        # themselves it does, because a signal handler that interrupts them may have to wait until it is settled.
        self.recovering = ReentrancyGuard()
        self._lost: dict[str, int] = {}
        # Called under the lock with events that have left the queue, and the cause if they are lost. For a relay, which
        # has to answer for each.
        self.on_removed: Callable[[list[bytes], str | None], object] = _nobody_asks

    # Called by any thread.

    def put(self, event: bytes) -> int:
        """Queue ``event``. Returns QUEUED, or WAKE if whoever sends is to be woken.

        Or the event was not queued: FULL, CLOSED, or SLOT_LOST: the slot is no longer this process's; call `relocate`
        first.
        """
        nested = self._lock._is_owned()  # type: ignore[attr-defined]  # what `threading.Condition` asks of it too
        with self._lock:
            if nested:
                self._nested.append(event)
                return WAKE
            answer = self._admit(event)
            if self._nested:
                self._sweep()
            return answer

    def drop(self, event: bytes) -> bool:
        """Count ``event`` as dropped for want of room; True if it is the first one, which somebody has to report."""
        with self._lock:
            self._count_lost("overflow", 1)
            return self._add_to_overflow_report(event)

    def refuse(self, cause: str, events: int = 1) -> None:
        """Count events that were never queued."""
        with self._lock:
            self._count_lost(cause, events)

    def is_lost(self) -> bool:
        """True when another process took this one for dead, and has recovered the queue."""
        return not self._ring.is_empty() and self._ring.is_lost()

    def needs_slot(self) -> bool:
        """True when an event of a call that interrupted another needs a new slot, as the last one is no longer ours."""
        return bool(self._nested) and self._ring.is_empty() and not self._ring.slot.is_own()

    def relocate(self, ring: Ring) -> None:
        """Use ``ring`` from now on, if the last one is no longer ours. What was in that another process sends."""
        with self._lock:
            if self._ring.is_empty() or self._ring.is_lost():
                self._settled += len(self._ring)
                if self._in_flight is self._ring:
                    self._in_flight = None
                self._ring = ring
                self.kind = ring.slot.kind
                ring.slot.mark_exiting(self._is_exiting)
                self._join(ring)

    def release_empty_slot(self) -> None:
        """Remove an empty spool file. A later `put` is SLOT_LOST, and so gets another."""
        with self._lock:
            if self._ring.slot.is_durable and self._ring.is_empty():
                self._ring.slot.release()

    def sync(self) -> None:
        """Return when what was queued would survive a loss of power."""
        self._ring.slot.sync()

    def request_flush(self) -> int:
        """Have all that is queued now sent without delay; return the count of settled events at which that is done."""
        with self._lock:
            self._sweep()
            self._flush_target = self._settled + self._count()
            return self._flush_target

    def set_wake_on_put(self, prompt: bool) -> None:
        """Have each `put` return WAKE from now on, because no thread looks by itself; or no longer."""
        self._wake_on_put = prompt

    def mark_exiting(self, leaves: bool) -> None:
        """Tell the family that this process is ending, or that it is not after all."""
        with self._lock:
            self._is_exiting = leaves
            if not self._ring.is_lost():
                self._ring.slot.mark_exiting(leaves)

    def close(self) -> None:
        """Refuse further events; what waits is still sent."""
        with self._lock:
            self.closed = True

    def has_room(self, events: int, size: int) -> bool:
        """True when ``events`` events of ``size`` bytes in all fit now, or would by dropping the oldest."""
        with self._lock:
            if self._drops_oldest:  # all but what is in flight can be dropped
                in_flight = self._ring.in_flight()
                return (
                    sum(map(len, in_flight)) + size <= self._max_bytes and len(in_flight) + events <= self._max_events
                )
            return self._ring.size + size <= self._max_bytes and len(self._ring) + events <= self._max_events

    @property
    def largest(self) -> int:
        """Bytes of the largest event that can be queued."""
        return min(self._max_bytes, self._ring.largest)

    def is_flush_requested(self) -> bool:
        """True when somebody waits for what is queued: a flush, a close or the end of the process."""
        return self._settled < self._flush_target or self.closed

    # These only read, and take no lock. They check for recovering threads first: one that has finished by then has
    # queued what it found, and the rest of the check sees that. In the other order a recovery that finishes in between
    # would be missed, and at the end of the process its events lost.

    def has_settled(self, target: int) -> bool:
        return not self.recovering.has_others() and self._settled >= target

    def is_empty(self) -> bool:
        return not (self.recovering.has_others() or self._recovered or self._nested) and self._ring.is_empty()

    def quick_counts(self) -> tuple[int, int, int]:
        """Events that wait, were delivered and were lost, not all of the same moment."""
        waiting = self._count() + len(self._nested)
        return waiting, self._delivered, sum(self._lost.copy().values())

    def is_held_by_this_thread(self) -> bool:
        """True in a signal handler or callback that interrupted this very queue: to wait there would be a deadlock."""
        return bool(self._lock._is_owned())  # type: ignore[attr-defined]

    def call_when_released(self, act: Callable[[], object]) -> None:
        """Wait until the lock is free, then call ``act``."""
        with self._lock:
            pass
        act()

    def counts(self) -> dict[str, object]:
        with self._lock:
            self._sweep()
            waiting = self._count()
            return {
                "accepted": self._delivered + sum(self._lost.values()) + waiting,
                "delivered": self._delivered,
                "retried": self._retried,
                "adopted": self._recovered_total,
                "lost": dict(self._lost),
                "waiting": waiting,
                "waiting_bytes": self._ring.size + sum(ring.size for ring in self._recovered),
            }

    @property
    def has_worker(self) -> bool:
        """True while a thread that sends is there, or is being started."""
        return self.claim.is_active()

    def claim_worker(self) -> ThreadClaim | None:
        """A claim for the caller to start the thread that sends; None if there is one."""
        with self._lock:
            return None if self.claim.is_active() else self.replace_worker()

    def replace_worker(self) -> ThreadClaim:
        """The same, whether or not there is one."""
        claim = self.claim = ThreadClaim()
        return claim

    # Called by whoever sends, one thread at a time.

    def due(self, now: float, interval: float) -> float:
        """Seconds until a batch should leave: 0 for now, infinity when nothing waits."""
        with self._lock:
            self._sweep()
            if self._recovered or self._in_flight or (self._ring.waiting and self._is_urgent()):
                return 0.0
            if not self._ring.waiting:
                return float("inf")
            return max(0.0, self._since + interval - now)

    def add_recovered(self, ring: Ring) -> None:
        """Queue what an ended process left, before this process's own events."""
        with self._lock:
            self._recovered.append(ring)
            self._join(ring)

    def recovered_count(self) -> int:
        """How many rings of ended processes wait to be sent."""
        return len(self._recovered)

    def take_drained(self) -> list[Ring]:
        """The recovered rings that have become empty since the last call."""
        if not self._drained:
            return []
        with self._lock:
            rings, self._drained = self._drained, []
            return rings

    def take(self, max_items: int, max_bytes: int) -> list[bytes]:
        """The batch in flight, or else the next one. ``max_bytes`` counts a comma after each event."""
        with self._lock:
            while self._recovered and self._recovered[0].is_lost():
                lost = self._recovered.pop(0)  # our lock on it was lost: somebody else sends what is there
                self._settled += len(lost)
                if self._in_flight is lost:
                    self._in_flight = None
            if self._in_flight is None:
                self._in_flight = self._recovered[0] if self._recovered else self._ring
                self.batch_number += 1
            batch = self._in_flight.take(max_items, max_bytes)
            if not batch:
                self._in_flight = None
            return batch

    def halve(self) -> None:
        """Split the batch in flight in two."""
        with self._lock:
            if self._in_flight is not None:
                self._in_flight.halve()

    def is_sending(self) -> bool:
        """True while a batch is in flight."""
        return self._in_flight is not None

    def is_durable(self) -> bool:
        """True when the batch in flight is in a spool, where it may wait for as long as it takes."""
        return self._in_flight is not None and self._in_flight.slot.is_durable

    def retry(self) -> bool:
        """Count the batch in flight as tried again; False if it has been given up meanwhile."""
        with self._lock:
            if self._in_flight is None:
                return False
            self._retried += len(self._in_flight.batch)
            return True

    def settle(self, cause: str | None = None, lost: Mapping[str, int] | None = None) -> list[bytes]:
        """Remove and return the batch in flight: lost for ``cause``, or delivered except for ``lost``, by cause."""
        with self._lock:
            ring = self._in_flight
            if ring is None:
                return []
            batch = ring.settle()
            if cause is None:
                self._delivered += len(batch)
                for each, count in (lost or {}).items():
                    self._delivered -= count
                    self._count_lost(each, count)
            else:
                self._count_lost(cause, len(batch))
            self._settled += len(batch)
            self.on_removed(batch, cause)
            self._in_flight = ring if ring.has_batches() else None
            self._let_go_if_empty(ring)
            return batch

    def hand_over_to_family(self) -> list[Slot]:
        """Leave what waits in shared memory to the family, if another process of it goes on. Returns the slots."""
        with self._lock:
            self._sweep()
            left = [ring for ring in (*self._recovered, self._ring) if not (ring.is_empty() or ring.slot.is_durable)]
            left = [ring for ring in left if ring.slot.has_successor()]
            for ring in left:
                self._settled += len(ring)
                if ring is self._in_flight:
                    self._in_flight = None
                ring.detach()
                ring.slot.release()
            self._recovered = [ring for ring in self._recovered if ring not in left]
            return [ring.slot for ring in left]

    def abandon(self, cause: str) -> list[bytes]:
        """Give up and return all that waits and is in flight. What is in a spool stays there."""
        with self._lock:
            self._sweep()
            given_up = []
            for ring in (*self._recovered, self._ring):
                if ring.slot.is_durable:
                    continue
                given_up += ring.clear()
                self._let_go_if_empty(ring)
                if ring is self._in_flight:
                    self._in_flight = None
            self._count_lost(cause, len(given_up))
            self._settled += len(given_up)
            self.on_removed(given_up, cause)
            return given_up

    def take_refused(self) -> list[bytes]:
        """The events of calls that interrupted another one, and were refused, since the last call of this."""
        if not self._refused:
            return []
        with self._lock:
            refused, self._refused = self._refused, []
            return refused

    def take_overflow_report(self, now: float, longest: float) -> tuple[OverflowReport | None, float]:
        """The report of dropped events if it is due, and the seconds until it is."""
        with self._lock:
            burst = self._overflow
            if burst is None:
                return None, float("inf")
            left = burst.began + longest - now
            if left > 0 and not self.closed and not self._has_drained():
                return None, left
            self._overflow = None
            return burst, float("inf")

    def try_stop_worker(self) -> bool:
        """Note that the thread stops; False if there is something left to do."""
        with self._lock:
            self._sweep()
            if self._count() or self._overflow or self._refused:
                return False
            self._ring.trim()
            self.claim = ThreadClaim()
            return True

    def release_worker(self) -> None:
        """Note that the thread has stopped, though something may wait: the next `put` returns WAKE."""
        with self._lock:
            self.claim = ThreadClaim()

    # Only under the lock.

    def _admit(self, event: bytes) -> int:
        if self.closed:
            return CLOSED
        ring = self._ring
        size = len(event)
        wake = self._wake_on_put
        if ring.size + size > self._max_bytes or ring.waiting + ring.held >= self._max_events:
            if not self._drops_oldest or size > self.largest:
                return FULL
            if ring.is_lost():
                return SLOT_LOST  # what would be dropped is not ours
            wake = self._make_room(size) or wake
            if self._lacks_room(size):
                return FULL  # the batch in flight takes up all the room
        if not ring.waiting:
            if ring.is_empty() and not ring.slot.is_own():
                return SLOT_LOST
            self._since = self._clock()
        if not ring.append(event):
            return SLOT_LOST if ring.is_lost() else FULL
        wake = wake or ring.waiting in (1, self._flush_at) or not self.claim.is_active()
        return WAKE if wake else QUEUED

    def _lacks_room(self, size: int) -> bool:
        return self._ring.size + size > self._max_bytes or len(self._ring) >= self._max_events

    def _make_room(self, size: int) -> bool:
        """Drop the oldest until ``size`` bytes fit; True if that is to be reported."""
        begins = False
        while self._ring.waiting and self._lacks_room(size):
            oldest = self._ring.pop()
            self._settled += 1
            self._count_lost("overflow", 1)
            self.on_removed([oldest], "overflow")
            begins = self._add_to_overflow_report(oldest) or begins
        return begins

    def _join(self, ring: Ring) -> None:
        self._recovered_total += len(ring)
        self._settled -= len(ring)

    def _count(self) -> int:
        return len(self._ring) + sum(map(len, self._recovered))

    def _let_go_if_empty(self, ring: Ring) -> None:
        if ring is not self._ring and ring.is_empty():
            self._recovered.remove(ring)
            self._drained.append(ring)

    def _sweep(self) -> None:
        while self._nested:
            event = self._nested.popleft()
            answer = self._admit(event)
            if answer == FULL:
                self._count_lost("overflow", 1)
                self._add_to_overflow_report(event)
            elif answer == CLOSED:
                self._count_lost("closed", 1)
                self._refused.append(event)
            elif answer == SLOT_LOST:
                self._nested.appendleft(event)
                return  # the next `put` gets another slot

    def _count_lost(self, cause: str, events: int) -> None:
        if events:
            self._lost[cause] = self._lost.get(cause, 0) + events

    def _add_to_overflow_report(self, event: bytes) -> bool:
        begins = self._overflow is None
        if self._overflow is None:
            self._overflow = OverflowReport(self._clock())
        self._overflow.add(event)
        return begins

    def _is_urgent(self) -> bool:
        if self._ring.waiting >= self._flush_at:
            self._early_flush_target = self._settled + self._count()  # all of them, however many requests that takes
        return self._settled < max(self._flush_target, self._early_flush_target) or self.closed

    def _has_drained(self) -> bool:
        return len(self._ring) * 2 <= self._max_events and self._ring.size * 2 <= self._max_bytes
