"""RQ's job. Each process that runs one imports this module, and so creates its own client. Standard library only."""

from __future__ import annotations

import time

import tracker

DURATION = 0.02  # seconds


def work(events: int) -> None:
    tracker.track(events)
    time.sleep(DURATION)
