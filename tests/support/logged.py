"""Common code of the tests of the logger.

Responsible for: what the logger logs during a test, without what earlier ones have left to be logged. Not responsible
for: what is right.
"""

from __future__ import annotations

import logging
from typing import Callable, Iterator

import pytest

from letterapp import _log


# For all tests of a module that imports it.
@pytest.fixture(autouse=True)
def fresh_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_log, "_pending", None)
    monkeypatch.setattr(_log, "_made", {})
    monkeypatch.setattr(_log, "_own", _log.Remembered())


class Listener(logging.Handler):
    """Keeps the records, and calls ``act`` for each."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.act: Callable[[], object] = lambda: None

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self.act()

    @property
    def texts(self) -> list[str]:
        return [record.getMessage() for record in self.records]

    def lines(self, level: int = logging.DEBUG) -> list[str]:
        return [record.getMessage() for record in self.records if record.levelno == level]


@pytest.fixture(name="listener")
def listening() -> Iterator[Listener]:
    logger, listener = logging.getLogger("letterapp"), Listener()
    logger.setLevel(logging.DEBUG)
    logger.addHandler(listener)
    yield listener
    logger.removeHandler(listener)
    logger.setLevel(logging.NOTSET)
