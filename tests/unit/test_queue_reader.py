"""The listener's thread: items that no client has put into the queue."""

from __future__ import annotations

import multiprocessing
import queue
from typing import Any

import pytest
from harness import DEADLINE

from letterapp import LetterError
from letterapp.relay import QueueListener

EVENT = b'{"type":"track","userId":"u","event":"e","messageId":"m","timestamp":"2026-01-01T00:00:00Z","properties":{}}'


class Shared:
    """A queue that passes items on unpickled, so that they are of a class of the test."""

    def __init__(self) -> None:
        self._items: Any = queue.Queue()

    def get(self, block: bool = True, timeout: Any = None) -> Any:
        return self._items.get(block, timeout)

    def put_nowait(self, item: Any) -> None:
        self._items.put_nowait(item)


class RaisesInRepr:
    def __repr__(self) -> str:
        raise RuntimeError("repr")


class RaisesInEq:
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("eq")


class RaisesInIter(list):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        raise RuntimeError("iter")


@pytest.mark.parametrize("item", [[RaisesInRepr()], [RaisesInEq()], RaisesInIter()], ids=["repr", "eq", "iter"])
def test_an_item_whose_class_raises_is_reported_and_does_not_stop_the_listener(item: Any, letter_api: Any) -> None:
    errors: list[LetterError] = []
    source = Shared()
    with QueueListener(source, "k", letter_api.url, on_error=errors.append):
        source.put_nowait(item)
        source.put_nowait([EVENT])
        assert letter_api.wait_for(1, DEADLINE)
    assert [(error.cause, error.lost) for error in errors] == [("invalid", 1)]
    assert "not an event of a client" in str(errors[0])


def test_an_item_that_comes_when_the_queue_was_just_found_empty_shows_no_other_reader(letter_api: Any) -> None:
    errors: list[LetterError] = []
    source: Any = multiprocessing.get_context("spawn").Queue()
    is_empty = source.empty
    has_put: list[bool] = []

    def put_first() -> bool:
        if not has_put:
            has_put.append(True)
            source.put([EVENT])
            assert source._poll(DEADLINE)  # its feeder thread has written it
        return bool(is_empty())

    source.empty = put_first
    with QueueListener(source, "k", letter_api.url, on_error=errors.append):
        assert letter_api.wait_for(1, DEADLINE)
    assert errors == []
