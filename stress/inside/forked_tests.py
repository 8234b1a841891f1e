"""Tests for ``pytest --forked``, each in a child that ends with ``os._exit``. The client is created at import."""

from __future__ import annotations

import pytest
import tracker

AT_IMPORT, PER_TEST = 5, 3  # events

tracker.track(AT_IMPORT)


@pytest.mark.parametrize("number", range(30))
def test_it(number: int) -> None:
    tracker.track(PER_TEST)
