"""The bounded queue of one process's encoded events, and of those that ended processes left.

Responsible for: what waits, what is in flight, the two bounds and what gives way at them, the counters. Not responsible
for: I/O, time-outs, threads, callbacks, JSON, and how events are stored (`ring`). Every method returns at once.

An event leaves the queue when it is settled, not when it is taken: `take` returns the next batch and keeps it, `settle`
removes it. So accepted = delivered + lost + waiting, at any moment.
"""

from __future__ import annotations

import threading
from collections import deque
from enum import IntEnum

from .._runtime.guards import ReentrancyGuard, ThreadClaim
from .accounting import Bounds, Counters, OverflowReport, Progress, Unreported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Mapping

    from .ring import Ring, Slot


class PutResult(IntEnum):
    """What `put` returns. For all but the first, which alone is false, the caller has something to do."""

    QUEUED = 0
    WAKE = 1  # queued, and whoever sends is to be woken
    FULL = 2
    CLOSED = 3
    SLOT_LOST = 4  # the slot is no longer this process's: call `relocate` first


QUEUED, WAKE, FULL, CLOSED, SLOT_LOST = PutResult


def _nobody_asks(events: list[bytes], cause: str | None) -> None:
    pass


class Orphans:
    """The rings of ended processes that wait to be sent."""

    def __init__(self) -> None:
        self.rings: list[Ring] = []  # in the order in which they are sent; none is empty
        self.drained: list[Ring] = []  # those that are empty by now, to be released
        # The threads that look for more. Until they are done, nothing counts as settled for the others; for themselves
        # it does, because a signal handler that interrupts them may have to wait until it is settled.
        self.recovering = ReentrancyGuard()


