"""``QueueListener``: one process reads a queue of multiprocessing, or of a manager, and sends what clients put in it.

Responsible for: reading and sending. Not responsible for: putting (test_queues.py).
"""

from __future__ import annotations

import multiprocessing
import os
import queue as queues
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from harness import DEADLINE, eventually, first_is_quick, run, start, suspend, whose
from managed import (
    KEY,
    SLOW,
    event,
    own_directory,  # noqa: F401  (a fixture for all tests)
    work,
)
from programs import listeners

from letterapp import Letter, LetterError
from letterapp.relay import QueueListener, SenderManager
from letterapp.testing import Hold, status

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Unix")


@first_is_quick("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("kind", ["manager", "plain"])
def test_a_listener_sends_the_events_of_processes_of_every_kind(
    kind: str, method: str, letter_api: Any, tmp_path: Path
) -> None:
    finished = run(listeners.every_kind_of_process, letter_api.url, tmp_path, kind, method)
    assert finished.code == 0 and "Traceback" not in finished.output and "letterapp" not in finished.output, finished
    expected = {f"{who} {n}": list(range(150)) for who in ("process", "forked") for n in range(3)}
    expected.update({f"grandchild {n}": list(range(10)) for n in range(3)}, main=list(range(300)))
    assert whose(letter_api) == expected, finished
    assert len({request.connection for request in letter_api.requests}) == 1


def test_a_child_that_is_forked_during_the_first_put_into_a_queue_uses_it(letter_api: Any, tmp_path: Path) -> None:
    finished = run(listeners.forks_during_the_first_put, letter_api.url, tmp_path)
    assert finished.code == 0 and not finished.output, finished
    assert letter_api.distinct == 20


def test_start_and_stop_of_a_listener(letter_api: Any, errors: Any) -> None:
    with pytest.raises(TypeError, match="no option 'overflow'"):
        QueueListener(multiprocessing.Queue(), KEY, overflow="block")
    with pytest.raises(LetterError, match="queue must be an object with a get method"):
        QueueListener(object(), KEY)
    with pytest.raises(LetterError, match="needs no listener"):
        QueueListener(SenderManager(KEY), KEY)
    listener = QueueListener(multiprocessing.Queue(), KEY, letter_api.url, on_error=errors.append)
    assert listener.stop() and listener.stats() == {}
    listener.start()
    listener.start()
    assert listener.stop() and listener.stop()
    with pytest.raises(LetterError, match="has been stopped"):
        listener.start()
    other = multiprocessing.Manager()
    gone = QueueListener(other.Queue(), KEY, letter_api.url, on_error=errors.append)
    gone.start()
    other.shutdown()
    assert eventually(lambda: errors, bool)
    assert "the queue cannot be read" in str(errors[0])
    assert not gone.stop(DEADLINE)  # what is in it cannot be known


@pytest.mark.parametrize("first", ["client", "listener"])
def test_a_listener_ends_after_the_clients_of_its_program(first: str, letter_api: Any, tmp_path: Path) -> None:
    finished = run(listeners.ends_with_its_listener, letter_api.url, tmp_path, first)
    assert finished.code == 0 and not finished.output, finished
    assert whose(letter_api) == {first: list(range(250))}
    assert len({request.connection for request in letter_api.requests}) == 1


@pytest.mark.parametrize("when", ["the process ends", "the queue's thread has ended"])
def test_a_listener_that_is_not_stopped_sends_the_events_of_children_that_are_joined_at_exit(
    when: str, letter_api: Any, tmp_path: Path
) -> None:
    finished = run(listeners.never_stops_its_listener, letter_api.url, tmp_path, when)
    assert finished.code == 0 and not finished.output, finished
    assert whose(letter_api) == {"parent": list(range(2000)), "child": list(range(20))}
    assert len(letter_api.requests) < 500  # of 2,020 events: not one each


def test_the_next_listener_sends_what_a_killed_one_had_in_its_spool(letter_api: Any, tmp_path: Path) -> None:
    letter_api.rule = lambda request: status(503)
    with start(listeners.killed_with_a_spool, letter_api.url, tmp_path, tmp_path / "spool") as program:
        program.finish()
    letter_api.rule = None
    with QueueListener(multiprocessing.Queue(), KEY, letter_api.url, spool=tmp_path / "spool"):
        pass
    assert whose(letter_api) == {"program": list(range(5))}


def test_a_full_listener_leaves_the_rest_in_the_queue(letter_api: Any, errors: Any) -> None:
    hold = Hold()
    letter_api.plan(hold)
    with multiprocessing.Manager() as other:
        queue = other.Queue()
        for batch in range(10):
            queue.put([event(10 * batch + n) for n in range(10)])
        listener = QueueListener(queue, KEY, letter_api.url, max_queue_events=20, flush_at=5, on_error=errors.append)
        with listener:
            assert hold.arrived.wait(DEADLINE)
            assert eventually(lambda: listener.stats()["waiting"], lambda waiting: waiting == 20)
            assert queue.qsize() >= 7
            hold.release()
        assert queue.empty() and not errors
    assert whose(letter_api) == {"u": list(range(100))}


def test_a_listener_whose_stop_times_out_leaves_the_rest_in_the_queue(letter_api: Any, errors: Any) -> None:
    hold = Hold()
    letter_api.plan(hold)
    with multiprocessing.Manager() as other:
        queue = other.Queue()
        for batch in range(10):
            queue.put([event(10 * batch + n) for n in range(10)])
        listener = QueueListener(queue, KEY, letter_api.url, max_queue_events=25, flush_at=5, on_error=errors.append)
        listener.start()
        assert hold.arrived.wait(DEADLINE)
        assert eventually(lambda: listener.stats()["waiting"], lambda waiting: waiting == 25)
        assert not listener.stop(0.5)
        hold.release()
        left = eventually(queue.qsize, lambda size: size == 8)
        assert left == 7 + 1  # and the sentinel
        eventually(lambda: errors, lambda reports: len(reports) == 2)  # the second is reported by the listener's thread
        lost = sum(error.lost for error in errors)
        assert {error.cause for error in errors} == {"closed"} and len(errors) == 2 and lost == 30, errors
        again = QueueListener(queue, KEY, letter_api.url)
        with again:
            pass
        assert again.stats()["delivered"] == 70


def test_stop_flushes_the_clients_of_the_listener_s_program_first(letter_api: Any) -> None:
    queue: Any = multiprocessing.Queue()
    with QueueListener(queue, KEY, letter_api.url):
        letter = Letter(KEY, letter_api.url, relay=queue, **SLOW)
        work(letter, 3)
    assert whose(letter_api) == {"program": [0, 1, 2]}
    letter.close()


class LateQueue:
    """A queue whose first `get` times out, but does not return before ``late`` is set."""

    def __init__(self) -> None:
        self._items: Any = queues.Queue()
        self.is_read, self.is_stopped, self.late = threading.Event(), threading.Event(), threading.Event()

    def put_nowait(self, item: Any) -> None:
        self._items.put_nowait(item)
        self.is_stopped.set()  # by the sentinel of `stop`, which nothing else puts here

    def put_before(self, item: Any) -> None:
        self._items.put_nowait(item)

    def get(self, block: bool, timeout: float) -> Any:
        if not self.is_read.is_set():
            self.is_read.set()
            assert self.late.wait(DEADLINE)
            raise queues.Empty
        return self._items.get(block, timeout)


def test_a_listener_whose_get_times_out_as_it_is_stopped_reads_once_more(letter_api: Any, errors: Any) -> None:
    queue = LateQueue()
    listener = QueueListener(queue, KEY, letter_api.url, on_error=errors.append)
    listener.start()
    assert queue.is_read.wait(DEADLINE)
    queue.put_before([event(0)])
    stopping = threading.Thread(target=listener.stop, args=(DEADLINE,))
    stopping.start()
    assert queue.is_stopped.wait(DEADLINE)
    queue.late.set()
    stopping.join(DEADLINE)
    assert whose(letter_api) == {"u": [0]} and not errors


@pytest.mark.slow
def test_a_listener_waits_for_a_stopped_manager_to_continue(letter_api: Any, errors: Any) -> None:
    with multiprocessing.Manager() as other:
        queue = other.Queue()
        manager_pid = other._process.pid  # type: ignore[attr-defined]
        listener = QueueListener(queue, KEY, letter_api.url, on_error=errors.append)
        with listener:
            for turn in range(20):
                queue.put([event(3 * turn + n) for n in range(3)])
            assert eventually(lambda: listener.stats()["accepted"], bool)  # it is connected
            suspend(manager_pid)
            try:
                over = time.monotonic() + 6  # longer than anything else waits for an answer
                eventually(lambda: time.monotonic() > over, bool)
            finally:
                os.kill(manager_pid, signal.SIGCONT)
    assert whose(letter_api) == {"u": list(range(60))} and not errors


@pytest.mark.slow
def test_a_queue_whose_lock_a_killed_reader_holds_is_reported(letter_api: Any, errors: Any) -> None:
    queue = multiprocessing.get_context("fork").Queue()
    reader = os.fork()
    if not reader:
        queue.get()  # holds the lock that readers share
        os._exit(0)
    assert eventually(lambda: _is_held(queue), bool)
    os.kill(reader, signal.SIGKILL)
    os.waitpid(reader, 0)
    listener = QueueListener(queue, KEY, letter_api.url, on_error=errors.append)
    letter = Letter(KEY, letter_api.url, relay=queue)
    with listener:
        work(letter, 1)
        assert letter.flush(DEADLINE)
        assert eventually(lambda: errors, bool)
    assert "another reader, perhaps a killed one, holds its lock" in str(errors[0]) and not listener.stop()
    letter.close()


def _is_held(queue: Any) -> bool:
    if queue._rlock.acquire(False):
        queue._rlock.release()
        return False
    return True


def test_an_item_that_is_not_an_event_is_reported_and_affects_no_other(letter_api: Any, errors: Any) -> None:
    good = event(0)
    with multiprocessing.Manager() as other:
        queue = other.Queue()
        for item in (None, "text", 7, [good, "x"], b"", [], good[:-1], {"a": 1}, b'{"x":"' + b"x" * 600_000 + b'"}'):
            queue.put(item)
        with QueueListener(queue, KEY, letter_api.url, on_error=errors.append) as listener:
            pass
    assert whose(letter_api) == {"u": [0]}
    assert listener.stats()["lost"] == {"invalid": 7, "overflow": 1}
    assert sorted(error.cause for error in errors) == ["invalid"] * 7 + ["overflow"]
