"""Tests that ``pytest --forked`` runs, each in a child that leaves by ``os._exit``: the client is made at import."""

from __future__ import annotations

import pytest
import tracker

AT_IMPORT, A_TEST = 5, 3  # events

tracker.track(AT_IMPORT)


@pytest.mark.parametrize("number", range(30))
def test_it(number: int) -> None:
    tracker.track(A_TEST)
