"""`letterapp.testing.capture` and the processes of a test: forked, spawned, killed, living, many at a time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from harness import DEADLINE, first_is_quick

from letterapp import Letter
from letterapp._testing.run import Received, Run
from letterapp.testing import CapturedLetter, capture, no_network

EXISTING = Letter("key")  # created before any test run, as an application's is where there is no plugin

# pytest's `faulthandler` and this suite's watchdog are threads, which Python warns of at each fork from 3.12 on.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


@pytest.fixture(autouse=True)
def nothing_is_sent() -> Iterator[None]:
    with no_network():
        yield


def forked(*acts: Callable[[], object]) -> int:
    """Call ``acts`` in a forked child; return its process ID."""
    child = os.fork()
    if not child:
        code = 1
        try:
            for act in acts:
                act()
            code = 0
        finally:
            os._exit(code)
    return child


def ended(child: int) -> int:
    """How the child ended: its exit status, or the negative number of a signal."""
    _, status = os.waitpid(child, 0)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def track(number: int) -> None:
    Letter("key").track("u1", "Counted", {"number": number})


@needs_fork
def test_a_killed_child_s_events_are_there(letter: CapturedLetter) -> None:
    client = Letter("key")
    assert ended(forked(lambda: client.track("u1", "Last"), kill_myself)) == -signal.SIGKILL
    assert [item["event"] for item in letter.events] == ["Last"]


@needs_fork
def test_a_killed_child_s_events_are_there_if_the_client_existed_before(letter: CapturedLetter) -> None:
    assert ended(forked(lambda: EXISTING.track("u1", "Last"), kill_myself)) == -signal.SIGKILL
    assert [item["event"] for item in letter.events] == ["Last"]


@needs_fork
def test_a_child_counts_from_zero_and_inherits_that_the_client_is_closed(letter: CapturedLetter) -> None:
    client = Letter("key")
    client.track("u1", "Parent's")

    def count() -> None:
        client.track("u1", "Child's")
        assert client.stats()["delivered"] == 1 and client.stats()["pid"] == os.getpid()

    def is_closed() -> None:
        client.track("u1", "Late")
        assert client.stats()["lost"] == {"closed": 1}

    assert ended(forked(count)) == 0
    client.close()
    assert ended(forked(is_closed)) == 0
    assert [item["event"] for item in letter.events] == ["Parent's", "Child's"]


@needs_fork
def test_children_of_children(letter: CapturedLetter) -> None:
    def grow(depth: int) -> None:
        for client in (EXISTING, letter):
            client.track("u1", "Grown", {"depth": depth})
        if depth < 3:
            assert ended(forked(lambda: grow(depth + 1))) == 0

    grow(0)
    assert sorted(item["properties"]["depth"] for item in letter.tracked("Grown")) == [0, 0, 1, 1, 2, 2, 3, 3]


@first_is_quick("method", multiprocessing.get_all_start_methods())
def test_the_workers_of_a_pool_that_are_terminated(method: str, letter: CapturedLetter) -> None:
    with multiprocessing.get_context(method).Pool(2) as pool:
        pool.map(track, range(20))
    assert sorted(item["properties"]["number"] for item in letter.tracked("Counted")) == list(range(20))


@first_is_quick("method", multiprocessing.get_all_start_methods())
def test_the_captured_client_as_an_argument(method: str, letter: CapturedLetter) -> None:
    context: Any = multiprocessing.get_context(method)
    process = context.Process(target=letter.track, args=("u1", "Passed on"))
    process.start()
    process.join(DEADLINE)
    assert process.exitcode == 0 and letter.tracked("Passed on")


@first_is_quick("method", multiprocessing.get_all_start_methods())
def test_the_workers_of_a_pool_that_an_earlier_test_has_started(method: str) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(3):
            with capture() as letter:
                if not number:
                    pool = stack.enter_context(multiprocessing.get_context(method).Pool(1))
                pool.apply(track, (number,))
            assert [item["properties"]["number"] for item in letter.events] == [number]


@needs_fork
def test_an_assertion_waits_for_a_living_process(letter: CapturedLetter) -> None:
    letter.wait = DEADLINE
    theirs, ours = os.pipe()
    child = forked(lambda: os.read(theirs, 1), lambda: letter.track("u1", "Late", {"amount": 99}))
    assert letter.events == []
    threading.Timer(0.1, os.write, (ours, b"x")).start()
    letter.assert_tracked("Late", amount=99)
    assert ended(child) == 0
    os.close(theirs)
    os.close(ours)


@needs_fork
def test_a_child_may_look_at_events(letter: CapturedLetter) -> None:
    letter.track("u1", "Parent's")

    def look() -> None:
        letter.track("u1", "Child's")
        assert [item["event"] for item in letter.events] == ["Parent's", "Child's"]

    assert ended(forked(look)) == 0


@needs_fork
def test_a_child_that_leaves_the_with_removes_nothing() -> None:
    with capture() as letter:
        child = os.fork()
        if child:
            assert ended(child) == 7
            letter.track("u1", "Afterwards")
            assert letter.tracked("Afterwards")
    if not child:
        os._exit(7)


@needs_fork
def test_a_child_captures_its_own_events(letter: CapturedLetter) -> None:
    # As the processes of Django's parallel test runner do.
    def test() -> None:
        with capture() as inner:
            letter.track("u1", "Child's")
            assert [item["event"] for item in inner.events] == ["Child's"]
        letter.track("u1", "After it")

    assert [ended(child) for child in [forked(test) for _ in range(3)]] == [0, 0, 0]
    assert [item["event"] for item in letter.events] == ["After it"] * 3


@needs_fork
def test_no_event_of_many_processes_and_threads_is_lost_or_torn(letter: CapturedLetter) -> None:
    def count(who: str) -> None:
        for number in range(200):
            letter.track(who, "Counted", {"number": number, "padding": "x" * (number * 50)})

    def count_in_threads(who: int) -> None:
        threads = [threading.Thread(target=count, args=(f"{who}-{number}",)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    children = [forked(lambda who=who: count_in_threads(who)) for who in range(3)]  # type: ignore[misc]
    assert [ended(child) for child in children] == [0, 0, 0]
    numbers: dict[str, list[int]] = {}
    for item in letter.events:
        numbers.setdefault(item["userId"], []).append(item["properties"]["number"])
    assert len(numbers) == 6 and all(found == list(range(200)) for found in numbers.values())


def test_in_an_asyncio_loop(letter: CapturedLetter) -> None:
    async def serve() -> None:
        async with Letter("key") as client:
            client.track("u1", "Order Completed")
            EXISTING.track("u1", "Order Completed")
            assert await client.aflush()
            letter.assert_tracked("Order Completed")

    asyncio.run(serve())
    assert len(letter.tracked("Order Completed")) == 2


def test_a_manager_s_client_is_captured(letter: CapturedLetter) -> None:
    queue = multiprocessing.Manager().Queue()
    Letter("key", relay=queue).track("u1", "Order Completed")
    assert letter.tracked("Order Completed") and queue.empty()


def test_a_half_written_request_is_no_event(tmp_path: Path) -> None:
    item = {"type": "track", "userId": "u", "messageId": "m", "timestamp": "t", "event": "E", "properties": {}}
    body = json.dumps({"batch": [item]}).encode()
    record = b"\nbatch %d %s\n" % (len(body), body)
    for length in range(len(record)):
        run = Run()
        received = Received(run.capture_path(run.new_capture()))
        path = Path(run.path) / "1" / "requests"
        path.write_bytes(record[:length])
        received.update()
        assert received.events in ([], [item])
        with path.open("ab") as file:
            file.write(record.replace(b'"m"', b'"n"'))  # of another process
        received.update()
        assert [event["messageId"] for event in received.events][-1] == "n" and len(received.events) <= 2
        run.remove()


def test_a_request_that_the_api_would_refuse_is_an_error(tmp_path: Path) -> None:
    run = Run()
    received = Received(run.capture_path(run.new_capture()))
    (Path(run.path) / "1" / "requests").write_bytes(b'\nbatch 12 {"batch":[]}\n')
    with pytest.raises(AssertionError, match="0 items"):
        received.update()
    run.remove()


@pytest.mark.skipif(sys.platform == "win32", reason="the mode of a directory")
def test_other_users_cannot_read_events(letter: CapturedLetter) -> None:
    assert os.stat(os.environ["LETTER_TEST_OUTBOX"]).st_mode & 0o777 == 0o700
