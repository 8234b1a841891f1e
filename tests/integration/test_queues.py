"""``Letter(relay=queue)`` with a queue that is not a `SenderManager`'s: of multiprocessing, or of another manager.

Responsible for: putting batches, and what happens when a queue is full, closed, or not read. Not responsible for:
reading them (test_listener.py).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import queue as queues
import sys
import threading
from multiprocessing.managers import BaseManager, SyncManager
from pathlib import Path
from typing import Any

import pytest
from harness import DEADLINE, eventually, run, whose
from managed import (
    KEY,
    SLOW,
    event,
    own_directory,  # noqa: F401  (a fixture for all tests)
    troubles,
    work,
)
from programs import listeners

from letterapp import Letter
from letterapp._queues.targets import ProxyQueue
from letterapp.relay import QueueListener

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Unix")


def test_a_client_of_a_manager_with_its_own_authkey_can_be_pickled(letter_api: Any) -> None:
    with_key = SyncManager(authkey=b"a key of its own")
    with_key.start()
    try:
        letter = Letter(KEY, letter_api.url, relay=with_key.Queue())
        again = pickle.loads(pickle.dumps(letter))
        assert isinstance(again._settings.relay, ProxyQueue)
        queue = letter._settings.relay._proxy
        work(again, 3)
        assert again.close(DEADLINE) and again.stats()["relayed"] == 3
        assert [json.loads(event)["properties"]["serial"] for event in queue.get(timeout=DEADLINE)] == [0, 1, 2]
        letter.close()
    finally:
        with_key.shutdown()


def test_a_full_queue_is_not_used_and_reported_once(letter_api: Any, errors: Any) -> None:
    with multiprocessing.Manager() as other:
        queue = other.Queue(1)
        queue.put([])
        letter = Letter(KEY, letter_api.url, relay=queue, on_error=errors.append, flush_interval=0)
        for start_ in (0, 5):
            work(letter, 5, start=start_)
            assert letter.flush(DEADLINE)
        assert letter.close() and len(troubles(errors)) == 1 and "it is full" in str(errors[0])
    assert whose(letter_api) == {"program": list(range(10))}


@pytest.mark.slow
def test_a_process_ends_even_if_its_queue_is_not_read(letter_api: Any, tmp_path: Path) -> None:
    finished = run(listeners.nobody_reads, letter_api.url, tmp_path)
    assert finished.code == 0 and "no process reads it" in finished.output, finished
    came = whose(letter_api)["program"]
    assert came == sorted(came) and came[-1] == 19 and len(came) > 15  # a pipe holds 64 KiB: three events


def test_a_queue_that_is_not_read_does_not_grow(letter_api: Any, errors: Any) -> None:
    queue: Any = multiprocessing.Queue()
    letter: Any = Letter(KEY, letter_api.url, relay=queue, on_error=errors.append, **SLOW)
    handover = letter._delivery._batches.handover
    for turn in range(5):
        letter.track("program", "Worked", {"serial": turn, "x": "y" * 70_000})
        assert letter.flush(DEADLINE)
        handover._next_try = 0.0
    assert len(queue._buffer) <= 1
    assert whose(letter_api) == {"program": list(range(5))}
    letter.close()
    queue.cancel_join_thread()


def test_a_queue_whose_descriptor_was_closed_writes_to_no_other_file(letter_api: Any, tmp_path: Path) -> None:
    finished = run(listeners.child_without_the_queue_s_descriptor, letter_api.url, tmp_path)
    assert "its descriptor was closed" in finished.output and finished.output.endswith("\n0\n"), finished
    assert whose(letter_api) == {"child": list(range(5))}


def test_a_forked_child_does_not_wait_for_its_parents_feeder(letter_api: Any, tmp_path: Path) -> None:
    finished = run(listeners.child_of_a_parent_whose_feeder_holds_its_lock, letter_api.url, tmp_path)
    assert finished.output == "256\n", finished  # `close` was True


class EndsBetween:
    """Replaces a manager's `stop_event`: a connection's thread sees it set after ``number`` requests.

    That thread looks between two requests. It sees "set" when the next request has come in, which it then does not
    carry out. That is what happens by chance when a manager ends while it is asked.
    """

    def __init__(self, number: int) -> None:
        self._left = number
        self._event = threading.Event()
        self.set, self.wait = self._event.set, self._event.wait

    def is_set(self) -> bool:
        connection = sys._getframe(1).f_locals.get("conn")
        if connection is None or self._left < 0:
            return self._event.is_set()
        self._left -= 1
        if self._left >= 0:
            return False
        assert connection.poll(DEADLINE)
        return True


class EndingQueue(queues.Queue):  # type: ignore[type-arg]
    def end_between(self, number: int) -> None:
        server = multiprocessing.current_process()._manager_server  # type: ignore[attr-defined]
        replaced = server.stop_event
        server.stop_event = EndsBetween(number)
        replaced.set()  # the main thread waits for it, for up to a second


class EndingManager(BaseManager):
    pass


EndingManager.register("Queue", EndingQueue)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(6))
def test_the_answer_of_a_manager_that_ends_is_not_taken_for_an_item(number: int, letter_api: Any, errors: Any) -> None:
    with EndingManager(ctx=multiprocessing.get_context("fork")) as other:
        ending = other.Queue()  # type: ignore[attr-defined]
        for serial in range(3):
            ending.put([event(serial)])
        ending.end_between(number + 1)  # and one look after this answer
        with QueueListener(ending, KEY, letter_api.url, on_error=errors.append):
            assert eventually(lambda: letter_api.distinct, lambda count: count == 3)
            assert eventually(lambda: errors, bool)
            assert ending.empty()
    assert {error.cause for error in errors} == {"degraded"}, errors


@pytest.mark.parametrize("number", range(6))
def test_the_answer_of_a_manager_that_ends_does_not_settle_a_batch(number: int, letter_api: Any, errors: Any) -> None:
    with EndingManager(ctx=multiprocessing.get_context("fork")) as other:
        ending = other.Queue()  # type: ignore[attr-defined]
        ending.end_between(number + 1)
        letter = Letter(KEY, letter_api.url, relay=ending, on_error=errors.append)
        for serial in range(4):
            work(letter, 1, start=serial)
            assert letter.flush(DEADLINE)
        assert letter.close(DEADLINE)
        put = [json.loads(each)["messageId"] for _ in range(ending.qsize()) for each in ending.get()]
    sent = [each["messageId"] for request in letter_api.requests for each in request.json["batch"]]
    assert len({*put, *sent}) == 4
    assert {error.cause for error in errors} <= {"degraded"}, errors
