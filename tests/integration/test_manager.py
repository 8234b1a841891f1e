"""``Letter(relay=manager.queue)``: the processes of a program pass their batches to one process that sends.

Responsible for: what users write, options, and that flush, close, counters and errors mean what they mean elsewhere.
Not responsible for: failures (test_manager_failures.py), full queues (test_manager_capacity.py), the manager's process
(test_manager_process.py), gunicorn, uWSGI and Celery (tests/servers), multiprocessing itself (test_manager_facts.py).
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import queue as queues
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness import DEADLINE, eventually, first_is_quick, run, whose
from managed import (
    KEY,
    SLOW,
    Suspended,
    balanced,
    event,
    own_directory,  # noqa: F401  (a fixture for all tests)
    own_manager,  # noqa: F401  (a fixture)
    work,
)
from programs import managers

from letterapp import Letter, LetterError
from letterapp._delivery.retry import Pending, Settled
from letterapp._relay.handover import Handover
from letterapp.relay import SENDING, SenderManager
from letterapp.testing import Hold, status

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Unix")


@pytest.mark.slow
@first_is_quick("method", ["fork", "spawn", "forkserver"])
def test_every_kind_of_process_sends_through_one_manager(method: str, letter_api: Any, tmp_path: Path) -> None:
    finished = run(managers.every_kind_of_process, letter_api.url, tmp_path, method)
    assert finished.code == 0 and "Traceback" not in finished.output and "letterapp" not in finished.output, finished
    came = whose(letter_api)
    assert sorted(came.pop("pool")) == list(range(320)), finished
    assert came.pop("late") == list(range(10))
    expected = {"main": list(range(120)), **{f"process {n}": list(range(120)) for n in range(3)}}
    assert came == expected, finished
    # The late ones were sent by the program, over a separate connection; all others over the manager's only one.
    assert len({request.connection for request in letter_api.requests}) == 2
    # A worker ended by SIGTERM may have handed over a batch without learning the outcome: its family sends it again.
    pool = [item for item in letter_api.events if item["userId"] == "pool"]
    ended = {item["messageId"] for item in pool if item["properties"]["serial"] >= 300}
    assert letter_api.repeated().keys() <= ended
    assert eventually(lambda: psutil.pid_exists(int(finished.output.split()[-1])), lambda there: not there) is False


def test_a_queue_carries_the_key_and_the_address(manager: Any, letter_api: Any) -> None:
    letter = Letter(relay=pickle.loads(pickle.dumps(manager().queue)))
    again = pickle.loads(pickle.dumps(letter))
    for each in (letter, again):
        work(each, 1)
        assert each.close()
    assert [request.headers["authorization"] for request in letter_api.requests] == [f"Bearer {KEY}"] * 2


def test_a_key_or_an_api_address_other_than_the_managers_is_refused(manager: Any, letter_api: Any) -> None:
    queue = manager().queue
    with pytest.raises(LetterError, match="api_key differs from the SenderManager's"):
        Letter("another", relay=queue)
    with pytest.raises(LetterError, match="base_url differs from the SenderManager's"):
        Letter(relay=queue, base_url="http://127.0.0.1:9")
    Letter(KEY, letter_api.url, relay=queue).close()
    queue._proof = "0" * 64
    with pytest.raises(LetterError, match="another API key"):
        queue.ask("status")


def test_no_repr_shows_the_authkey_or_the_api_key(manager: Any) -> None:
    one = manager()
    for text in (repr(one), repr(one.queue), str(one.queue), repr(Letter(relay=one.queue)._settings)):
        assert KEY not in text and one._key.hex() not in text and repr(one._key) not in text


@pytest.mark.parametrize(
    "queue",
    [queues.Queue(), queues.SimpleQueue(), queues.LifoQueue(), 7, object(), ["a"], multiprocessing.SimpleQueue()],
    ids=lambda queue: type(queue).__name__,
)
def test_an_object_that_cannot_carry_events_to_another_process_is_refused(queue: Any, letter_api: Any) -> None:
    with pytest.raises(LetterError, match="relay"):
        Letter(KEY, letter_api.url, relay=queue)


def test_an_asyncio_queue_and_a_manager_itself_are_refused(letter_api: Any) -> None:
    async def queue() -> Any:
        return asyncio.Queue()

    with pytest.raises(LetterError, match="never leave this process"):
        Letter(KEY, letter_api.url, relay=asyncio.run(queue()))
    with pytest.raises(LetterError, match=r"pass its \.queue"):
        Letter(KEY, letter_api.url, relay=SenderManager(KEY, letter_api.url))


def test_invalid_options_are_refused_by_the_constructor(letter_api: Any) -> None:
    with pytest.raises(TypeError, match="no option 'on_error'"):
        SenderManager(KEY, on_error=print)
    with pytest.raises(LetterError, match="overflow"):
        SenderManager(KEY, overflow="whatever")
    wrong: Any
    for wrong in ("secret", b"", 7):
        with pytest.raises(LetterError, match="authkey"):
            SenderManager(KEY, authkey=wrong)
    for wrong in (7, ("h",), ("h", "p"), "", "a\0b"):
        with pytest.raises(LetterError, match="address"):
            SenderManager(KEY, address=wrong)
    with pytest.raises(LetterError, match="api_key is required"):
        SenderManager()
    with pytest.raises(LetterError, match="needs the server's address and authkey"):
        SenderManager(KEY).connect()
    with pytest.raises(LetterError, match="has no queue yet"):
        SenderManager(KEY).queue  # noqa: B018


@pytest.mark.slow
def test_every_option_reaches_the_process_that_sends(manager: Any, letter_api: Any, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "flush_at": 7,
        "flush_interval": 0.2,
        "max_retries": 1,
        "timeout": 7.5,
        "max_queue_bytes": 100_000,
        "max_queue_events": 77,
        "overflow": "drop_oldest",
        "max_batch_bytes": 50_000,
        "exit_timeout": 2.0,
        "spool": str(tmp_path / "spool"),
        "spool_max_bytes": 10_000_000,
    }
    assert set(given) == set(SENDING)
    one = manager(**given)
    assert one.status()["memory"] == "spool"
    letter = Letter(relay=one.queue, **SLOW)
    letter_api.plan(*[status(503)] * 2)
    work(letter, 3)
    letter.flush(1)
    assert letter.flush(20) and balanced(letter)["delivered"] == 3  # with a spool `max_retries` is no limit


def test_a_manager_itself_cannot_be_pickled(manager: Any) -> None:
    one = manager()
    with pytest.raises(LetterError, match=r"pass its \.queue"):
        pickle.dumps(one)
    one.shutdown()
    one.join(DEADLINE)


@pytest.mark.skipif(sys.version_info < (3, 9), reason="once is enough")
def test_importing_the_client_does_not_import_multiprocessing() -> None:
    code = "import sys, letterapp; letterapp.Letter('k'); print('multiprocessing' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


# Flush, close, statistics and errors mean what they mean without a manager.


def test_a_batch_counts_as_delivered_when_the_api_has_it(manager: Any, letter_api: Any, errors: Any) -> None:
    hold = Hold()
    letter_api.plan(hold)
    letter = Letter(relay=manager().queue, on_error=errors.append, **SLOW)
    work(letter, 5)
    assert not letter.flush(0.5)
    assert hold.arrived.wait(DEADLINE)
    stats = balanced(letter)
    assert (stats["waiting"], stats["delivered"], stats["relayed"]) == (5, 0, 0)
    hold.release()
    assert letter.flush(DEADLINE)
    stats = balanced(letter)
    assert (stats["waiting"], stats["delivered"], stats["relayed"], stats["mode"]) == (0, 5, 5, "relay")
    assert letter.close() and not errors


def test_a_rejected_batch_is_reported_to_the_process_that_tracked_it(
    manager: Any, letter_api: Any, errors: Any
) -> None:
    letter_api.plan(status(403, b'{"error":{"code":"bad","message":"no such thing","reason":"x"}}'))
    letter = Letter(relay=manager().queue, on_error=errors.append, **SLOW)
    work(letter, 3)
    assert letter.flush(DEADLINE)
    (error,) = errors
    assert (error.cause, error.status, error.code, error.lost) == ("rejected", 403, "bad", 3)
    assert [event["properties"]["serial"] for event in error.events] == [0, 1, 2]
    assert balanced(letter)["lost"] == {"rejected": 3}
    work(letter, 1, start=3)
    assert letter.close() and balanced(letter)["delivered"] == 1


def test_each_process_gets_reports_of_its_own_events_only(manager: Any, letter_api: Any) -> None:
    # While the first request is held, batches of two clients come in, which then make one request.
    one = manager()
    hold = Hold()
    letter_api.plan(hold, status(403))
    reported: dict[str, list[LetterError]] = {"first": [], "a": [], "b": []}
    letters = {who: Letter(relay=one.queue, on_error=reported[who].append, flush_interval=0) for who in reported}
    work(letters["first"], 1, "first")
    assert hold.arrived.wait(DEADLINE)
    work(letters["a"], 1, "a")
    work(letters["b"], 1, "b")
    assert eventually(lambda: one.status()["waiting"] == 3, bool)
    hold.release()
    for who, letter in letters.items():
        assert letter.close(DEADLINE)
        assert [[event["userId"] for event in error.events] for error in reported[who]] == (
            [] if who == "first" else [[who]]
        )
    assert len(letter_api.requests) == 2


def test_close_gives_up_and_reports_what_the_manager_has_not_settled(
    manager: Any, letter_api: Any, errors: Any
) -> None:
    hold = Hold()
    letter_api.plan(hold)
    letter = Letter(relay=manager().queue, on_error=errors.append, **SLOW)
    work(letter, 4)
    assert not letter.close(0.5)
    assert [(error.cause, error.lost) for error in errors] == [("closed", 4)]
    hold.release()


# How batches travel.


def test_small_batches_of_many_processes_are_sent_together_and_a_flush_does_not_wait_for_more(
    manager: Any, letter_api: Any
) -> None:
    one = manager(flush_interval=3600, flush_at=8)
    letters = [Letter(relay=one.queue, flush_interval=0) for _ in range(8)]
    for who, letter in enumerate(letters):
        work(letter, 1, str(who))
        if who < 7:
            assert eventually(lambda: one.status()["waiting"] == who + 1, bool)  # noqa: B023
    assert letter_api.wait_for(8)
    assert [len(request.json["batch"]) for request in letter_api.requests] == [8]
    work(letters[0], 1, "alone")
    assert eventually(lambda: one.status()["waiting"] == 1, bool)
    assert letters[0].flush(DEADLINE)  # though it was handed over before
    work(letters[1], 1, "alone too")
    with Suspended(letters[1]):
        flushing = threading.Thread(target=letters[1].flush, args=(DEADLINE,))
        flushing.start()
    flushing.join(DEADLINE)
    for letter in letters:
        assert letter.close(DEADLINE)
    assert len(letter_api.requests) == 3


def test_a_flush_sends_a_small_batch_without_delay(manager: Any, letter_api: Any) -> None:
    one = manager(flush_interval=3600)
    letter = Letter(relay=one.queue, flush_interval=0)
    work(letter, 1)
    assert eventually(lambda: one.status()["waiting"], bool)
    assert letter.flush(DEADLINE)
    assert letter.close()


def test_where_calls_must_not_wait_the_outcome_is_requested_later(manager: Any, letter_api: Any) -> None:
    hold = Hold()
    letter_api.plan(hold)
    handover = Handover(manager().queue, 1.0, 5.0, lambda trouble: None, time.monotonic)
    one = event(0)
    # The first connection may take longer than a call may wait; then it is tried again after a second.
    outcome = eventually(lambda: handover.offer([one], 0.0, True), lambda found: found is not None)
    assert isinstance(outcome, Pending)
    assert isinstance(handover.offer([one], 0.0, True), Pending)
    hold.release()
    outcome = eventually(lambda: handover.offer([one], 1.0, True), lambda found: isinstance(found, Settled))
    assert isinstance(outcome, Settled)
    assert handover.relayed == 1
