"""``Letter(relay=queue)``: batches through a manager's queue to one sender process, or through any queue to a listener.

Responsible for: what is promised of them, with real processes, except under servers (test_manager_servers.py). Not
responsible for: what multiprocessing does by itself (test_manager_facts.py).
"""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import multiprocessing.managers
import os
import pickle
import queue as queues
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from typing import Any, Callable, Iterator

import psutil
import pytest
from harness import DEADLINE, FEW_DESCRIPTORS, PRELUDE, Program, environment, eventually, run, start, suspend, whose
from managed import KEY, SECRET, Directory, own_directory  # noqa: F401  (a fixture that is there for all)

from letterapp import Letter, LetterError
from letterapp._delivery.retry import Pending, Settled
from letterapp._queues.manager_connection import Disconnected
from letterapp._queues.targets import ManagerQueue, ProxyQueue
from letterapp._relay.handover import Handover
from letterapp._relay.protocol import proof
from letterapp._relay_server.manager_program import address_of, spawn_process
from letterapp.relay import SENDING, QueueListener, SenderManager
from letterapp.testing import Hold, status
from stress.ports import free_port

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Unix")

SLOW = {"flush_interval": 3600, "flush_at": 10**6}  # nothing leaves by itself


@pytest.fixture
def manager(letter_api: Any) -> Iterator[Callable[..., SenderManager]]:
    """Starts managers, and shuts them down after the test."""
    made: list[SenderManager] = []

    def new(**options: Any) -> SenderManager:
        made.append(SenderManager(KEY, letter_api.url, **options))
        made[-1].start()
        return made[-1]

    yield new
    letter_api.closing.set()
    for one in made:
        one.shutdown()


def work(letter: Letter, count: int, who: str = "program", start: int = 0) -> None:
    for serial in range(start, start + count):
        letter.track(who, "Worked", {"serial": serial})


def balanced(letter: Letter) -> dict[str, Any]:
    stats = letter.stats()
    assert stats["accepted"] == stats["delivered"] + sum(stats["lost"].values()) + stats["waiting"], stats
    return stats


def event(serial: int) -> bytes:
    """As a client would encode it."""
    said = {
        "type": "track",
        "userId": "u",
        "event": "e",
        "messageId": f"m {serial}",
        "timestamp": "2026-01-01T00:00:00Z",
    }
    return json.dumps({**said, "properties": {"serial": serial}}).encode()


# What users write.

EXAMPLE = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from letterapp.relay import SenderManager

def job(serial):
    letter.track("pool", "Worked", {"serial": serial, "pid": os.getpid()})

def process(letter, who):
    work(letter, 120, who)

def adopt(given):
    global letter
    letter = given

if __name__ == "__main__":
    method = sys.argv[1]
    context = multiprocessing.get_context(method)
    with SenderManager("test-key", API) as manager:
        letter = Letter(relay=manager.queue)
        work(letter, 120, "main")
        processes = [context.Process(target=process, args=(letter, f"process {n}")) for n in range(3)]
        for each in processes:
            each.start()
        for each in processes:
            each.join()
            assert each.exitcode == 0
        with context.Pool(4, adopt, (letter,)) as pool:
            pool.map(job, range(200), chunksize=5)
            pool.close()
            pool.join()
        with ProcessPoolExecutor(2, mp_context=context, initializer=adopt, initargs=(letter,)) as executor:
            list(executor.map(job, range(200, 300)))
        with context.Pool(2, adopt, (letter,)) as pool:  # ended by SIGTERM
            pool.map(job, range(300, 320))
            if method != "fork":  # no family shares its memory: what is not handed over goes with a killed worker
                pool.close()
                pool.join()
        letter.flush()
        pid = manager.status()["pid"]
        status = manager.status()
        assert letter.stats()["mode"] == "relay", letter.stats()
    work(letter, 10, "late")
    print(status["accepted"], status["delivered"], status["lost"])
    print(pid)
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_every_kind_of_process_sends_through_one_manager(method: str, letter_api: Any, tmp_path: Any) -> None:
    finished = run(EXAMPLE, letter_api.url, tmp_path, method)
    assert finished.code == 0 and "Traceback" not in finished.output and "letterapp" not in finished.output, finished
    came = whose(letter_api)
    assert sorted(came.pop("pool")) == list(range(320)), finished
    assert came.pop("late") == list(range(10))
    expected = {"main": list(range(120)), **{f"process {n}": list(range(120)) for n in range(3)}}
    assert came == expected, finished
    # All but the late ones came over the manager's one connection, and those over one of the program's own.
    assert len({request.connection for request in letter_api.requests}) == 2
    # A worker that SIGTERM ends may have handed over a batch and not have heard of it: its family sends it again.
    pool = [item for item in letter_api.events if item["userId"] == "pool"]
    ended = {item["messageId"] for item in pool if item["properties"]["serial"] >= 300}
    assert letter_api.repeated().keys() <= ended
    assert eventually(lambda: psutil.pid_exists(int(finished.output.split()[-1])), lambda there: not there) is False


def test_a_queue_needs_neither_key_nor_address_and_carries_them(manager: Any, letter_api: Any) -> None:
    letter = Letter(relay=pickle.loads(pickle.dumps(manager().queue)))
    again = pickle.loads(pickle.dumps(letter))
    for each in (letter, again):
        work(each, 1)
        assert each.close()
    assert [request.headers["authorization"] for request in letter_api.requests] == [f"Bearer {KEY}"] * 2


def test_a_key_or_an_address_that_differs_from_the_manager_s_is_refused(manager: Any, letter_api: Any) -> None:
    queue = manager().queue
    with pytest.raises(LetterError, match="api_key is not the one"):
        Letter("another", relay=queue)
    with pytest.raises(LetterError, match="base_url is not the one"):
        Letter(relay=queue, base_url="http://127.0.0.1:9")
    Letter(KEY, letter_api.url, relay=queue).close()
    queue._proof = "0" * 64
    with pytest.raises(LetterError, match="another API key"):
        queue.ask("status")


def test_neither_the_secret_nor_the_key_shows(manager: Any) -> None:
    one = manager()
    for text in (repr(one), repr(one.queue), str(one.queue), repr(Letter(relay=one.queue)._settings)):
        assert KEY not in text and one._key.hex() not in text and repr(one._key) not in text


@pytest.mark.parametrize(
    "queue",
    [queues.Queue(), queues.SimpleQueue(), queues.LifoQueue(), 7, object(), ["a"], multiprocessing.SimpleQueue()],
    ids=lambda queue: type(queue).__name__,
)
def test_what_cannot_carry_events_to_another_process_is_refused(queue: Any, letter_api: Any) -> None:
    with pytest.raises(LetterError, match="relay"):
        Letter(KEY, letter_api.url, relay=queue)


