"""Tests for `pytest --forked` to run."""

from __future__ import annotations

import pytest

from programs.jobs import job


@pytest.mark.parametrize("serial", range(5))
def test_it(serial: int) -> None:
    job(serial)
