"""The inbox that the tests of this folder share; each test gets it empty."""

from __future__ import annotations

import time
from typing import Any, Iterator

import pytest
from inboxes import Inbox, item

from letterapp import Letter, LetterError
from letterapp._inbox.store import Entry, Received, Store, json_text


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inbox]:
    with Inbox(tmp_path_factory.mktemp("inbox")) as inbox:
        yield inbox


@pytest.fixture(scope="session")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inbox]:
    """An inbox with 100,000 events, from a file: sending them would take many seconds. Tests may add to them."""
    folder = tmp_path_factory.mktemp("full")
    path = str(folder / "kept.sqlite")
    store = Store(path, 100_000, 1_000_000_000)
    received = Received(time.time(), "/v1/batch", 200, "", 1, 100, 0, None, "", {})
    entries = []
    for number in range(100_000):
        each = item(event=f"E{number}", messageId=f"m{number}", properties={"path": "/a/b/c" * 10})
        entries.append(Entry("track", "u1", each["event"], each["messageId"], each, json_text(each)))
    store.add(received, entries)
    store.close()
    with Inbox(folder, "--keep", path) as inbox:
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
