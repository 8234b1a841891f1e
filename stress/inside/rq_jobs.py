"""A job of RQ's: each process that does one imports this module, and so makes its own client. Standard library only."""

from __future__ import annotations

import time

import tracker

TAKES = 0.02  # seconds


def work(events: int) -> None:
    tracker.track(events)
    time.sleep(TAKES)
