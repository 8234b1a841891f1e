"""The bounded queue of one process's encoded events, and those that dead processes left it.

Lives here: what waits, what is on the wire, the two bounds and what gives way at them, and the counters. Never here:
I/O, time-outs, threads, callbacks, JSON, and where events lie (`_ring`). Every method returns at once.

An event leaves the queue when it is settled, not when it is taken: `take` hands out the next batch and keeps it,
`settle` removes it. So accepted = delivered + lost + waiting, at any moment.
"""

from __future__ import annotations

import threading
from collections import deque

from ._inside import Inside, Promise

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Mapping

    from ._ring import Ring, Slot

# What `put` answers. The caller has something to do for all but the first.
QUEUED, WAKE, FULL, CLOSED, HOMELESS = range(5)

BURST_SAMPLE = 100  # dropped events that one report carries: as many as a request


def _nobody_asks(events: list[bytes], cause: str | None) -> None:
    pass


class Burst:
    """Events that gave way at the bounds, since the last report of that."""

    def __init__(self, began: float) -> None:
        self.began = began
        self.lost = 0
        self.sample: list[bytes] = []

    def add(self, event: bytes) -> None:
        self.lost += 1
        if len(self.sample) < BURST_SAMPLE:
            self.sample.append(event)


class Outbox:
    """First in, first out, bounded in events and in bytes. Safe from any thread, signal handler and callback.

    What was adopted goes before what this process tracked, and does not count at its bounds, unless it lay in the very
    ring that the process goes on in.
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

        # Guards everything below. Taken by any thread for a few operations on these fields and no more: no I/O, no
        # callback, no other lock. It is re-entrant because a signal handler, a `__del__` or a GC callback may call
        # `put` in a thread that is inside. Such a `put` only lays its event down in `_interrupting` (the fields may be
        # half changed), and whoever comes next sweeps it in.
        self._lock = threading.RLock()
        self._interrupting: deque[bytes] = deque()
        self._refused: list[bytes] = []  # of these, since the queue was closed by then: to be reported
        self.kind = ring.slot.kind
        self._ring = ring
        self._adopted: list[Ring] = []  # the first one first; none is empty
        self._given_back: list[Ring] = []  # adopted, and empty by now
        self._in_hand: Ring | None = None  # whose batch is on the wire, or between two tries
        self.batch_number = 0  # of the batch in hand, and of all parts that it is split into
        self._since = 0.0  # when the oldest event of `_ring` came that is not in hand
        self._burst: Burst | None = None
        # Events that left the queue, one way or the other, less those that came in at its head: what was queued before
        # them is settled when as many more have left.
        self._settled = 0
        self._wanted = 0  # send without delay until `_settled` is this: somebody waits
        self._enough = 0  # the same, because `flush_at` events were there
        self.promise = Promise()  # that somebody looks here again
        self._prompt = len(ring) > 0  # every `put` wants somebody's attention
        self.closed = False
        self._is_leaving = False
        self._delivered = 0
        self._retried = 0
        self._taken_over = len(ring)
        # The threads that look for what to `adopt`: until they have, nothing counts as settled for the others. For
        # themselves it does, because a signal handler may want to settle in the middle of it.
        self.looking = Inside()
        self._lost: dict[str, int] = {}
        # Called under the lock with the events that have left, and the cause if they are lost: for a relay, which owes
        # an answer for each.
        self.left: Callable[[list[bytes], str | None], object] = _nobody_asks

    # Called by any thread.

    def put(self, event: bytes) -> int:
        """Queue ``event``; say what is to do: nothing (QUEUED), or WAKE the sender.

        Or it was not taken: FULL, CLOSED, or HOMELESS, because the ring is not this process's any more: `move` first.
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
        """Count ``event`` as given up for want of room; True when that begins a burst, which somebody must report."""
        with self._lock:
            self._count_lost("overflow", 1)
            return self._add_to_burst(event)

    def refuse(self, cause: str, events: int = 1) -> None:
        """Count events that were never queued."""
        with self._lock:
            self._count_lost(cause, events)

    def is_lost(self) -> bool:
        """True when another process has taken the queue for a dead one's."""
        return not self._ring.is_empty() and self._ring.is_lost()

    def is_homeless(self) -> bool:
        """True when an event that interrupted another call waits for a place, since the one of before is not ours."""
        return bool(self._interrupting) and self._ring.is_empty() and not self._ring.slot.is_own()

    def move(self, ring: Ring) -> None:
        """Go on in ``ring``, if the one of before is not ours any more. What was in it is another's to send then."""
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
        """Have an empty spool removed. A `put` that comes nevertheless is HOMELESS, and so gets another."""
        with self._lock:
            if self._ring.slot.lasts and self._ring.is_empty():
                self._ring.slot.release()

    def sync(self) -> None:
        """Return when what was queued would survive a loss of power."""
        self._ring.slot.sync()

    def hurry(self) -> int:
        """Have all that waits now sent without delay; return the count of settled events at which that is done."""
        with self._lock:
            self._sweep()
            self._wanted = self._settled + self._count()
            return self._wanted

    def be_prompt(self, prompt: bool) -> None:
        """Have each `put` ask for attention from now on, because no thread will come by itself; or no longer."""
        self._prompt = prompt

    def mark_leaving(self, leaves: bool) -> None:
        """Tell the family that this process is at its end, or that it goes on after all."""
        with self._lock:
            self._is_leaving = leaves
            if not self._ring.is_lost():
                self._ring.slot.mark_leaving(leaves)

    def close(self) -> None:
        """Refuse every further event; what waits is still handed out."""
        with self._lock:
            self.closed = True

    def has_room(self, events: int, size: int) -> bool:
        """True when ``events`` events of ``size`` bytes in all would be taken now, the oldest giving way if need be."""
        with self._lock:
            if self._drops_oldest:  # all but the batch in hand can give way
                in_hand = self._ring.in_hand()
                return sum(map(len, in_hand)) + size <= self._max_bytes and len(in_hand) + events <= self._max_events
            return self._ring.size + size <= self._max_bytes and len(self._ring) + events <= self._max_events

    @property
    def largest(self) -> int:
        """Bytes of the largest event that is ever taken."""
        return min(self._max_bytes, self._ring.largest)

    def is_wanted(self) -> bool:
        """True when somebody waits for what is queued: a flush, a close or the end of the process."""
        return self._settled < self._wanted or self.closed

    # Reads alone: no lock. Who looks is asked first: a look that is over by then has left what it found where the rest
    # of the question sees it. The other way round one that ends in between is missed, and at an end its events lost.

    def has_settled(self, target: int) -> bool:
        return not self.looking.has_others() and self._settled >= target

    def is_empty(self) -> bool:
        return not (self.looking.has_others() or self._adopted or self._interrupting) and self._ring.is_empty()

    def glance(self) -> tuple[int, int, int]:
        """Events that wait, were delivered and were lost, not all of the same moment."""
        waiting = self._count() + len(self._interrupting)
        return waiting, self._delivered, sum(self._lost.copy().values())

    def held_by_this_thread(self) -> bool:
        """True in a signal handler or callback that interrupted this very queue: waiting there would be for ever."""
        return bool(self._lock._is_owned())  # type: ignore[attr-defined]

    def call_when_free(self, act: Callable[[], object]) -> None:
        """Wait until no other thread is inside, then call ``act``."""
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
        """Somebody has promised to look here again."""
        return self.promise.stands()

    def attend(self) -> Promise | None:
        """A promise to look after the queue, for the caller to keep; None when one stands."""
        with self._lock:
            return None if self.promise.stands() else self.attend_instead()

    def attend_instead(self) -> Promise:
        """A promise in the place of whatever stands."""
        promise = self.promise = Promise()
        return promise

    # Called by whoever sends: one at a time.

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
        """Queue the events that a dead process left before all others."""
        with self._lock:
            self._adopted.append(ring)
            self._join(ring)

    def adopted(self) -> int:
        """How many rings of dead processes wait to be sent."""
        return len(self._adopted)

    def given_back(self) -> list[Ring]:
        """The adopted rings that have become empty since the last time."""
        if not self._given_back:
            return []
        with self._lock:
            rings, self._given_back = self._given_back, []
            return rings

    def take(self, max_items: int, max_bytes: int) -> list[bytes]:
        """Hand out the batch in hand, or the next one. ``max_bytes`` counts a comma after each event."""
        with self._lock:
            while self._adopted and self._adopted[0].is_lost():
                lost = self._adopted.pop(0)  # with its lock: somebody else sends what is there
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
        """Make two batches of the one in hand."""
        with self._lock:
            if self._in_hand is not None:
                self._in_hand.halve()

    def is_sending(self) -> bool:
        """True while a batch is in hand."""
        return self._in_hand is not None

    def lasts(self) -> bool:
        """True when what is in hand is in a spool, where it may wait for as long as it takes."""
        return self._in_hand is not None and self._in_hand.slot.lasts

    def retry(self) -> bool:
        """Count the batch in hand as tried again; False when it has been abandoned meanwhile."""
        with self._lock:
            if self._in_hand is None:
                return False
            self._retried += len(self._in_hand.batch)
            return True

    def settle(self, cause: str | None = None, lost: Mapping[str, int] | None = None) -> list[bytes]:
        """Remove the batch in hand: lost for ``cause``, or delivered but for ``lost`` of it by cause. Returns it."""
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
        """Let other processes have what waits in the family's memory, if one of them goes on. Returns the slots."""
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
        """Give up all that waits, the batch in hand too, whatever becomes of it on the wire. Returns it.

        What is in a spool is left there.
        """
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
        """The events that interrupted another call and were refused, since the last time."""
        if not self._refused:
            return []
        with self._lock:
            refused, self._refused = self._refused, []
            return refused

    def end_burst(self, now: float, longest: float) -> tuple[Burst | None, float]:
        """The burst of drops that is over, if one is, and else the seconds until it must be looked at again."""
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
        """Stop attending; False when there is something to attend to."""
        with self._lock:
            self._sweep()
            if self._count() or self._burst or self._refused:
                return False
            self._ring.trim()
            self.promise = Promise()
            return True

    def desert(self) -> None:
        """Stop attending though something may wait: the next `put` asks for somebody else."""
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
                return HOMELESS  # what would give way is not ours
            wake = self._make_room(size) or wake
            if self._lacks_room(size):
                return FULL  # the batch on the wire takes it all
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
        """Drop the oldest until ``size`` bytes fit; True when that begins a burst."""
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
                return  # the `put` that comes next will see to it

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
