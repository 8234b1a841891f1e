"""The bounded queue of one process's encoded events, and of those that ended processes left.

Responsible for: what waits, what is in flight, the two bounds and what gives way at them, the counters. Not responsible
for: I/O, time-outs, threads, callbacks, JSON, and how events are stored (`_ring`). Every method returns at once.

An event leaves the queue when it is settled, not when it is taken: `take` returns the next batch and keeps it, `settle`
removes it. So accepted = delivered + lost + waiting, at any moment.
"""

from __future__ import annotations

import threading
from collections import deque

from ._inside import Inside, Promise

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Mapping

    from ._ring import Ring, Slot

# What `put` returns. For all but the first the caller has something to do.
QUEUED, WAKE, FULL, CLOSED, HOMELESS = range(5)

BURST_SAMPLE = 100  # dropped events that one report carries: as many as a request


def _nobody_asks(events: list[bytes], cause: str | None) -> None:
    pass


class Burst:
    """Events that were dropped at the bounds since the last report."""

    def __init__(self, began: float) -> None:
        self.began = began
        self.lost = 0
        self.sample: list[bytes] = []

    def add(self, event: bytes) -> None:
        self.lost += 1
        if len(self.sample) < BURST_SAMPLE:
            self.sample.append(event)


class Outbox:
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
        # thread that holds it. As the fields may be half changed then, such a `put` only stores its event in
        # `_interrupting`; the next call queues it.
        self._lock = threading.RLock()
        self._interrupting: deque[bytes] = deque()
        self._refused: list[bytes] = []  # of these, because the queue was closed by then: to be reported
        self.kind = ring.slot.kind
        self._ring = ring
        self._adopted: list[Ring] = []  # the first one first; none is empty
        self._given_back: list[Ring] = []  # adopted, and empty by now
        self._in_hand: Ring | None = None  # whose batch is on the wire, or between two tries
        self.batch_number = 0  # of the batch in hand, and of all parts that it is split into
        self._since = 0.0  # when the oldest event in `_ring` that is not in flight was queued
        self._burst: Burst | None = None
        # Events that have left the queue in any way, less those that were put at its head: what is queued now is
        # settled when as many more have left.
        self._settled = 0
        self._wanted = 0  # send without delay until `_settled` is this: somebody waits
        self._enough = 0  # the same, because `flush_at` events were queued
        self.promise = Promise()  # of the thread that sends
        self._prompt = len(ring) > 0  # every `put` returns WAKE
        self.closed = False
        self._is_leaving = False
        self._delivered = 0
        self._retried = 0
        self._taken_over = len(ring)
        # The threads that look for orphans. Until they are done, nothing counts as settled for the others; for
        # themselves it does, because a signal handler that interrupts them may have to wait until it is settled.
        self.looking = Inside()
        self._lost: dict[str, int] = {}
        # Called under the lock with events that have left the queue, and the cause if they are lost. For a relay, which
        # has to answer for each.
        self.left: Callable[[list[bytes], str | None], object] = _nobody_asks

    # Called by any thread.

    def put(self, event: bytes) -> int:
        """Queue ``event``. Returns QUEUED, or WAKE if whoever sends is to be woken.

        Or the event was not queued: FULL, CLOSED, or HOMELESS: the slot is no longer this process's; call `move` first.
        """
        nested = self._lock._is_owned()  # type: ignore[attr-defined]  # what `threading.Condition` asks of it too
        with self._lock:
            if nested:
                self._interrupting.append(event)
                return WAKE
            answer = self._admit(event)
            if self._interrupting:
                self._sweep()
            return answer

    def drop(self, event: bytes) -> bool:
        """Count ``event`` as dropped for want of room; True if it is the first one, which somebody has to report."""
        with self._lock:
            self._count_lost("overflow", 1)
            return self._add_to_burst(event)

    def refuse(self, cause: str, events: int = 1) -> None:
        """Count events that were never queued."""
        with self._lock:
            self._count_lost(cause, events)

    def is_lost(self) -> bool:
        """True when another process took this one for dead, and has recovered the queue."""
        return not self._ring.is_empty() and self._ring.is_lost()

    def is_homeless(self) -> bool:
        """True when an event of a call that interrupted another needs a new slot, as the last one is no longer ours."""
        return bool(self._interrupting) and self._ring.is_empty() and not self._ring.slot.is_own()

    def move(self, ring: Ring) -> None:
        """Use ``ring`` from now on, if the last one is no longer ours. What was in that another process sends."""
        with self._lock:
            if self._ring.is_empty() or self._ring.is_lost():
                self._settled += len(self._ring)
                if self._in_hand is self._ring:
                    self._in_hand = None
                self._ring = ring
                self.kind = ring.slot.kind
                ring.slot.mark_leaving(self._is_leaving)
                self._join(ring)

    def leave_no_trace(self) -> None:
        """Remove an empty spool file. A later `put` is HOMELESS, and so gets another."""
        with self._lock:
            if self._ring.slot.lasts and self._ring.is_empty():
                self._ring.slot.release()

    def sync(self) -> None:
        """Return when what was queued would survive a loss of power."""
        self._ring.slot.sync()

    def hurry(self) -> int:
        """Have all that is queued now sent without delay; return the count of settled events at which that is done."""
        with self._lock:
            self._sweep()
            self._wanted = self._settled + self._count()
            return self._wanted

    def be_prompt(self, prompt: bool) -> None:
        """Have each `put` return WAKE from now on, because no thread looks by itself; or no longer."""
        self._prompt = prompt

    def mark_leaving(self, leaves: bool) -> None:
        """Tell the family that this process is ending, or that it is not after all."""
        with self._lock:
            self._is_leaving = leaves
            if not self._ring.is_lost():
                self._ring.slot.mark_leaving(leaves)

    def close(self) -> None:
        """Refuse further events; what waits is still sent."""
        with self._lock:
            self.closed = True

    def has_room(self, events: int, size: int) -> bool:
        """True when ``events`` events of ``size`` bytes in all fit now, or would by dropping the oldest."""
        with self._lock:
            if self._drops_oldest:  # all but what is in flight can be dropped
                in_hand = self._ring.in_hand()
                return sum(map(len, in_hand)) + size <= self._max_bytes and len(in_hand) + events <= self._max_events
            return self._ring.size + size <= self._max_bytes and len(self._ring) + events <= self._max_events

    @property
    def largest(self) -> int:
        """Bytes of the largest event that can be queued."""
        return min(self._max_bytes, self._ring.largest)

    def is_wanted(self) -> bool:
        """True when somebody waits for what is queued: a flush, a close or the end of the process."""
        return self._settled < self._wanted or self.closed

    # These only read, and take no lock. They check for recovering threads first: one that has finished by then has
    # queued what it found, and the rest of the check sees that. In the other order a recovery that finishes in between
    # would be missed, and at the end of the process its events lost.

    def has_settled(self, target: int) -> bool:
        return not self.looking.has_others() and self._settled >= target

    def is_empty(self) -> bool:
        return not (self.looking.has_others() or self._adopted or self._interrupting) and self._ring.is_empty()

    def glance(self) -> tuple[int, int, int]:
        """Events that wait, were delivered and were lost, not all of the same moment."""
        waiting = self._count() + len(self._interrupting)
        return waiting, self._delivered, sum(self._lost.copy().values())

    def held_by_this_thread(self) -> bool:
        """True in a signal handler or callback that interrupted this very queue: to wait there would be a deadlock."""
        return bool(self._lock._is_owned())  # type: ignore[attr-defined]

    def call_when_free(self, act: Callable[[], object]) -> None:
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
                "adopted": self._taken_over,
                "lost": dict(self._lost),
                "waiting": waiting,
                "waiting_bytes": self._ring.size + sum(ring.size for ring in self._adopted),
            }

    @property
    def attended(self) -> bool:
        """True while a thread that sends is there, or is being started."""
        return self.promise.stands()

    def attend(self) -> Promise | None:
        """A claim for the caller to start the thread that sends; None if there is one."""
        with self._lock:
            return None if self.promise.stands() else self.attend_instead()

    def attend_instead(self) -> Promise:
        """The same, whether or not there is one."""
        promise = self.promise = Promise()
        return promise

    # Called by whoever sends, one thread at a time.

    def due(self, now: float, interval: float) -> float:
        """Seconds until a batch should leave: 0 for now, infinity when nothing waits."""
        with self._lock:
            self._sweep()
            if self._adopted or self._in_hand or (self._ring.waiting and self._is_urgent()):
                return 0.0
            if not self._ring.waiting:
                return float("inf")
            return max(0.0, self._since + interval - now)

    def adopt(self, ring: Ring) -> None:
        """Queue what an ended process left, before this process's own events."""
        with self._lock:
            self._adopted.append(ring)
            self._join(ring)

    def adopted(self) -> int:
        """How many rings of ended processes wait to be sent."""
        return len(self._adopted)

    def given_back(self) -> list[Ring]:
        """The recovered rings that have become empty since the last call."""
        if not self._given_back:
            return []
        with self._lock:
            rings, self._given_back = self._given_back, []
            return rings

    def take(self, max_items: int, max_bytes: int) -> list[bytes]:
        """The batch in flight, or else the next one. ``max_bytes`` counts a comma after each event."""
        with self._lock:
            while self._adopted and self._adopted[0].is_lost():
                lost = self._adopted.pop(0)  # our lock on it was lost: somebody else sends what is there
                self._settled += len(lost)
                if self._in_hand is lost:
                    self._in_hand = None
            if self._in_hand is None:
                self._in_hand = self._adopted[0] if self._adopted else self._ring
                self.batch_number += 1
            batch = self._in_hand.take(max_items, max_bytes)
            if not batch:
                self._in_hand = None
            return batch

    def halve(self) -> None:
        """Split the batch in flight in two."""
        with self._lock:
            if self._in_hand is not None:
                self._in_hand.halve()

    def is_sending(self) -> bool:
        """True while a batch is in flight."""
        return self._in_hand is not None

    def lasts(self) -> bool:
        """True when the batch in flight is in a spool, where it may wait for as long as it takes."""
        return self._in_hand is not None and self._in_hand.slot.lasts

    def retry(self) -> bool:
        """Count the batch in flight as tried again; False if it has been given up meanwhile."""
        with self._lock:
            if self._in_hand is None:
                return False
            self._retried += len(self._in_hand.batch)
            return True

    def settle(self, cause: str | None = None, lost: Mapping[str, int] | None = None) -> list[bytes]:
        """Remove and return the batch in flight: lost for ``cause``, or delivered except for ``lost``, by cause."""
        with self._lock:
            ring = self._in_hand
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
            self.left(batch, cause)
            self._in_hand = ring if ring.has_batches() else None
            self._let_go_if_empty(ring)
            return batch

    def leave_to_others(self) -> list[Slot]:
        """Leave what waits in shared memory to the family, if another process of it goes on. Returns the slots."""
        with self._lock:
            self._sweep()
            left = [ring for ring in (*self._adopted, self._ring) if not (ring.is_empty() or ring.slot.lasts)]
            left = [ring for ring in left if ring.slot.has_heirs()]
            for ring in left:
                self._settled += len(ring)
                if ring is self._in_hand:
                    self._in_hand = None
                ring.detach()
                ring.slot.release()
            self._adopted = [ring for ring in self._adopted if ring not in left]
            return [ring.slot for ring in left]

    def abandon(self, cause: str) -> list[bytes]:
        """Give up and return all that waits and is in flight. What is in a spool stays there."""
        with self._lock:
            self._sweep()
            given_up = []
            for ring in (*self._adopted, self._ring):
                if ring.slot.lasts:
                    continue
                given_up += ring.clear()
                self._let_go_if_empty(ring)
                if ring is self._in_hand:
                    self._in_hand = None
            self._count_lost(cause, len(given_up))
            self._settled += len(given_up)
            self.left(given_up, cause)
            return given_up

    def take_refused(self) -> list[bytes]:
        """The events of calls that interrupted another one, and were refused, since the last call of this."""
        if not self._refused:
            return []
        with self._lock:
            refused, self._refused = self._refused, []
            return refused

    def end_burst(self, now: float, longest: float) -> tuple[Burst | None, float]:
        """The report of dropped events if it is due, and the seconds until it is."""
        with self._lock:
            burst = self._burst
            if burst is None:
                return None, float("inf")
            left = burst.began + longest - now
            if left > 0 and not self.closed and not self._has_drained():
                return None, left
            self._burst = None
            return burst, float("inf")

    def leave(self) -> bool:
        """Note that the thread stops; False if there is something left to do."""
        with self._lock:
            self._sweep()
            if self._count() or self._burst or self._refused:
                return False
            self._ring.trim()
            self.promise = Promise()
            return True

    def desert(self) -> None:
        """Note that the thread has stopped, though something may wait: the next `put` returns WAKE."""
        with self._lock:
            self.promise = Promise()

    # Only under the lock.

    def _admit(self, event: bytes) -> int:
        if self.closed:
            return CLOSED
        ring = self._ring
        size = len(event)
        wake = self._prompt
        if ring.size + size > self._max_bytes or ring.waiting + ring.held >= self._max_events:
            if not self._drops_oldest or size > self.largest:
                return FULL
            if ring.is_lost():
                return HOMELESS  # what would be dropped is not ours
            wake = self._make_room(size) or wake
            if self._lacks_room(size):
                return FULL  # the batch in flight takes up all the room
        if not ring.waiting:
            if ring.is_empty() and not ring.slot.is_own():
                return HOMELESS
            self._since = self._clock()
        if not ring.append(event):
            return HOMELESS if ring.is_lost() else FULL
        wake = wake or ring.waiting in (1, self._flush_at) or not self.promise.stands()
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
            self.left([oldest], "overflow")
            begins = self._add_to_burst(oldest) or begins
        return begins

    def _join(self, ring: Ring) -> None:
        self._taken_over += len(ring)
        self._settled -= len(ring)

    def _count(self) -> int:
        return len(self._ring) + sum(map(len, self._adopted))

    def _let_go_if_empty(self, ring: Ring) -> None:
        if ring is not self._ring and ring.is_empty():
            self._adopted.remove(ring)
            self._given_back.append(ring)

    def _sweep(self) -> None:
        while self._interrupting:
            event = self._interrupting.popleft()
            answer = self._admit(event)
            if answer == FULL:
                self._count_lost("overflow", 1)
                self._add_to_burst(event)
            elif answer == CLOSED:
                self._count_lost("closed", 1)
                self._refused.append(event)
            elif answer == HOMELESS:
                self._interrupting.appendleft(event)
                return  # the next `put` gets another slot

    def _count_lost(self, cause: str, events: int) -> None:
        if events:
            self._lost[cause] = self._lost.get(cause, 0) + events

    def _add_to_burst(self, event: bytes) -> bool:
        begins = self._burst is None
        if self._burst is None:
            self._burst = Burst(self._clock())
        self._burst.add(event)
        return begins

    def _is_urgent(self) -> bool:
        if self._ring.waiting >= self._flush_at:
            self._enough = self._settled + self._count()  # all of them, however many requests that takes
        return self._settled < max(self._wanted, self._enough) or self.closed

    def _has_drained(self) -> bool:
        return len(self._ring) * 2 <= self._max_events and self._ring.size * 2 <= self._max_bytes