def test_queues_of_asyncio_and_a_manager_itself_are_refused(letter_api: Any) -> None:
    async def queue() -> Any:
        return asyncio.Queue()

    with pytest.raises(LetterError, match="never leave this process"):
        Letter(KEY, letter_api.url, relay=asyncio.run(queue()))
    with pytest.raises(LetterError, match=r"give its \.queue"):
        Letter(KEY, letter_api.url, relay=SenderManager(KEY, letter_api.url))


def test_options_are_checked_where_they_are_given(letter_api: Any) -> None:
    with pytest.raises(TypeError, match="no option 'on_error'"):
        SenderManager(KEY, on_error=print)
    with pytest.raises(LetterError, match="overflow"):
        SenderManager(KEY, overflow="whatever")
    for wrong in ("secret", b"", 7):
        with pytest.raises(LetterError, match="authkey"):
            SenderManager(KEY, authkey=wrong)  # type: ignore[arg-type]
    for wrong in (7, ("h",), ("h", "p"), "", "a\0b"):
        with pytest.raises(LetterError, match="address"):
            SenderManager(KEY, address=wrong)  # type: ignore[arg-type]
    with pytest.raises(LetterError, match="api_key is required"):
        SenderManager()
    with pytest.raises(LetterError, match="needs the address and the authkey"):
        SenderManager(KEY).connect()
    with pytest.raises(LetterError, match="has no queue yet"):
        SenderManager(KEY).queue  # noqa: B018


