"""The bounded queue of one process's encoded events.

Lives here: what waits, what is on the wire, the two bounds and what gives way at them, and the counters. Never here:
I/O, time-outs, threads, callbacks, JSON. Every method returns at once.

An event leaves the queue when it is settled, not when it is taken: `take` hands out the next batch and keeps it,
`settle` removes it. So accepted = delivered + lost + waiting, at any moment.
"""

from __future__ import annotations

import threading
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

# What `put` answers. The caller has something to do for all but the first.
QUEUED, WAKE, FULL, CLOSED = range(4)

BURST_SAMPLE = 100  # dropped events that one report carries: as many as a request


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
    """First in, first out, bounded in events and in bytes. Safe from any thread, signal handler and callback."""

    def __init__(
        self, max_events: int, max_bytes: int, flush_at: int, drops_oldest: bool, clock: Callable[[], float]
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
        self._waiting: deque[bytes] = deque()  # not yet in anybody's hands
        self._taken: list[bytes] = []  # on the wire, or between two tries
        self._bytes = 0  # of both
        self._since = 0.0  # when the oldest of `_waiting` came
        self._burst: Burst | None = None
        self._settled = 0  # events that left the queue, one way or the other, since the start
        self._wanted = 0  # send without delay until `_settled` is this
        self.attended = False  # somebody has promised to look here again
        self._prompt = False  # every `put` wants somebody's attention
        self.closed = False
        self._delivered = 0
        self._retried = 0
        self._lost: dict[str, int] = {}

    # Called by any thread.

    def put(self, event: bytes) -> int:
        """Queue ``event``; say what is to do: nothing (QUEUED), WAKE the sender; or it was not taken (FULL, CLOSED)."""
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

    def refuse(self, cause: str) -> None:
        """Count an event that was never queued."""
        with self._lock:
            self._count_lost(cause, 1)

    def hurry(self) -> int:
        """Have all that waits now sent without delay; return the count of settled events at which that is done."""
        with self._lock:
            self._sweep()
            self._wanted = self._settled + len(self._taken) + len(self._waiting)
            return self._wanted

    def be_prompt(self, prompt: bool) -> None:
        """Have each `put` ask for attention from now on, because no thread will come by itself; or no longer."""
        self._prompt = prompt

    def close(self) -> None:
        """Refuse every further event; what waits is still handed out."""
        with self._lock:
            self.closed = True

    def has_settled(self, target: int) -> bool:
        return self._settled >= target  # one read of an int that only grows: no lock

    def is_empty(self) -> bool:
        return not (self._waiting or self._taken or self._interrupting)

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
            waiting = len(self._taken) + len(self._waiting)
            return {
                "accepted": self._delivered + sum(self._lost.values()) + waiting,
                "delivered": self._delivered,
                "retried": self._retried,
                "lost": dict(self._lost),
                "waiting": waiting,
                "waiting_bytes": self._bytes,
            }

    def attend(self) -> bool:
        """Promise to look after the queue; False when somebody has."""
        with self._lock:
            if self.attended:
                return False
            self.attended = True
            return True

    # Called by whoever sends: one at a time.

    def due(self, now: float, interval: float) -> float:
        """Seconds until a batch should leave: 0 for now, infinity when nothing waits."""
        with self._lock:
            self._sweep()
            if self._taken or (self._waiting and self._is_urgent()):
                return 0.0
            if not self._waiting:
                return float("inf")
            return max(0.0, self._since + interval - now)

    def take(self, max_items: int, max_bytes: int) -> list[bytes]:
        """Hand out the batch in hand, or the next one. ``max_bytes`` counts a comma after each event."""
        with self._lock:
            if not self._taken:
                room = max_bytes
                while self._waiting and len(self._taken) < max_items:
                    room -= len(self._waiting[0]) + 1
                    if room < 0 and self._taken:
                        break
                    self._taken.append(self._waiting.popleft())
            return self._taken

    def halve(self) -> None:
        """Give the second half of the batch in hand back to the head of the queue."""
        with self._lock:
            keep = len(self._taken) // 2
            self._waiting.extendleft(reversed(self._taken[keep:]))
            self._taken = self._taken[:keep]
            self._since = float("-inf")  # it was due already

    def retry(self) -> bool:
        """Count the batch in hand as tried again; False when it has been abandoned meanwhile."""
        with self._lock:
            self._retried += len(self._taken)
            return bool(self._taken)

    def settle(self, cause: str | None = None) -> list[bytes]:
        """Remove the batch in hand: delivered, or lost for ``cause``. Returns it."""
        with self._lock:
            batch, self._taken = self._taken, []
            if cause is None:
                self._delivered += len(batch)
            else:
                self._count_lost(cause, len(batch))
            self._remove(batch)
            return batch

    def abandon(self, cause: str) -> list[bytes]:
        """Give up all that waits, the batch in hand too, whatever becomes of it on the wire. Returns it."""
        with self._lock:
            self._sweep()
            given_up = self._taken + list(self._waiting)
            self._taken = []
            self._waiting.clear()
            self._count_lost(cause, len(given_up))
            self._remove(given_up)
            return given_up

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
            if self._taken or self._waiting or self._burst:
                return False
            self.attended = False
            return True

    def desert(self) -> None:
        """Stop attending though something may wait: the next `put` asks for somebody else."""
        with self._lock:
            self.attended = False

    # Only under the lock.

    def _admit(self, event: bytes) -> int:
        if self.closed:
            return CLOSED
        waiting = self._waiting
        size = len(event)
        wake = self._prompt
        if self._lacks_room(size):
            if not self._drops_oldest or size > self._max_bytes:
                return FULL
            wake = self._make_room(size) or wake
            if self._lacks_room(size):
                return FULL  # the batch on the wire takes it all
        if not waiting:
            self._since = self._clock()
        waiting.append(event)
        self._bytes += size
        length = len(waiting)
        return WAKE if wake or length in (1, self._flush_at) else QUEUED

    def _lacks_room(self, size: int) -> bool:
        return self._bytes + size > self._max_bytes or len(self._waiting) + len(self._taken) >= self._max_events

    def _make_room(self, size: int) -> bool:
        """Drop the oldest until ``size`` bytes fit; True when that begins a burst."""
        begins = False
        while self._waiting and self._lacks_room(size):
            oldest = self._waiting.popleft()
            self._remove([oldest])
            self._count_lost("overflow", 1)
            begins = self._add_to_burst(oldest) or begins
        return begins

    def _sweep(self) -> None:
        while self._interrupting:
            event = self._interrupting.popleft()
            answer = self._admit(event)
            if answer == FULL:
                self._count_lost("overflow", 1)
                self._add_to_burst(event)
            elif answer == CLOSED:
                self._count_lost("closed", 1)

    def _remove(self, events: list[bytes]) -> None:
        self._settled += len(events)
        self._bytes -= sum(map(len, events))
        if not self._waiting and not self._taken:
            self._bytes = 0  # an exception from a signal handler may have come between an append and its sum

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
        return len(self._waiting) >= self._flush_at or self._settled < self._wanted or self.closed

    def _has_drained(self) -> bool:
        waiting = len(self._waiting) + len(self._taken)
        return waiting * 2 <= self._max_events and self._bytes * 2 <= self._max_bytes
