"""The bounded queue of one process's encoded events and of the events recovered from ended processes.

Responsible for: waiting and in-flight events, the two bounds and the overflow policy, the counters. Not responsible
for: I/O, timeouts, threads, JSON, how events are stored (`ring`). No method blocks, except on disk I/O in a spool.

An event leaves the queue when it is settled, not when it is taken: `take` returns the next batch and keeps it, `settle`
removes it. So accepted = delivered + lost + waiting at any moment.
"""

from __future__ import annotations

import threading
from collections import deque
from enum import IntEnum

from .._runtime.clock import FOREVER
from .._runtime.guards import ReentrancyGuard, ThreadClaim
from .accounting import Bounds, Counters, OverflowReport, Progress, Unreported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Mapping

    from .ring import Ring, Slot


class PutResult(IntEnum):
    """The result of `put`. All but QUEUED, the only falsy one, require an action of the caller."""

    QUEUED = 0
    WAKE = 1  # queued; wake the sending thread
    FULL = 2
    CLOSED = 3
    SLOT_LOST = 4  # the slot is no longer this process's: call `relocate` first


QUEUED, WAKE, FULL, CLOSED, SLOT_LOST = PutResult


class Orphans:
    """The rings recovered from ended processes."""

    def __init__(self) -> None:
        self.rings: list[Ring] = []  # in sending order; none is empty
        self.drained: list[Ring] = []  # now empty, to be released
        # The threads that are looking for orphans. Until they are done, nothing counts as settled for other threads.
        # For themselves it does: a signal handler that interrupts one of them may have to wait for settlement.
        self.recovering = ReentrancyGuard()


class TakenBatch:
    """The batch in flight: the ring that contains it, and its number."""

    def __init__(self) -> None:
        self.ring: Ring | None = None
        self.number = 0