def test_every_option_reaches_the_process_that_sends(manager: Any, letter_api: Any, tmp_path: Any) -> None:
    given = {
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
    letter_api.plan(*[status(503)] * 3)
    work(letter, 3)
    letter.flush(1)
    assert letter.flush(20)  # in a spool it is tried for ever, whatever max_retries is


# Flush, close, statistics and errors mean what they mean elsewhere.


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


def test_what_the_api_refuses_is_told_to_the_process_that_tracked_it(
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


def test_each_process_is_told_of_its_own_events_alone(manager: Any, letter_api: Any) -> None:
    # While the first request is held, batches of two clients come together, and travel together.
    one = manager()
    hold = Hold()
    letter_api.plan(hold, status(403))
    told: dict[str, list[LetterError]] = {"first": [], "a": [], "b": []}
    letters = {who: Letter(relay=one.queue, on_error=told[who].append, flush_interval=0) for who in told}
    work(letters["first"], 1, "first")
    assert hold.arrived.wait(DEADLINE)
    work(letters["a"], 1, "a")
    work(letters["b"], 1, "b")
    assert eventually(lambda: one.status()["waiting"] == 3, bool)
    hold.release()
    for who, letter in letters.items():
        assert letter.close(DEADLINE)
        assert [[event["userId"] for event in error.events] for error in told[who]] == (
            [] if who == "first" else [[who]]
        )
    assert len(letter_api.requests) == 2


def test_close_gives_up_what_the_manager_has_not_settled_and_says_so(
    manager: Any, letter_api: Any, errors: Any
) -> None:
    hold = Hold()
    letter_api.plan(hold)
    letter = Letter(relay=manager().queue, on_error=errors.append, **SLOW)
    work(letter, 4)
    assert not letter.close(0.5)
    assert [(error.cause, error.lost) for error in errors] == [("closed", 4)]
    hold.release()


# Trouble: a call never waits, an event is never lost, and it is said once.


def calls_in_time(letter: Letter, count: int, start: int, longest: float = 0.25) -> None:
    """Calls that do not wait for a manager. The bound is a busy machine's; what a manager is waited for is a second."""
    for serial in range(start, start + count):
        began = time.monotonic()
        letter.track("program", "Worked", {"serial": serial})
        assert time.monotonic() - began < longest


def troubles(errors: list[LetterError]) -> list[str]:
    assert all(error.cause == "degraded" for error in errors), errors
    return [str(error) for error in errors]


def test_a_killed_manager_loses_nothing_and_it_is_said_once(manager: Any, letter_api: Any, errors: Any) -> None:
    hold = Hold()
    letter_api.plan(hold)
    one = manager()
    letter = Letter(relay=one.queue, on_error=errors.append, flush_interval=0)
    calls_in_time(letter, 20, 0)
    assert hold.arrived.wait(DEADLINE)
    os.kill(one.status()["pid"], signal.SIGKILL)
    calls_in_time(letter, 20, 20)
    assert letter.flush(DEADLINE)
    hold.release()
    calls_in_time(letter, 20, 40)
    assert letter.close(DEADLINE)
    assert len(troubles(errors)) == 1 and "cannot be used" in str(errors[0])
    stats = balanced(letter)
    assert (stats["delivered"], stats["mode"]) == (60, "thread")
    assert whose(letter_api) == {"program": list(range(60))}


def test_a_stopped_manager_holds_nobody_up_and_is_used_again(manager: Any, letter_api: Any, errors: Any) -> None:
    one = manager()
    letter = Letter(relay=one.queue, on_error=errors.append, flush_interval=0)
    calls_in_time(letter, 1, 0)
    assert letter.flush(DEADLINE)
    pid = one.status()["pid"]
    suspend(pid)
    try:
        calls_in_time(letter, 300, 1)
        began = time.monotonic()
        assert letter.flush(DEADLINE)
        assert time.monotonic() - began < 20  # a second of patience, and the own way; not for ever
        assert letter.stats()["mode"] == "thread"
    finally:
        os.kill(pid, signal.SIGCONT)

    def is_used_again() -> bool:
        before = letter.stats()["relayed"]
        work(letter, 1, "again", start=int(time.monotonic() * 1e6))
        assert letter.flush(DEADLINE)
        return bool(letter.stats()["relayed"] > before)

    assert eventually(is_used_again, bool)
    assert letter.close(DEADLINE)
    assert ["does not answer in time" in text for text in troubles(errors)] == [True]
    assert whose(letter_api)["program"] == list(range(301))


def test_a_process_ends_in_time_though_its_manager_is_stopped(manager: Any, letter_api: Any, tmp_path: Any) -> None:
    queue = manager().queue
    pid = queue.ask("status")["pid"]
    code = """
    import pickle
    letter = Letter(relay=pickle.loads(bytes.fromhex(sys.argv[1])), exit_timeout=2, **eval(sys.argv[3]))
    work(letter, 1, sys.argv[2])
    letter.flush()
    assert letter.stats()["relayed"] == 1
    suspend(int(sys.argv[4]))
    work(letter, 3, sys.argv[2], 1)
    """
    for who, options in {"at the end": SLOW, "on the wire": {"flush_interval": 0}}.items():
        arguments = (pickle.dumps(queue).hex(), who, repr(options), str(pid))
        try:
            finished = run(code, letter_api.url, tmp_path, *arguments)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert finished.code == 0 and finished.output.count("\n") == 1, finished
        assert "does not answer in time" in finished.output
    assert whose(letter_api) == {"at the end": [0, 1, 2, 3], "on the wire": [0, 1, 2, 3]}


def test_an_end_does_not_wait_for_room(manager: Any, letter_api: Any) -> None:
    one = manager(max_queue_events=3, overflow="block")
    hold = Hold()
    letter_api.plan(hold)
    first = Letter(relay=one.queue, flush_interval=0)
    work(first, 1, "first")
    assert hold.arrived.wait(DEADLINE)
    second = Letter(relay=one.queue, flush_interval=0, timeout=DEADLINE)
    work(second, 3, "second")
    assert not second.flush(0.5)
    assert second.close(DEADLINE / 2)  # its own way
    assert whose(letter_api) == {"second": [0, 1, 2]}
    hold.release()
    assert first.close(DEADLINE)


def test_a_kept_manager_that_is_restarted_is_used_again(directory: Directory, letter_api: Any, errors: Any) -> None:
    with directory.keep() as kept:
        one = SenderManager(KEY, letter_api.url, address=directory.socket, authkey=SECRET)
        one.connect()
        letter = Letter(relay=one.queue, on_error=errors.append, **SLOW)
        work(letter, 3)
        assert letter.flush(DEADLINE)
        kept.signal(signal.SIGTERM)
        assert kept.finish().code == 0 and "3 delivered, 0 lost, 0 left" in kept.output
        assert not os.path.exists(directory.socket)
    with directory.keep():
        work(letter, 3, start=3)  # its old connection is replaced at once: nothing was handed over meanwhile
        assert letter.flush(DEADLINE) and not errors
        assert directory.status()["delivered"] == 3
    work(letter, 3, start=6)  # that one was killed: nobody serves
    assert letter.flush(DEADLINE)
    assert len(troubles(errors)) == 1
    with directory.keep():  # at the socket that the killed one has left

        def is_used_again() -> bool:
            work(letter, 1, "again", start=int(time.monotonic() * 1e6))
            assert letter.flush(DEADLINE)
            return bool(directory.status()["delivered"] > 0)

        assert eventually(is_used_again, bool)
        with pytest.raises(LetterError, match="whoever keeps this server"):
            one.shutdown()
        assert letter.close(DEADLINE)
    assert whose(letter_api)["program"] == list(range(9))
    assert letter_api.repeated() == {}


@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest", "block"])
def test_a_full_manager(overflow: str, manager: Any, letter_api: Any) -> None:
    one = manager(max_queue_events=11, overflow=overflow)
    hold = Hold()
    letter_api.plan(hold)
    told: list[list[LetterError]] = [[] for _ in range(4)]
    letters = [Letter(relay=one.queue, on_error=each.append, flush_interval=0, timeout=DEADLINE) for each in told]
    work(letters[0], 1, "0")
    assert hold.arrived.wait(DEADLINE)
    for who in (1, 2, 3):
        with Suspended(letters[who]):
            work(letters[who], 5, str(who))
        if who < 3:
            assert eventually(lambda: one.status()["accepted"] >= 1 + 5 * who, bool), one.status()  # noqa: B023
    if overflow == "drop_newest":
        assert letters[3].flush(DEADLINE)  # its own way, while the manager stands
    else:
        assert not letters[3].flush(1.5)
    hold.release()
    for letter in letters:
        assert letter.close(DEADLINE)
        balanced(letter)
    lost = {who: sum(error.lost for error in each if error.cause) for who, each in enumerate(told)}
    came = {who: len(serials) for who, serials in whose(letter_api).items()}
    if overflow == "drop_oldest":
        assert sum(lost.values()) + sum(came.values()) == 16 and sum(lost.values()) > 0, (lost, came)
        assert all(error.cause == "overflow" for each in told for error in each if error.cause)
    else:
        assert came == {"0": 1, "1": 5, "2": 5, "3": 5}, (lost, came)
        assert not any(lost.values())


class Suspended:
    """Nothing leaves a client while events are put in, so that they make one batch."""

    def __init__(self, letter: Letter) -> None:
        self._turn = letter._delivery._batches.lock  # type: ignore[attr-defined]
        self._begun, self._over = threading.Event(), threading.Event()
        self._holder = threading.Thread(target=self._hold)

    def _hold(self) -> None:
        def wait() -> None:
            self._begun.set()
            assert self._over.wait(DEADLINE)

        assert self._turn.run(wait, DEADLINE)

    def __enter__(self) -> None:
        self._holder.start()
        assert self._begun.wait(DEADLINE)

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self._holder.join(DEADLINE)


def test_a_batch_on_the_wire_that_fills_the_queue_is_a_full_queue(manager: Any, letter_api: Any) -> None:
    # The oldest give way, but not those.
    one = manager(max_queue_events=100, overflow="drop_oldest")
    hold = Hold()
    letter_api.plan(hold)
    first, second = (Letter(relay=one.queue, flush_at=100, flush_interval=3600) for _ in range(2))
    work(first, 100, "first")
    assert hold.arrived.wait(DEADLINE)
    work(second, 100, "second")
    assert second.flush(DEADLINE) and second.stats()["relayed"] == 0
    hold.release()
    assert first.close(DEADLINE)
    assert whose(letter_api) == {"first": list(range(100)), "second": list(range(100))}


def test_small_batches_of_many_processes_travel_together_and_a_flush_does_not_wait_for_that(
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


def test_an_event_that_is_too_large_for_the_manager_goes_its_own_way_alone(
    manager: Any, letter_api: Any, errors: Any
) -> None:
    one = manager(max_batch_bytes=2_000)
    letter = Letter(relay=one.queue, on_error=errors.append, **SLOW)
    letter.track("large", "Worked", {"serial": 0, "x": "y" * 3_000})
    assert letter.flush(DEADLINE) and letter.stats()["relayed"] == 0
    work(letter, 3)
    assert letter.flush(DEADLINE) and letter.stats()["relayed"] == 3
    assert letter.close() and len(troubles(errors)) == 1 and "did not take a batch" in str(errors[0])
    assert whose(letter_api) == {"large": [0], "program": [0, 1, 2]}


def test_a_batch_that_can_never_fit_waits_for_no_room(manager: Any, letter_api: Any) -> None:
    letter = Letter(relay=manager(max_queue_events=20, overflow="block").queue, timeout=DEADLINE * 2, **SLOW)
    work(letter, 50)
    assert letter.flush(DEADLINE) and letter.stats()["relayed"] == 0
    assert letter.close() and whose(letter_api) == {"program": list(range(50))}


def test_a_connection_whose_batch_was_refused_ends_like_any_other(manager: Any, letter_api: Any) -> None:
    one = manager(max_queue_events=1)
    letter = Letter(relay=one.queue, on_error=lambda error: None, **SLOW)
    work(letter, 50)
    assert letter.close(DEADLINE)
    assert eventually(lambda: one.status()["connections"], lambda count: count == 0) == 0


@pytest.mark.parametrize("code", [503, 401])
def test_a_manager_that_gives_up_empties_no_spool(
    code: int, manager: Any, letter_api: Any, errors: Any, tmp_path: Any
) -> None:
    letter_api.rule = lambda request: status(code)
    one = manager(max_retries=0)
    letter = Letter(relay=one.queue, spool=tmp_path / "spool", on_error=errors.append, **SLOW)
    work(letter, 50)
    assert not letter.flush(1)
    assert eventually(lambda: one.status()["lost"], bool)
    assert balanced(letter)["waiting"] == 50 and not letter.stats()["lost"]
    letter_api.rule = None
    assert letter.flush(DEADLINE) and letter.stats()["delivered"] == 50
    assert letter.close() and [error.cause for error in errors] == ["degraded"] * (code == 401)


def test_a_manager_that_gives_up_at_its_end_leaves_events_to_their_process(
    directory: Directory, letter_api: Any, errors: Any
) -> None:
    hold = Hold()
    letter_api.plan(hold)
    with directory.keep() as kept:
        one = SenderManager(KEY, letter_api.url, address=directory.socket, authkey=SECRET)
        one.connect()
        letter = Letter(relay=one.queue, on_error=errors.append, flush_interval=0, exit_timeout=DEADLINE)
        work(letter, 10)
        assert hold.arrived.wait(DEADLINE)
        kept.signal(signal.SIGTERM)
        assert kept.finish().code == 0, kept.output
        assert letter.flush(DEADLINE)
    hold.release()
    assert letter.close() and whose(letter_api) == {"program": list(range(10))}, (letter.stats(), kept.output)


def test_a_kept_manager_with_a_spool_ends_within_its_time(directory: Directory, letter_api: Any, tmp_path: Any) -> None:
    letter_api.rule = lambda request: status(503)
    with directory.keep("--spool", str(tmp_path / "spool")) as kept:
        one = SenderManager(KEY, letter_api.url, address=directory.socket, authkey=SECRET)
        one.connect()
        letter = Letter(relay=one.queue, on_error=lambda error: None, flush_interval=0)
        work(letter, 5)
        assert eventually(lambda: one.status()["waiting"], lambda waiting: waiting == 5) == 5
        began = time.monotonic()
        kept.signal(signal.SIGTERM)
        assert kept.finish().code == 0
        assert time.monotonic() - began < 9  # 5, and what a busy machine takes
    letter_api.rule = None
    assert letter.close(DEADLINE)


def test_two_managers_that_start_at_one_address(directory: Directory, letter_api: Any) -> None:
    with directory.keep() as kept:
        kept.signal(signal.SIGKILL)
        kept.finish()
    starting = [
        Program(
            directory.command_line("--manager", directory.socket),
            environment(letter_api.url, LETTER_API_KEY=KEY),
            directory.path,
        )
        for _ in range(4)
    ]
    try:
        outputs = eventually(
            lambda: [program.output for program in starting], lambda outputs: all("serv" in text for text in outputs)
        )
        assert ["serving at" in text for text in outputs].count(True) == 1, outputs
        assert directory.status()["accepted"] == 0
    finally:
        for program in starting:
            program.__exit__()


def test_a_flush_takes_no_longer_than_it_may_where_the_manager_stands_still(manager: Any, letter_api: Any) -> None:
    one = manager()
    pid = one.status()["pid"]
    letter = Letter(relay=one.queue, on_error=lambda error: None, **SLOW)
    letter._delivery._worker._start = lambda send: False  # type: ignore[attr-defined]  # as where no thread runs
    suspend(pid)
    try:
        for _ in range(2):
            work(letter, 3)
            began = time.monotonic()
            letter.flush(0.05)
            assert time.monotonic() - began < 0.9
    finally:
        os.kill(pid, signal.SIGCONT)
    assert letter.flush(DEADLINE)
    letter.close()


def test_a_flush_that_begins_while_a_small_batch_waits_for_others(manager: Any, letter_api: Any) -> None:
    one = manager(flush_interval=3600)
    letter = Letter(relay=one.queue, flush_interval=0)
    work(letter, 1)
    assert eventually(lambda: one.status()["waiting"], bool)
    assert letter.flush(DEADLINE)
    assert letter.close()


def test_a_manager_stays_in_its_process(manager: Any) -> None:
    one = manager()
    with pytest.raises(LetterError, match=r"pass its \.queue"):
        pickle.dumps(one)
    one.shutdown()
    one.join(DEADLINE)


def test_a_secret_that_is_wrong_and_a_server_that_is_none(directory: Directory, letter_api: Any, errors: Any) -> None:
    with directory.keep():
        wrong = SenderManager(KEY, letter_api.url, address=directory.socket, authkey=b"another secret")
        with pytest.raises(LetterError, match="AuthenticationError"):
            wrong.connect()
        other = SenderManager("another", letter_api.url, address=directory.socket, authkey=SECRET)
        with pytest.raises(LetterError, match="another API key"):
            other.connect()
        elsewhere = SenderManager(KEY, "http://127.0.0.1:9", address=directory.socket, authkey=SECRET)
        with pytest.raises(LetterError, match="another API"):
            elsewhere.connect()
    port = free_port()
    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.settimeout(DEADLINE)

        def talk_nonsense() -> None:
            for nonsense in (
                b"HTTP/1.1 400 Bad Request\r\n\r\n",
                b"",
                b"\0\0\0\5hello",
                b"\x7f\xff\xff\xff" + b"x" * 99,
            ):
                peer, _ = listener.accept()
                peer.sendall(nonsense)
                peer.close()

        speaker = threading.Thread(target=talk_nonsense)
        speaker.start()
        for _ in range(4):
            one = SenderManager(KEY, letter_api.url, address=("127.0.0.1", port), authkey=SECRET)
            with pytest.raises(LetterError, match="cannot be used"):
                one.connect()
        speaker.join(DEADLINE)
    letter = Letter(
        relay=ManagerQueue(str(directory.path / "nobody"), SECRET, KEY, letter_api.url, "0" * 64),
        on_error=errors.append,
    )
    work(letter, 3)
    assert letter.close(DEADLINE) and len(troubles(errors)) == 1
    assert whose(letter_api) == {"program": [0, 1, 2]}


def test_an_exchange_that_was_cut_short_is_not_gone_on_with() -> None:
    class Queue:
        """Answers as a manager's connection would, in order, and counts connections."""

        retired = False
        has_feeder = False
        connections = 0
        cut = True

        def connect(self, patience: float) -> Queue:
            self.connections += 1
            return self

        def put(self, batch: list[bytes], urgent: bool, wait: float, patience: float) -> bool:
            return True

        def settled(self, linger: float, urgent: bool, wait: float, patience: float) -> list[bytes] | None:
            if self.cut:
                self.cut = False
                raise KeyboardInterrupt
            return []

        def close(self) -> None: ...

    queue = Queue()
    reports: list[Any] = []
    handover = Handover(queue, 1.0, 5.0, reports.append, time.monotonic)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        handover.offer([b"{}"], 1.0, True)
    assert isinstance(handover.offer([b"{}"], 1.0, True), Settled)
    assert queue.connections == 2 and not reports


def test_where_no_call_may_wait_a_batch_is_asked_for_later(manager: Any, letter_api: Any) -> None:
    hold = Hold()
    letter_api.plan(hold)
    reports: list[Any] = []
    handover = Handover(manager().queue, 1.0, 5.0, reports.append, time.monotonic)
    one = event(0)
    # The first connection may take longer than a call may wait; then it is tried again after a second.
    outcome = eventually(lambda: handover.offer([one], 0.0, True), lambda found: found is not None)
    assert isinstance(outcome, Pending)
    assert isinstance(handover.offer([one], 0.0, True), Pending)
    hold.release()
    assert isinstance(
        eventually(lambda: handover.offer([one], 1.0, True), lambda found: isinstance(found, Settled)), Settled
    )
    assert handover.relayed == 1


# The manager's process.


def test_its_process_is_nobody_s_child_and_ends_with_its_starter(
    letter_api: Any, tmp_path: Any, directory: Directory
) -> None:
    code = """
    from letterapp.relay import SenderManager
    manager = SenderManager("test-key", API)
    manager.start()
    letter = Letter(relay=manager.queue, flush_interval=0)
    work(letter, 5)
    letter.flush()
    print(manager.status()["pid"])
    sys.stdout.flush()
    stay()
    """
    with start(code, letter_api.url, tmp_path) as program:
        pid = int(eventually(lambda: program.output, lambda text: text.endswith("\n")))
        assert pid not in [child.pid for child in program.descendants()]
        assert psutil.Process(pid).ppid() != program.pid
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(pid, number)
        assert [process.pid for process in directory.processes()] == [pid]
        program.signal(signal.SIGKILL)
        program.finish()
        assert not directory.left_behind()
    assert not [name for name in os.listdir(directory.path / "letterapp") if name.endswith(".sock")]
    assert whose(letter_api) == {"program": list(range(5))}


def test_forked_children_keep_a_manager_whose_starter_was_killed(
    letter_api: Any, tmp_path: Any, directory: Directory
) -> None:
    code = """
    from letterapp.relay import SenderManager
    manager = SenderManager("test-key", API)
    manager.start()
    letter = Letter(relay=manager.queue, flush_interval=0)
    reader, writer = os.pipe()

    def job():
        os.read(reader, 1)  # until the parent has gone
        work(letter, 5, "orphan")
        letter.flush()
        assert letter.stats()["mode"] == "relay", letter.stats()
        print("done")

    child(lambda: (os.close(writer), job())[0])
    os.kill(os.getpid(), signal.SIGKILL)
    """
    with start(code, letter_api.url, tmp_path) as program:
        program.finish()
        assert eventually(lambda: program.output, lambda text: "done" in text) == "done\n"
        assert not directory.left_behind()
    assert whose(letter_api) == {"orphan": list(range(5))}


def test_a_manager_that_nobody_holds_any_more_ends_without_a_shutdown(letter_api: Any, directory: Directory) -> None:
    one = SenderManager(KEY, letter_api.url)
    one.start()
    queue = one.queue
    del one
    gc.collect()
    assert len(directory.processes()) == 1  # a queue is enough
    del queue
    gc.collect()
    assert not directory.left_behind()


def test_shutdown_in_a_child_ends_nobody_s_manager(letter_api: Any, tmp_path: Any) -> None:
    code = """
    from letterapp.relay import SenderManager
    with SenderManager("test-key", API) as manager:
        letter = Letter(relay=manager.queue)
        pid = child(lambda: manager.shutdown())
        assert os.waitpid(pid, 0)[1] == 0
        work(letter, 3)
        letter.flush()
        assert manager.status()["delivered"] == 3
    manager.shutdown()  # a second time
    try:
        manager.start()
    except LetterError as error:
        print(error)
    """
    finished = run(code, letter_api.url, tmp_path)
    assert finished.output == "this manager has been started or connected; make another one\n", finished


def test_shutdown_sends_what_it_took_of_others_and_leaves_them_the_rest(
    manager: Any, letter_api: Any, errors: Any
) -> None:
    hold = Hold()
    letter_api.plan(hold)
    one = manager(exit_timeout=1)
    letter = Letter(
        relay=pickle.loads(pickle.dumps(one.queue)), on_error=errors.append, **SLOW
    )  # as in another process
    work(letter, 5)
    flushing = threading.Thread(target=letter.flush, args=(DEADLINE,))
    flushing.start()
    assert hold.arrived.wait(DEADLINE)
    one.shutdown()  # the API does not answer: what is not settled its client sends itself
    flushing.join(DEADLINE)
    hold.release()
    assert letter.close(DEADLINE)
    assert balanced(letter)["delivered"] == 5 and len(troubles(errors)) == 1
    assert whose(letter_api) == {"program": list(range(5))}


def test_what_a_killed_manager_had_in_its_spool_the_next_one_sends(
    letter_api: Any, directory: Directory, tmp_path: Any
) -> None:
    letter_api.rule = lambda request: status(503)
    code = """
    from letterapp.relay import SenderManager
    manager = SenderManager("test-key", API, spool=sys.argv[1])
    manager.start()
    letter = Letter(relay=manager.queue, flush_interval=0)
    work(letter, 5)
    while manager.status()["accepted"] < 5:
        time.sleep(0.01)
    os.kill(manager.status()["pid"], signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    with start(code, letter_api.url, tmp_path, str(tmp_path / "spool")) as program:
        program.finish()
    assert not directory.left_behind() and whose(letter_api) == {}
    letter_api.rule = None
    with SenderManager(KEY, letter_api.url, spool=str(tmp_path / "spool")):
        assert eventually(lambda: whose(letter_api), lambda came: came == {"program": list(range(5))})


def test_a_manager_by_spawn_where_there_is_no_fork(letter_api: Any, tmp_path: Any) -> None:
    options = {
        name: getattr(SenderManager(KEY, letter_api.url)._settings, name) for name in (*SENDING, "api_key", "base_url")
    }
    process, address = spawn_process(options, str(tmp_path / "m.sock"), SECRET)
    tmp_path.chmod(0o700)
    one = SenderManager(KEY, letter_api.url, address=address, authkey=SECRET)
    one.connect()
    letter = Letter(relay=one.queue)
    work(letter, 5)
    assert letter.flush(DEADLINE) and one.status()["delivered"] == 5
    assert letter.close()
    process.stop(DEADLINE)
    assert process._process.exitcode == 0
    with pytest.raises(LetterError, match="no socket: it is left alone"):
        (tmp_path / "file").touch()
        spawn_process(options, str(tmp_path / "file"), SECRET)


def test_a_server_in_a_process_of_one_s_own(letter_api: Any, tmp_path: Any) -> None:
    code = """
    import threading
    from letterapp.relay import SenderManager
    server = SenderManager("test-key", API, address=sys.argv[1], authkey=b"secret").get_server()
    print("serving")
    sys.stdout.flush()
    signal.signal(signal.SIGTERM, lambda *_: server.stop_event.set())
    server.serve_forever()
    """
    address = str(tmp_path / "m.sock")
    with start(code, letter_api.url, tmp_path, address) as program:
        assert eventually(lambda: "serving" in program.output and os.path.exists(address), bool), program.output
        one = SenderManager(KEY, letter_api.url, address=address, authkey=b"secret")
        eventually(lambda: _connects(one), bool)
        letter = Letter(relay=one.queue)
        work(letter, 5)
        assert letter.close(DEADLINE) and letter.stats()["relayed"] == 5
        program.signal(signal.SIGTERM)
        assert program.finish().code == 0


def _connects(one: SenderManager) -> bool:
    try:
        one.connect()
    except LetterError:
        return False
    return True


# The command line.


def test_addresses_on_the_command_line() -> None:
    assert address_of("localhost:80") == ("localhost", 80)
    assert address_of("[::1]:80") == ("::1", 80)
    assert address_of("/run/m.sock") == "/run/m.sock"
    assert address_of("./a:80") == os.path.abspath("a:80")
    assert address_of("\\\\.\\pipe\\m") == "\\\\.\\pipe\\m"


def test_a_kept_manager_over_tcp(directory: Directory, letter_api: Any) -> None:
    port = free_port()
    address = f"127.0.0.1:{port}"
    with directory.keep(address=address) as kept:
        one = SenderManager(KEY, letter_api.url, address=("127.0.0.1", port), authkey=SECRET)
        one.connect()
        letter = Letter(relay=one.queue)
        work(letter, 250)
        assert letter.close(DEADLINE)
        assert directory.status(address)["delivered"] == 250
        kept.signal(signal.SIGINT)
        assert kept.finish().code == 0
    assert whose(letter_api) == {"program": list(range(250))}


def test_what_the_command_line_says_of_what_is_wrong(directory: Directory) -> None:
    def says(*options: str) -> str:
        done = directory.command(*options)
        assert done.returncode in (1, 2)
        assert "Traceback" not in done.stderr
        return str(done.stderr)

    assert "cannot be used" in says("--manager", directory.socket, "--status")
    with directory.keep():
        assert "another process serves at" in says("--manager", directory.socket)
    plain = directory.path / "plain"
    plain.touch()
    assert "no socket: it is left alone" in says("--manager", str(plain))
    directory.authkey_file.write_bytes(b" \n")
    assert "is empty" in says("--manager", directory.socket)
    directory.authkey_file.unlink()
    assert "authkey: No such file" in says("--manager", directory.socket)
    assert "--manager has an address" in says("--manager", directory.socket, "--socket", "x")
    directory.path.chmod(0o777)
    (directory.path / "open").mkdir(mode=0o777)
    (directory.path / "open").chmod(0o777)
    directory.authkey_file.write_bytes(SECRET)
    assert "others may write in it" in says("--manager", str(directory.path / "open" / "m.sock"))


# Other queues, and a listener.

LISTENER = """
import multiprocessing
from letterapp.relay import QueueListener

def process(letter, who, count):
    work(letter, count, who)

if __name__ == "__main__":
    kind, method = sys.argv[1:]
    context = multiprocessing.get_context(method)
    if kind == "manager":
        manager = context.Manager()
        queue = manager.Queue(50)
    else:
        queue = context.Queue(50)
    with QueueListener(queue, "test-key", API) as listener:
        letter = Letter("test-key", API, relay=queue)
        work(letter, 150, "main")
        letter.flush()
        processes = [context.Process(target=process, args=(letter, f"process {n}", 150)) for n in range(3)]
        for each in processes:
            each.start()
        children = []
        for n in range(3):
            def job():
                work(letter, 150, f"forked {n}")
                grandchild = child(lambda: (work(letter, 10, f"grandchild {n}"), letter.close())[0])
                os.waitpid(grandchild, 0)
                letter.close()
            children.append(child(job))
        work(letter, 150, "main", 150)
        for pid in children:
            assert os.waitpid(pid, 0)[1] == 0
        for each in processes:
            each.join()
            assert each.exitcode == 0
        letter.close()
        assert letter.stats()["mode"] == "relay"
    stats = listener.stats()
    print(stats["accepted"], stats["delivered"], stats["lost"])
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("kind", ["manager", "plain"])
def test_a_listener_sends_what_every_kind_of_process_put(
    kind: str, method: str, letter_api: Any, tmp_path: Any
) -> None:
    finished = run(LISTENER, letter_api.url, tmp_path, kind, method)
    assert finished.code == 0 and "Traceback" not in finished.output and "letterapp" not in finished.output, finished
    expected = {f"{who} {n}": list(range(150)) for who in ("process", "forked") for n in range(3)}
    expected.update({f"grandchild {n}": list(range(10)) for n in range(3)}, main=list(range(300)))
    assert whose(letter_api) == expected, finished
    assert len({request.connection for request in letter_api.requests}) == 1


def test_a_proxy_of_a_manager_with_a_key_of_its_own_can_be_pickled(letter_api: Any) -> None:
    from multiprocessing.managers import SyncManager

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


def test_a_full_queue_is_left_alone_and_it_is_said_once(letter_api: Any, errors: Any) -> None:
    with multiprocessing.Manager() as other:
        queue = other.Queue(1)
        queue.put([])
        letter = Letter(KEY, letter_api.url, relay=queue, on_error=errors.append, flush_interval=0)
        for start_ in (0, 5):
            work(letter, 5, start=start_)
            assert letter.flush(DEADLINE)
        assert letter.close() and len(troubles(errors)) == 1 and "it is full" in str(errors[0])
    assert whose(letter_api) == {"program": list(range(10))}


def test_a_queue_that_nobody_reads_keeps_no_process_from_ending(letter_api: Any, tmp_path: Any) -> None:
    code = """
    import multiprocessing
    queue = multiprocessing.Queue()
    letter = Letter("test-key", API, relay=queue, exit_timeout=20)
    for turn in range(20):
        letter.track("program", "Worked", {"serial": turn, "x": "y" * 20_000})
        letter.flush()
    """
    finished = run(code, letter_api.url, tmp_path)
    assert finished.code == 0 and "nobody reads it" in finished.output, finished
    came = whose(letter_api)["program"]
    assert came == sorted(came) and came[-1] == 19 and len(came) > 15  # a pipe holds 64 KiB: three events


def test_a_listener_of_this_program_ends_after_its_clients(letter_api: Any, tmp_path: Any) -> None:
    for first in ("client", "listener"):
        code = f"""
        import multiprocessing
        from letterapp.relay import QueueListener
        queue = multiprocessing.Queue()
        if {first!r} == "client":
            letter = Letter("test-key", API, relay=queue, flush_interval=3600)
        listener = QueueListener(queue, "test-key", API)
        listener.start()
        if {first!r} == "listener":
            letter = Letter("test-key", API, relay=queue, flush_interval=3600)
        work(letter, 250, {first!r})
        """
        finished = run(code, letter_api.url, tmp_path)
        assert finished.code == 0 and not finished.output, finished
    assert whose(letter_api) == {"client": list(range(250)), "listener": list(range(250))}
    assert len({request.connection for request in letter_api.requests}) == 2


def test_what_a_killed_listener_had_taken_is_in_its_spool(letter_api: Any, tmp_path: Any) -> None:
    letter_api.rule = lambda request: status(503)
    code = """
    import multiprocessing
    from letterapp.relay import QueueListener
    queue = multiprocessing.Queue()
    listener = QueueListener(queue, "test-key", API, spool=sys.argv[1])
    listener.start()
    letter = Letter("test-key", API, relay=queue, flush_interval=0)
    work(letter, 5)
    letter.flush()
    while listener.stats()["accepted"] < 5:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    with start(code, letter_api.url, tmp_path, str(tmp_path / "spool")) as program:
        program.finish()
    letter_api.rule = None
    listener = QueueListener(multiprocessing.Queue(), KEY, letter_api.url, spool=tmp_path / "spool")
    with listener:
        pass
    assert whose(letter_api) == {"program": list(range(5))}


def test_a_listener_takes_no_more_than_it_has_room_for(letter_api: Any, errors: Any) -> None:
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


def test_a_listener_that_nobody_stops_sends_what_children_put_that_are_joined_at_the_end(
    letter_api: Any, tmp_path: Any
) -> None:
    code = """
    import multiprocessing
    from letterapp.relay import QueueListener
    context = multiprocessing.get_context("fork")

    def job():
        os.read(reader, 1)  # until the parent is at its end
        work(letter, 20, "child")

    queue = context.Queue()
    letter = Letter("test-key", API, relay=queue)
    listener = QueueListener(queue, "test-key", API)
    listener.start()
    reader, writer = os.pipe()
    context.Process(target=job).start()
    work(letter, 2000, "parent")
    import atexit
    atexit.register(os.write, writer, b".")
    """
    finished = run(code, letter_api.url, tmp_path)
    assert finished.code == 0 and not finished.output, finished
    assert whose(letter_api) == {"parent": list(range(2000)), "child": list(range(20))}
    assert len(letter_api.requests) < 500  # of 2,020 events: not one each


def test_a_manager_that_stands_still_for_a_while_costs_a_listener_nothing(letter_api: Any, errors: Any) -> None:
    with multiprocessing.Manager() as other:
        queue = other.Queue()
        listener = QueueListener(queue, KEY, letter_api.url, on_error=errors.append)
        with listener:
            for turn in range(20):
                queue.put([event(3 * turn + n) for n in range(3)])
            assert eventually(lambda: listener.stats()["accepted"], bool)  # it is connected
            suspend(other._process.pid)
            over = time.monotonic() + 6  # longer than an answer is waited for anywhere else
            eventually(lambda: time.monotonic() > over, bool)
            os.kill(other._process.pid, signal.SIGCONT)
    assert whose(letter_api) == {"u": list(range(60))} and not errors


def test_a_queue_whose_descriptor_was_closed_writes_into_nobody_s_file(letter_api: Any, tmp_path: Any) -> None:
    code = """
    import multiprocessing
    queue = multiprocessing.Queue()
    letter = Letter("test-key", API, relay=queue, on_error=lambda error: print(error))

    def job():
        os.closerange(3, 64)  # as a daemon does
        log = open("log", "wb")
        while os.dup(log.fileno()) < 40:
            pass
        work(letter, 5, "child")
        assert letter.flush() and letter.stats()["relayed"] == 0
        print(os.path.getsize("log"))
        sys.stdout.flush()

    os.waitpid(child(job), 0)
    """
    finished = run(code, letter_api.url, tmp_path)
    assert "its descriptor was closed" in finished.output and finished.output.endswith("\n0\n"), finished
    assert whose(letter_api) == {"child": list(range(5))}


def test_a_child_does_not_wait_for_its_parent_s_feeder(letter_api: Any, tmp_path: Any) -> None:
    code = """
    import multiprocessing
    queue = multiprocessing.Queue()
    letter = Letter("test-key", API, relay=queue)
    work(letter, 1)
    letter.flush()
    queue._notempty.acquire()  # as some thread may have at the fork
    pid = child(lambda: signal.alarm(20) or letter.close())
    queue._notempty.release()
    print(os.waitpid(pid, 0)[1])
    queue.get()
    """
    finished = run(code, letter_api.url, tmp_path)
    assert finished.output == "256\n", finished  # `close` was True


def test_a_queue_that_nobody_reads_does_not_grow(letter_api: Any, errors: Any) -> None:
    queue = multiprocessing.Queue()
    letter = Letter(KEY, letter_api.url, relay=queue, on_error=errors.append, **SLOW)
    handover = letter._delivery._batches.handover  # type: ignore[attr-defined]
    for turn in range(5):
        letter.track("program", "Worked", {"serial": turn, "x": "y" * 70_000})
        assert letter.flush(DEADLINE)
        handover._next_try = 0.0
    assert len(queue._buffer) <= 1
    assert whose(letter_api) == {"program": list(range(5))}
    letter.close()
    queue.cancel_join_thread()


def test_a_listener_that_stops_in_time_leaves_the_rest_in_the_queue(letter_api: Any, errors: Any) -> None:
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
        assert left == 7 + 1  # and the mark of the end
        eventually(lambda: errors, lambda told: len(told) == 2)  # the second is told by the listener's thread
        lost = sum(error.lost for error in errors)
        assert {error.cause for error in errors} == {"closed"} and len(errors) == 2 and lost == 30, errors
        again = QueueListener(queue, KEY, letter_api.url)
        with again:
            pass
        assert again.stats()["delivered"] == 70


def test_a_listener_takes_what_its_program_s_clients_have_before_it_stops(letter_api: Any) -> None:
    queue = multiprocessing.Queue()
    with QueueListener(queue, KEY, letter_api.url):
        letter = Letter(KEY, letter_api.url, relay=queue, **SLOW)
        work(letter, 3)
    assert whose(letter_api) == {"program": [0, 1, 2]}
    letter.close()


def test_a_queue_that_a_killed_reader_holds_is_said_to_be(letter_api: Any, errors: Any) -> None:
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
    assert "another reader holds it" in str(errors[0]) and not listener.stop()
    letter.close()


def _is_held(queue: Any) -> bool:
    if queue._rlock.acquire(False):
        queue._rlock.release()
        return False
    return True


def test_what_is_no_event_in_a_queue_is_reported_and_harms_no_other(letter_api: Any, errors: Any) -> None:
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


def test_a_listener_s_life(letter_api: Any, errors: Any) -> None:
    with pytest.raises(TypeError, match="no option 'overflow'"):
        QueueListener(multiprocessing.Queue(), KEY, overflow="block")
    with pytest.raises(LetterError, match="needs a queue with get"):
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


class LateQueue:
    """A queue whose first reader is not told before ``late`` that it has found nothing, for which it had waited."""

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


def test_a_listener_that_found_nothing_just_before_it_is_stopped_looks_again(letter_api: Any, errors: Any) -> None:
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


class EndsBetween:
    """In place of a manager's `stop_event`: set from the ``number``-th look on of a connection's thread.

    That thread looks between two requests. It is shown "set" when the next request is there, which is then not carried
    out: what happens by chance when a manager ends while it is asked.
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
        multiprocessing.current_process()._manager_server.stop_event = EndsBetween(number)  # type: ignore[attr-defined]


class EndingManager(multiprocessing.managers.BaseManager):
    pass


EndingManager.register("Queue", EndingQueue)


@pytest.mark.parametrize("number", range(6))
def test_what_a_manager_answers_as_it_ends_is_not_taken_for_an_item(number: int, letter_api: Any, errors: Any) -> None:
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
def test_what_a_manager_answers_as_it_ends_does_not_settle_a_batch(number: int, letter_api: Any, errors: Any) -> None:
    with EndingManager(ctx=multiprocessing.get_context("fork")) as other:
        ending = other.Queue()  # type: ignore[attr-defined]
        ending.end_between(number + 1)
        letter = Letter(KEY, letter_api.url, relay=ending, on_error=errors.append)
        for serial in range(4):
            work(letter, 1, start=serial)
            assert letter.flush(DEADLINE)
        assert letter.close(DEADLINE)
        sent_count = [json.loads(each)["messageId"] for _ in range(ending.qsize()) for each in ending.get()]
    sent = [each["messageId"] for request in letter_api.requests for each in request.json["batch"]]
    assert len({*sent_count, *sent}) == 4
    assert {error.cause for error in errors} <= {"degraded"}, errors


@pytest.mark.skipif(sys.version_info < (3, 9), reason="once is enough")
def test_importing_the_client_does_not_import_multiprocessing() -> None:
    import subprocess

    code = "import sys, letterapp; letterapp.Letter('k'); print('multiprocessing' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_connection_whose_descriptor_somebody_closed_is_replaced(manager: Any, letter_api: Any, errors: Any) -> None:
    letter = Letter(relay=manager().queue, on_error=errors.append, **SLOW)
    work(letter, 1)
    assert letter.flush(DEADLINE)
    descriptor = letter._delivery._batches.handover._channel._wire._line._sock.fileno()  # type: ignore[attr-defined]
    os.close(descriptor)
    with socket.socketpair()[0] as stranger:  # which gets the number
        work(letter, 1, start=1)
        assert letter.flush(DEADLINE) and not errors
        assert letter.stats()["relayed"] == 2
        stranger.setblocking(False)
    assert isinstance(Disconnected(), ConnectionError)
    assert letter.close()


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of descriptors here")
def test_a_manager_keeps_descriptors_in_reserve_for_sending(
    directory: Directory, letter_api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, few = directory.command_line, [sys.executable, "-c", FEW_DESCRIPTORS]
    monkeypatch.setattr(directory, "command_line", lambda *options: [*few, *real(*options)])
    event = b'{"type":"track","userId":"u","messageId":"m","timestamp":"t","event":"E","properties":{}}'
    with directory.keep():
        queue = ManagerQueue(directory.socket, SECRET, KEY, letter_api.url, proof(KEY))
        connections = []
        with pytest.raises(OSError, match="timed out"):
            while len(connections) < 64:
                connections.append(queue.connect(3.0))
        assert connections[0].put([event], True, DEADLINE, DEADLINE)
        assert connections[0].settled(DEADLINE, True, DEADLINE, DEADLINE) == []
        assert letter_api.distinct == 1
        for connection in connections:
            connection.close()


def test_who_reads_all_output_of_a_program_does_not_wait_for_the_manager_that_it_started(
    directory: Directory, letter_api: Any, tmp_path: Any
) -> None:
    code = """
    from letterapp.relay import SenderManager

    manager = SenderManager("test-key", API)
    manager.start()
    pid = os.fork()  # the manager lives as long as this child
    if not pid:
        for number in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        sys.stdin.read()
        os._exit(0)
    print(manager.status()["pid"])
    os._exit(0)
    """
    (tmp_path / "program.py").write_text(PRELUDE + textwrap.dedent(code))
    ends = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, str(tmp_path / "program.py")],
            stdin=ends[0],
            capture_output=True,
            env=environment(letter_api.url),
            timeout=DEADLINE,
        )
        (manager,) = directory.processes()
        assert (done.stdout, done.stderr) == (b"%d\n" % manager.pid, b"")
        assert (directory.path / "letterapp" / "relay.log").read_bytes() == b""
    finally:
        os.close(ends[1])
        os.close(ends[0])
