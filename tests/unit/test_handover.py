"""Passing a batch to a queue: `letterapp._relay.handover`, without processes."""

from __future__ import annotations

import time
from typing import Any

import pytest

from letterapp._delivery.retry import Settled
from letterapp._relay.handover import Handover


def test_an_interrupted_exchange_is_not_resumed_on_its_connection() -> None:
    class Queue:
        """A queue and its connections, which it counts. The first wait for an outcome is interrupted."""

        retired = False
        has_feeder = False
        connections = 0
        is_interrupted = False

        def connect(self, patience: float) -> Queue:
            self.connections += 1
            return self

        def put(self, batch: list[bytes], urgent: bool, wait: float, patience: float) -> bool:
            return True

        def settled(self, linger: float, urgent: bool, wait: float, patience: float) -> list[bytes] | None:
            if not self.is_interrupted:
                self.is_interrupted = True
                raise KeyboardInterrupt
            return []

        def close(self) -> None: ...

    queue = Queue()
    reports: list[Any] = []
    handover = Handover(queue, 1.0, 5.0, reports.append, time.monotonic)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        handover.offer([b"{}"], 1.0, True)
    assert isinstance(handover.offer([b"{}"], 1.0, True), Settled)
    assert queue.connections == 2 and not reports
