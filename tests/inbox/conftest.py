"""The inbox that the tests of this folder share; each test gets it empty."""

from __future__ import annotations

from typing import Any, Iterator

import pytest
from inboxes import Inbox

from letterapp import Letter, LetterError


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inbox]:
    with Inbox(tmp_path_factory.mktemp("inbox")) as inbox:
        yield inbox


@pytest.fixture(scope="session")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inbox]:
    """An inbox with 100,000 events. Tests may add to them."""
    with Inbox(tmp_path_factory.mktemp("full")) as inbox:
        inbox.fill(100_000, properties={"path": "/a/b/c" * 10})
        yield inbox


@pytest.fixture
def inbox(running: Inbox) -> Inbox:
    assert running.process.poll() is None, running.output
    running.clear()
    return running


@pytest.fixture
def letter(inbox: Inbox, errors: list[LetterError]) -> Iterator[Letter]:
    """A client of the inbox."""
    made: Any = Letter("lt_test_local", inbox.url, on_error=errors.append)
    yield made
    made.close(1)
