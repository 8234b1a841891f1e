"""Common code of the tests of the logger.

Responsible for: that a test does not see what earlier ones have left to be logged. Not responsible for: what is right.
"""

from __future__ import annotations

import pytest

from letterapp import _log


# For all tests of a module that imports it.
@pytest.fixture(autouse=True)
def fresh_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_log, "_pending", None)
    monkeypatch.setattr(_log, "_made", {})
    monkeypatch.setattr(_log, "_own", _log.Remembered())
