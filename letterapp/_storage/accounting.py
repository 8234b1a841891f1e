"""What a queue counts: its bounds, what became of events, how far it has been settled, losses to report.

Responsible for: the numbers and their rules. Not responsible for: the events (`queue`, `ring`), locks: the queue holds
its own whenever it uses these.
"""

from __future__ import annotations

OVERFLOW_SAMPLE = 100  # dropped events that one report carries: as many as a request


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


class Bounds:
    """What a queue takes, and what happens beyond that."""

    def __init__(self, max_events: int, max_bytes: int, flush_at: int, drops_oldest: bool) -> None:
        self.max_events = max_events
        self.max_bytes = max_bytes
        self.flush_at = flush_at
        self.drops_oldest = drops_oldest

    def allows(self, events: int, size: int) -> bool:
        """True when ``events`` events of ``size`` bytes in all are within the bounds."""
        return events <= self.max_events and size <= self.max_bytes


class Counters:
    """What became of events: accepted = delivered + lost + waiting."""

    def __init__(self, recovered: int) -> None:
        self.delivered = 0
        self.retried = 0
        self.recovered = recovered
        self.lost: dict[str, int] = {}

    def note_lost(self, cause: str, events: int) -> None:
        if events:
            self.lost[cause] = self.lost.get(cause, 0) + events

    def of(self, waiting: int) -> dict[str, object]:
        """The counters when ``waiting`` events are waiting."""
        return {
            "accepted": self.delivered + sum(self.lost.values()) + waiting,
            "delivered": self.delivered,
            "retried": self.retried,
            "adopted": self.recovered,
            "lost": dict(self.lost),
        }


class Progress:
    """How far a queue has been settled, and how far it is to be settled without delay."""

    def __init__(self) -> None:
        # Events that have left the queue in any way, less those that were put at its head: what is queued now is
        # settled when as many more have left.
        self.settled = 0
        self.flush_target = 0  # send without delay until `settled` is this: somebody waits
        self.early_flush_target = 0  # the same, because `flush_at` events were queued

    def is_behind(self) -> bool:
        """True while events are to be sent without delay."""
        return self.settled < max(self.flush_target, self.early_flush_target)


class Unreported:
    """Losses that are still to be reported."""

    def __init__(self) -> None:
        self.overflow: OverflowReport | None = None
        self.refused: list[bytes] = []  # of calls that interrupted another one, when the queue was closed by then