class BoundedQueue:
    """A FIFO queue, bounded in events and in bytes. Any thread, signal handler or callback may call.

    Recovered events are sent before this process's own ones. They do not count towards the bounds, unless they were
    already in the ring that this process claimed.
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

        # Guards everything below. Any thread takes it, for a few operations on these fields: no application code, no
        # waiting (docs/architecture.md, rule 4). It is re-entrant, because a signal handler or a `__del__` may call
        # `put` in the thread that holds it. The fields may be inconsistent then, so such a `put` only appends
        # its event to `_nested`, and the next call queues it.
        self._lock = threading.RLock()
        self._nested: deque[bytes] = deque()
        self._ring = ring
        self._orphans = Orphans()
        self._taken = TakenBatch()
        self._since = 0.0  # the time at which the oldest waiting event in `_ring` was queued
        self._unreported = Unreported()
        self._counters = Counters(recovered=len(ring))
        self._progress = Progress()
        self.claim = ThreadClaim()  # of the thread that sends
        self._wake_on_put = len(ring) > 0  # every `put` returns WAKE
        self.closed = False
        self._is_exiting = False
        # Called under the lock with events that have left the queue, and the cause if they are lost. A relay uses it to
        # acknowledge each event to its client.
        self.on_removed: Callable[[list[bytes], str | None], object] = lambda events, cause: None

    @property
    def kind(self) -> str:
        """Where the events are stored: ``"shared"``, ``"spool"`` or ``"private"``."""
        return self._ring.slot.kind

    @property
    def recovering(self) -> ReentrancyGuard:
        """The threads that are looking for orphans."""
        return self._orphans.recovering

    @property
    def batch_number(self) -> int:
        """The number of the batch in flight, which its parts keep when it is split."""
        return self._taken.number

    # Called by any thread.

    def put(self, event: bytes) -> PutResult:
        """Queue ``event``; the result says whether that succeeded, and what the caller has to do."""
        nested = self._lock._is_owned()  # type: ignore[attr-defined]  # `threading.Condition` uses it too
        with self._lock:
            if nested:
                self._nested.append(event)
                return WAKE
            answer = self._admit(event)
            if self._nested:
                self._admit_nested()
            return answer

    def drop(self, event: bytes) -> bool:
        """Count ``event`` as dropped at the bounds. True if it is the first one of a new overflow report."""
        with self._lock:
            return self._note_dropped(event)

    def refuse(self, cause: str, events: int = 1) -> None:
        """Count ``events`` events that were never queued as lost for ``cause``."""
        with self._lock:
            self._counters.note_lost(cause, events)

    def is_taken_over(self) -> bool:
        """True if this process lost the lock of its slot, and another one has recovered the events in it."""
        return not self._ring.is_empty() and self._ring.is_taken_over()

    def needs_slot(self) -> bool:
        """True if a nested call's event needs a new slot, because the last one no longer belongs to this process."""
        return bool(self._nested) and self._ring.is_empty() and not self._ring.slot.is_own()

    def relocate(self, ring: Ring) -> None:
        """Use ``ring`` from now on, if the last one is no longer ours. Another process sends the events in that."""
        with self._lock:
            if self._ring.is_empty() or self._ring.is_taken_over():
                self._progress.settled += len(self._ring)
                if self._taken.ring is self._ring:
                    self._taken.ring = None
                self._ring = ring
                ring.slot.mark_exiting(self._is_exiting)
                self._join(ring)

    def release_empty_slot(self) -> None:
        """Remove an empty spool file. A later `put` returns SLOT_LOST, and the caller relocates."""
        with self._lock:
            if self._ring.slot.is_durable and self._ring.is_empty():
                self._ring.slot.release()

    def sync(self) -> None:
        """Block until all queued events would survive a power loss, if `spool_sync` is set."""
        self._ring.slot.sync()

    def request_flush(self) -> int:
        """Have everything that is queued now sent without delay. Returns the target for `has_settled`."""
        with self._lock:
            self._admit_nested()
            self._progress.flush_target = self._progress.settled + self._count()
            return self._progress.flush_target

    def set_wake_on_put(self, wake: bool) -> None:
        """Set whether each `put` returns WAKE, because no thread is there to check the queue."""
        self._wake_on_put = wake

    def mark_exiting(self, exiting: bool) -> None:
        """Record for the family whether this process is ending."""
        with self._lock:
            self._is_exiting = exiting
            if not self._ring.is_taken_over():
                self._ring.slot.mark_exiting(exiting)

    def close(self) -> None:
        """Refuse further events. Those in the queue are still sent."""
        with self._lock:
            self.closed = True

    def has_room(self, events: int, size: int) -> bool:
        """True if ``events`` events of ``size`` bytes in total fit now, or would fit after dropping the oldest."""
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
        """True if a caller waits for queued events: `flush`, `close` or the end of the process."""
        return self._progress.settled < self._progress.flush_target or self.closed

    # These only read, and take no lock. They check for recovering threads first: one that has finished has queued what
    # it found, and the rest of the check sees that. In the opposite order a recovery that finishes in between would be
    # missed, and its events lost at the end of the process.

    def has_settled(self, target: int) -> bool:
        return not self._orphans.recovering.has_others() and self._progress.settled >= target

    def is_empty(self) -> bool:
        return (
            not (self._orphans.recovering.has_others() or self._orphans.rings or self._nested) and self._ring.is_empty()
        )

    def quick_counts(self) -> tuple[int, int, int]:
        """How many events are waiting, were delivered and were lost; not an atomic snapshot."""
        waiting = self._count() + len(self._nested)
        return waiting, self._counters.delivered, sum(self._counters.lost.copy().values())

    def is_held_by_this_thread(self) -> bool:
        """True in a signal handler or callback that interrupted a method of this queue: to wait would deadlock."""
        return bool(self._lock._is_owned())  # type: ignore[attr-defined]

    def call_when_released(self, act: Callable[[], object]) -> None:
        """Wait until the lock is free, then call ``act``."""
        with self._lock:
            pass
        act()

    def counts(self) -> dict[str, object]:
        with self._lock:
            self._admit_nested()
            waiting = self._count()
            waiting_bytes = self._ring.size + sum(ring.size for ring in self._orphans.rings)
            return {**self._counters.snapshot(waiting), "waiting": waiting, "waiting_bytes": waiting_bytes}

    @property
    def has_worker(self) -> bool:
        """True while the sending thread is running or being started."""
        return self.claim.is_active()

    def claim_worker(self) -> ThreadClaim | None:
        """A claim with which the caller starts the sending thread; None if there is one already."""
        with self._lock:
            return None if self.claim.is_active() else self.replace_worker()

    def replace_worker(self) -> ThreadClaim:
        """The same, even if there is one already."""
        claim = self.claim = ThreadClaim()
        return claim

    # Called by the sending thread, one at a time.

    def due(self, now: float, interval: float) -> float:
        """Seconds until a batch is to be sent: 0 for now, infinity if the queue is empty."""
        with self._lock:
            self._admit_nested()
            if self._orphans.rings or self._taken.ring:
                return 0.0
            if not self._ring.waiting:
                return FOREVER
            if self._ring.waiting >= self._bounds.flush_at:  # send all events, in as many requests as needed
                self._progress.early_flush_target = self._progress.settled + self._count()
            if self.closed or self._progress.is_behind():
                return 0.0
            return max(0.0, self._since + interval - now)

    def add_recovered(self, ring: Ring) -> None:
        """Queue the events of an ended process, ahead of this process's own ones."""
        with self._lock:
            self._orphans.rings.append(ring)
            self._join(ring)

    def recovered_count(self) -> int:
        """Number of rings of ended processes that are not fully sent."""
        return len(self._orphans.rings)

    def take_drained(self) -> list[Ring]:
        """The recovered rings that have become empty since the last call."""
        if not self._orphans.drained:
            return []
        with self._lock:
            rings, self._orphans.drained = self._orphans.drained, []
            return rings

    def take(self, max_items: int, max_bytes: int) -> list[bytes]:
        """The batch in flight or, if there is none, the next one. ``max_bytes`` includes a comma after each event."""
        with self._lock:
            while self._orphans.rings and self._orphans.rings[0].is_taken_over():
                theirs = self._orphans.rings.pop(0)  # this process lost its lock: another one sends these events
                self._progress.settled += len(theirs)
                if self._taken.ring is theirs:
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
        """True if the batch in flight is in a spool, where it can wait indefinitely."""
        return self._taken.ring is not None and self._taken.ring.slot.is_durable

    def retry(self) -> bool:
        """Count the batch in flight as retried; False if it has been given up in the meantime."""
        with self._lock:
            if self._taken.ring is None:
                return False
            self._counters.retried += len(self._taken.ring.batch)
            return True

    def settle(self, cause: str | None = None, lost: Mapping[str, int] | None = None) -> list[bytes]:
        """Remove and return the batch in flight.

        It is lost if there is a ``cause``, and otherwise delivered, except for the numbers of events in ``lost``.
        """
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
            self._taken.ring = ring if ring.has_in_flight() else None
            self._note_if_drained(ring)
            return batch

    def release_to_family(self) -> list[Slot]:
        """Release the slots in shared memory that another process of the family will recover, and return them."""
        with self._lock:
            self._admit_nested()
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
        """Give up and return all waiting and in-flight events, except those in a spool, which stay there."""
        with self._lock:
            self._admit_nested()
            given_up = []
            for ring in (*self._orphans.rings, self._ring):
                if ring.slot.is_durable:
                    continue
                given_up += ring.clear()
                self._note_if_drained(ring)
                if ring is self._taken.ring:
                    self._taken.ring = None
            self._counters.note_lost(cause, len(given_up))
            self._progress.settled += len(given_up)
            self.on_removed(given_up, cause)
            return given_up

    def take_refused(self) -> list[bytes]:
        """The events of nested calls that were refused since this was last called."""
        if not self._unreported.refused:
            return []
        with self._lock:
            refused, self._unreported.refused = self._unreported.refused, []
            return refused

    def take_overflow_report(self, now: float, longest: float) -> tuple[OverflowReport | None, float]:
        """The report of dropped events if it is due, and the seconds until the next one is.

        It is due when the queue has room again, or ``longest`` seconds after the first event was dropped.
        """
        with self._lock:
            report = self._unreported.overflow
            if report is None:
                return None, FOREVER
            remaining = report.began + longest - now
            has_room = self._bounds.allows(2 * len(self._ring), 2 * self._ring.size)  # it is less than half full
            if remaining > 0 and not self.closed and not has_room:
                return None, remaining
            self._unreported.overflow = None
            return report, FOREVER

    def try_stop_worker(self) -> bool:
        """Record that the sending thread stops; False if it still has something to do."""
        with self._lock:
            self._admit_nested()
            if self._count() or self._unreported.overflow or self._unreported.refused:
                return False
            self._ring.trim()
            self.claim = ThreadClaim()
            return True

    def release_worker(self) -> None:
        """Record that the sending thread has stopped, even if events are waiting: the next `put` returns WAKE."""
        with self._lock:
            self.claim = ThreadClaim()

    # Called with the lock held.

    def _admit(self, event: bytes) -> PutResult:
        if self.closed:
            return CLOSED
        ring, bounds = self._ring, self._bounds
        size = len(event)
        wake = self._wake_on_put
        if ring.size + size > bounds.max_bytes or ring.waiting + ring.in_flight_count >= bounds.max_events:
            if not bounds.drops_oldest or size > self.largest:
                return FULL
            if ring.is_taken_over():
                return SLOT_LOST  # the oldest events now belong to another process
            wake = self._make_room(size) or wake
            if self._lacks_room(size):
                return FULL  # the batch in flight fills the queue, and cannot be dropped
        if not ring.waiting:
            if ring.is_empty() and not ring.slot.is_own():
                return SLOT_LOST
            self._since = self._clock()
        if not ring.append(event):
            return SLOT_LOST if ring.is_taken_over() else FULL
        if wake or ring.waiting in (1, bounds.flush_at):
            return WAKE
        claim = self.claim
        return QUEUED if claim.started or claim.is_active() else WAKE

    def _lacks_room(self, size: int) -> bool:
        return not self._bounds.allows(len(self._ring) + 1, self._ring.size + size)

    def _make_room(self, size: int) -> bool:
        """Drop the oldest events until ``size`` bytes fit. True if that begins a new overflow report."""
        begins = False
        while self._ring.waiting and self._lacks_room(size):
            oldest = self._ring.pop()
            self._progress.settled += 1
            begins = self._note_dropped(oldest) or begins
            self.on_removed([oldest], "overflow")
        return begins

    def _join(self, ring: Ring) -> None:
        self._counters.recovered += len(ring)
        self._progress.settled -= len(ring)

    def _count(self) -> int:
        return len(self._ring) + sum(map(len, self._orphans.rings))

    def _note_if_drained(self, ring: Ring) -> None:
        if ring is not self._ring and ring.is_empty():
            self._orphans.rings.remove(ring)
            self._orphans.drained.append(ring)

    def _admit_nested(self) -> None:
        while self._nested:
            event = self._nested.popleft()
            answer = self._admit(event)
            if answer == FULL:
                self._note_dropped(event)
            elif answer == CLOSED:
                self._counters.note_lost("closed", 1)
                self._unreported.refused.append(event)
            elif answer == SLOT_LOST:
                self._nested.appendleft(event)
                return  # the next `put` gets another slot

    def _note_dropped(self, event: bytes) -> bool:
        self._counters.note_lost("overflow", 1)
        report = self._unreported.overflow
        if report is None:
            self._unreported.overflow = OverflowReport(self._clock(), event)
            return True
        report.add(event)
        return False
