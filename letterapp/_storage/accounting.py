"""The accounting of a queue: bounds, counters, progress of settlement, unreported losses.

Responsible for: these numbers and their rules. Not responsible for: storing events (`queue`, `ring`), locking: the
queue holds its lock whenever it uses these classes.
"""

from __future__ import annotations

from .._config import MAX_ITEMS

OVERFLOW_SAMPLE = MAX_ITEMS  # maximum number of dropped events in one report: as many as in a request


class OverflowReport:
    """The events dropped at the bounds since the last report: their number, and the first ones."""

    def __init__(self, began: float, event: bytes) -> None:
        self.began = began
        self.lost = 1
        self.sample = [event]

    def add(self, event: bytes) -> None:
        self.lost += 1
        if len(self.sample) < OVERFLOW_SAMPLE:
            self.sample.append(event)


class Bounds:
    """The limits of a queue, and its overflow policy."""

    def __init__(self, max_events: int, max_bytes: int, flush_at: int, drops_oldest: bool) -> None:
        self.max_events = max_events
        self.max_bytes = max_bytes
        self.flush_at = flush_at
        self.drops_oldest = drops_oldest

    def allows(self, events: int, size: int) -> bool:
        """True if ``events`` events of ``size`` bytes in total are within the bounds."""
        return events <= self.max_events and size <= self.max_bytes


class Counters:
    """Counts events by outcome: accepted = delivered + lost + waiting."""

    def __init__(self, recovered: int) -> None:
        self.delivered = 0
        self.retried = 0
        self.recovered = recovered
        self.lost: dict[str, int] = {}

    def note_lost(self, cause: str, events: int) -> None:
        if events:
            self.lost[cause] = self.lost.get(cause, 0) + events

    def snapshot(self, waiting: int) -> dict[str, object]:
        """The counters as a dict, for a queue in which ``waiting`` events are waiting."""
        return {
            "accepted": self.delivered + sum(self.lost.values()) + waiting,
            "delivered": self.delivered,
            "retried": self.retried,
            "adopted": self.recovered,
            "lost": dict(self.lost),
        }


class Progress:
    """How many events have been settled, and up to which number events are to be sent without delay."""

    def __init__(self) -> None:
        # Number of events that have left the queue for any reason, minus those recovered at its head. So everything
        # that is in the queue now is settled once that many more events have left.
        self.settled = 0
        self.flush_target = 0  # send without delay until `settled` reaches this: a caller waits
        self.early_flush_target = 0  # the same, because `flush_at` events were queued

    def is_behind(self) -> bool:
        """True while there are events to be sent without delay."""
        return self.settled < max(self.flush_target, self.early_flush_target)


class Unreported:
    """Losses that have not been reported yet."""

    def __init__(self) -> None:
        self.overflow: OverflowReport | None = None
        self.refused: list[bytes] = []  # events of nested calls that were refused because the queue was closed
