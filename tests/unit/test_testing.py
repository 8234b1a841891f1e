"""The ingestion server for tests (`letterapp.testing`)."""

from __future__ import annotations

from typing import Callable

from harness import DEADLINE

from letterapp import Letter
from letterapp.testing import Hold, IngestionServer


def test_a_held_request_is_kept_before_it_is_answered(letter_api: IngestionServer, make: Callable[..., Letter]) -> None:
    hold = Hold()
    letter_api.plan(hold)
    letter = make()
    letter.track("test", "Worked")
    assert hold.arrived.wait(DEADLINE) and letter_api.distinct == 0
    hold.release()
    assert letter.flush(DEADLINE) and letter_api.distinct == 1