class TakenBatch:
    """The batch that was taken and is not settled: the ring that it is in."""

    def __init__(self) -> None:
        self.ring: Ring | None = None
        self.number = 0


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
        self._bounds = Bounds(max_events, max_bytes, flush_at, drops_oldest)
        self._clock = clock

        # Guards everything below. Any thread takes it, for a few operations on these fields: no I/O, no callback, no
        # other lock. It is re-entrant, because a signal handler, a `__del__` or a GC callback may call `put` in the
        # thread that holds it. As the fields may be half changed then, such a `put` only stores its event in `_nested`;
        # the next call queues it.
        self._lock = threading.RLock()
        self._nested: deque[bytes] = deque()
        self._ring = ring
        self._orphans = Orphans()
        self._taken = TakenBatch()
        self._since = 0.0  # when the oldest event in `_ring` that is not in flight was queued
        self._unreported = Unreported()
        self._counters = Counters(recovered=len(ring))
        self._progress = Progress()
        self.claim = ThreadClaim()  # of the thread that sends
        self._wake_on_put = len(ring) > 0  # every `put` returns WAKE
        self.closed = False
        self._is_exiting = False
        # Called under the lock with events that have left the queue, and the cause if they are lost. For a relay, which
        # has to answer for each.
        self.on_removed: Callable[[list[bytes], str | None], object] = _nobody_asks

    @property
    def kind(self) -> str:
        """Where the events are: ``"shared"``, ``"spool"`` or ``"private"``."""
        return self._ring.slot.kind

    @property
    def recovering(self) -> ReentrancyGuard:
        """The threads that look for orphans."""
        return self._orphans.recovering

    @property
    def batch_number(self) -> int:
        """Of the batch in flight, and of all parts that it is split into."""
        return self._taken.number

    # Called by any thread.

    def put(self, event: bytes) -> PutResult:
        """Queue ``event``, unless the result says why it was not."""
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
            self._counters.note_lost("overflow", 1)
            return self._add_to_overflow_report(event)

    def refuse(self, cause: str, events: int = 1) -> None:
        """Count events that were never queued."""
        with self._lock:
            self._counters.note_lost(cause, events)

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
                self._progress.settled += len(self._ring)
                if self._taken.ring is self._ring:
                    self._taken.ring = None
                self._ring = ring
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
            self._progress.flush_target = self._progress.settled + self._count()
            return self._progress.flush_target

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
            if self._bounds.drops_oldest:  # all but what is in flight can be dropped
                in_flight = self._ring.in_flight()
                return self._bounds.allows(len(in_flight) + events, sum(map(len, in_flight)) + size)
            return self._bounds.allows(len(self._ring) + events, self._ring.size + size)

    @property
    def largest(self) -> int:
        """Bytes of the largest event that can be queued."""
        return min(self._bounds.max_bytes, self._ring.largest)

    def is_flush_requested(self) -> bool:
        """True when somebody waits for what is queued: a flush, a close or the end of the process."""
        return self._progress.settled < self._progress.flush_target or self.closed

    # These only read, and take no lock. They check for recovering threads first: one that has finished by then has
    # queued what it found, and the rest of the check sees that. In the other order a recovery that finishes in between
    # would be missed, and at the end of the process its events lost.

    def has_settled(self, target: int) -> bool:
        return not self._orphans.recovering.has_others() and self._progress.settled >= target

    def is_empty(self) -> bool:
        return (
            not (self._orphans.recovering.has_others() or self._orphans.rings or self._nested) and self._ring.is_empty()
        )

    def quick_counts(self) -> tuple[int, int, int]:
        """Events that wait, were delivered and were lost, not all of the same moment."""
        waiting = self._count() + len(self._nested)
        return waiting, self._counters.delivered, sum(self._counters.lost.copy().values())

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
            waiting_bytes = self._ring.size + sum(ring.size for ring in self._orphans.rings)
            return {**self._counters.of(waiting), "waiting": waiting, "waiting_bytes": waiting_bytes}

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
            if self._orphans.rings or self._taken.ring or (self._ring.waiting and self._is_urgent()):
                return 0.0
            if not self._ring.waiting:
                return float("inf")
            return max(0.0, self._since + interval - now)

    def add_recovered(self, ring: Ring) -> None:
        """Queue what an ended process left, before this process's own events."""
        with self._lock:
            self._orphans.rings.append(ring)
            self._join(ring)

    def recovered_count(self) -> int:
        """How many rings of ended processes wait to be sent."""
        return len(self._orphans.rings)

    def take_drained(self) -> list[Ring]:
        """The recovered rings that have become empty since the last call."""
        if not self._orphans.drained:
            return []
        with self._lock:
            rings, self._orphans.drained = self._orphans.drained, []
            return rings

    def take(self, max_items: int, max_bytes: int) -> list[bytes]:
        """The batch in flight, or else the next one. ``max_bytes`` counts a comma after each event."""
        with self._lock:
            while self._orphans.rings and self._orphans.rings[0].is_lost():
                lost = self._orphans.rings.pop(0)  # our lock on it was lost: somebody else sends what is there
                self._progress.settled += len(lost)
                if self._taken.ring is lost:
                    self._taken.ring = None
            if self._taken.ring is None:
                self._taken.ring = self._orphans.rings[0] if self._orphans.rings else self._ring
                self._taken.number += 1
            batch = self._taken.ring.take(max_items, max_bytes)
            if not batch:
                self._taken.ring = None
            return batch

    def halve(self) -> None:
        """Split the batch in flight in two."""
        with self._lock:
            if self._taken.ring is not None:
                self._taken.ring.halve()

    def is_sending(self) -> bool:
        """True while a batch is in flight."""
        return self._taken.ring is not None

    def is_durable(self) -> bool:
        """True when the batch in flight is in a spool, where it may wait for as long as it takes."""
        return self._taken.ring is not None and self._taken.ring.slot.is_durable

    def retry(self) -> bool:
        """Count the batch in flight as tried again; False if it has been given up meanwhile."""
        with self._lock:
            if self._taken.ring is None:
                return False
            self._counters.retried += len(self._taken.ring.batch)
            return True

    def settle(self, cause: str | None = None, lost: Mapping[str, int] | None = None) -> list[bytes]:
        """Remove and return the batch in flight: lost for ``cause``, or delivered except for ``lost``, by cause."""
        with self._lock:
            ring = self._taken.ring
            if ring is None:
                return []
            batch = ring.settle()
            if cause is None:
                self._counters.delivered += len(batch)
                for each, count in (lost or {}).items():
                    self._counters.delivered -= count
                    self._counters.note_lost(each, count)
            else:
                self._counters.note_lost(cause, len(batch))
            self._progress.settled += len(batch)
            self.on_removed(batch, cause)
            self._taken.ring = ring if ring.has_batches() else None
            self._let_go_if_empty(ring)
            return batch

    def hand_over_to_family(self) -> list[Slot]:
        """Leave what waits in shared memory to the family, if another process of it goes on. Returns the slots."""
        with self._lock:
            self._sweep()
            rings = [*self._orphans.rings, self._ring]
            left = [ring for ring in rings if not (ring.is_empty() or ring.slot.is_durable)]
            left = [ring for ring in left if ring.slot.has_successor()]
            for ring in left:
                self._progress.settled += len(ring)
                if ring is self._taken.ring:
                    self._taken.ring = None
                ring.detach()
                ring.slot.release()
            self._orphans.rings = [ring for ring in self._orphans.rings if ring not in left]
            return [ring.slot for ring in left]

    def abandon(self, cause: str) -> list[bytes]:
        """Give up and return all that waits and is in flight. What is in a spool stays there."""
        with self._lock:
            self._sweep()
            given_up = []
            for ring in (*self._orphans.rings, self._ring):
                if ring.slot.is_durable:
                    continue
                given_up += ring.clear()
                self._let_go_if_empty(ring)
                if ring is self._taken.ring:
                    self._taken.ring = None
            self._counters.note_lost(cause, len(given_up))
            self._progress.settled += len(given_up)
            self.on_removed(given_up, cause)
            return given_up

    def take_refused(self) -> list[bytes]:
        """The events of calls that interrupted another one, and were refused, since the last call of this."""
        if not self._unreported.refused:
            return []
        with self._lock:
            refused, self._unreported.refused = self._unreported.refused, []
            return refused

    def take_overflow_report(self, now: float, longest: float) -> tuple[OverflowReport | None, float]:
        """The report of dropped events if it is due, and the seconds until it is."""
        with self._lock:
            burst = self._unreported.overflow
            if burst is None:
                return None, float("inf")
            left = burst.began + longest - now
            if left > 0 and not self.closed and not self._has_drained():
                return None, left
            self._unreported.overflow = None
            return burst, float("inf")

    def try_stop_worker(self) -> bool:
        """Note that the thread stops; False if there is something left to do."""
        with self._lock:
            self._sweep()
            if self._count() or self._unreported.overflow or self._unreported.refused:
                return False
            self._ring.trim()
            self.claim = ThreadClaim()
            return True

    def release_worker(self) -> None:
        """Note that the thread has stopped, though something may wait: the next `put` returns WAKE."""
        with self._lock:
            self.claim = ThreadClaim()

    # Only under the lock.

    def _admit(self, event: bytes) -> PutResult:
        if self.closed:
            return CLOSED
        ring, bounds = self._ring, self._bounds
        size = len(event)
        wake = self._wake_on_put
        if ring.size + size > bounds.max_bytes or ring.waiting + ring.held >= bounds.max_events:
            if not bounds.drops_oldest or size > self.largest:
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
        if wake or ring.waiting in (1, bounds.flush_at):
            return WAKE
        claim = self.claim
        return QUEUED if claim.started or claim.is_active() else WAKE

    def _lacks_room(self, size: int) -> bool:
        return not self._bounds.allows(len(self._ring) + 1, self._ring.size + size)

    def _make_room(self, size: int) -> bool:
        """Drop the oldest until ``size`` bytes fit; True if that is to be reported."""
        begins = False
        while self._ring.waiting and self._lacks_room(size):
            oldest = self._ring.pop()
            self._progress.settled += 1
            self._counters.note_lost("overflow", 1)
            self.on_removed([oldest], "overflow")
            begins = self._add_to_overflow_report(oldest) or begins
        return begins

    def _join(self, ring: Ring) -> None:
        self._counters.recovered += len(ring)
        self._progress.settled -= len(ring)

    def _count(self) -> int:
        return len(self._ring) + sum(map(len, self._orphans.rings))

    def _let_go_if_empty(self, ring: Ring) -> None:
        if ring is not self._ring and ring.is_empty():
            self._orphans.rings.remove(ring)
            self._orphans.drained.append(ring)

    def _sweep(self) -> None:
        while self._nested:
            event = self._nested.popleft()
            answer = self._admit(event)
            if answer == FULL:
                self._counters.note_lost("overflow", 1)
                self._add_to_overflow_report(event)
            elif answer == CLOSED:
                self._counters.note_lost("closed", 1)
                self._unreported.refused.append(event)
            elif answer == SLOT_LOST:
                self._nested.appendleft(event)
                return  # the next `put` gets another slot

    def _add_to_overflow_report(self, event: bytes) -> bool:
        begins = self._unreported.overflow is None
        if self._unreported.overflow is None:
            self._unreported.overflow = OverflowReport(self._clock())
        self._unreported.overflow.add(event)
        return begins

    def _is_urgent(self) -> bool:
        progress = self._progress
        if self._ring.waiting >= self._bounds.flush_at:
            progress.early_flush_target = progress.settled + self._count()  # all of them, in as many requests as needed
        return progress.is_behind() or self.closed

    def _has_drained(self) -> bool:
        return self._bounds.allows(2 * len(self._ring), 2 * self._ring.size)
