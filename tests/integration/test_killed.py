"""Killed processes: their events are delivered by the family, once and in order, wherever they were killed.

Not responsible for: who of the family delivers it (test_recovery.py).
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from families import Gates, arrived, batches, ends_well, in_turn, no_answer, once, output_of, said
from harness import Program, first_is_quick, start
from programs import killed

from letterapp.testing import stall, status

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the guarantees are weaker on other systems")


@pytest.fixture
def gates(letter_api: Any) -> Gates:
    return Gates(letter_api)


# How it ended.

CODES = {
    "SIGKILL": -signal.SIGKILL,
    "SIGTERM": -signal.SIGTERM,
    "an exit that Python does not see": 0,
    "abort": -signal.SIGABRT,
    "crash": -signal.SIGSEGV,
    "exec": 0,
}


@first_is_quick("end", CODES)
def test_waiting_events_of_a_child_survive(end: str, letter_api: Any, tmp_path: Path) -> None:
    output_of(killed.outlived, letter_api, tmp_path, end, int(CODES[end]))
    once(letter_api, dead=300)


@pytest.mark.parametrize("end", ["os._exit", "SIGKILL"])
def test_a_child_that_has_closed_leaves_nothing(end: str, letter_api: Any, tmp_path: Path) -> None:
    output_of(killed.closed, letter_api, tmp_path, end)
    once(letter_api, dead=300)


def test_nothing_is_changed_or_reordered(letter_api: Any, tmp_path: Path) -> None:
    # `before_send` prints each event as it is queued: identity, time and all.
    printed = [json.loads(line) for line in output_of(killed.unchanged, letter_api, tmp_path).splitlines()]
    once(letter_api, parent=40, first=250, second=250)
    by_name = {item["userId"]: [other for other in printed if other["userId"] == item["userId"]] for item in printed}
    assert letter_api.events == by_name["first"] + by_name["second"] + by_name["parent"], "the dead ones' come first"


# Where it was killed. Those that recover and track have tracked, and looked, before: a thread that looks while a flush
# does may find nothing, and send its own first.

stored_or_not = pytest.mark.parametrize("stored", [False, True], ids=["not stored", "stored"])


@stored_or_not
def test_killed_during_its_request(stored: bool, letter_api: Any, gates: Gates, tmp_path: Path) -> None:
    gates.plan(no_answer(stored))
    with start(killed.on_the_wire, letter_api.url, tmp_path) as program:
        kill_on_the_wire(program, int(said(program, 1)[0]), letter_api, 40 * stored)
        ends_well(program)
    arrived(letter_api, dead=40, parent=10)
    assert list(letter_api.repeated().values()) == [2] * 40 * stored, "under the same messageIds"
    first, second = [request.json["batch"] for request in batches(letter_api)][:2]
    assert second[:40] == first


@stored_or_not
def test_killed_during_a_request_with_more_events_waiting(
    stored: bool, letter_api: Any, gates: Gates, tmp_path: Path
) -> None:
    gates.plan(no_answer(stored))
    with start(killed.on_the_wire_with_more, letter_api.url, tmp_path) as program:
        gates.wait("wire")
        assert letter_api.wait_until(lambda: len(batches(letter_api)) == 1)
        gates.open("wire")
        ends_well(program)
    arrived(letter_api, dead=340, parent=10)
    assert list(letter_api.repeated().values()) == [2] * 40 * stored
    assert in_turn(letter_api) == ["dead", "parent"]


@stored_or_not
def test_killed_while_it_delivers_another_ones_events(
    stored: bool, letter_api: Any, gates: Gates, tmp_path: Path
) -> None:
    gates.plan(no_answer(stored))
    with start(killed.while_it_recovers, letter_api.url, tmp_path) as program:
        kill_on_the_wire(program, int(said(program, 1)[0]), letter_api, 100 * stored)
        ends_well(program)
    arrived(letter_api, **{"first dead": 250, "second dead": 30, "parent": 10})
    assert list(letter_api.repeated().values()) == [2] * 100 * stored
    assert {item["userId"] for item in batches(letter_api)[0].json["batch"]} == {"first dead"}, "before its own"
    assert in_turn(letter_api).index("parent") == len(in_turn(letter_api)) - 1


@stored_or_not
def test_two_killed_while_they_deliver_the_same_batch(
    stored: bool, letter_api: Any, gates: Gates, tmp_path: Path
) -> None:
    gates.plan(no_answer(stored), no_answer(stored))
    with start(killed.two_in_the_same_batch, letter_api.url, tmp_path) as program:
        for number in range(2):
            pid = int(said(program, number + 1)[number])
            assert letter_api.wait_until(lambda sent=number + 1: len(letter_api.events) >= 100 * sent * stored)
            kill_on_the_wire(program, pid, letter_api, 100 * stored, requests=number + 1)
        ends_well(program)
    arrived(letter_api, dead=250)
    assert list(letter_api.repeated().values()) == [3] * 100 * stored


def kill_on_the_wire(program: Program, pid: int, api: Any, stored: int, requests: int = 1) -> None:
    """Kill a process that waits for the answer to its request."""
    assert api.wait_until(lambda: len(batches(api)) == requests and api.distinct == stored), program.output
    program.signal(signal.SIGKILL, pid)


def test_killed_between_two_tries(letter_api: Any, gates: Gates, tmp_path: Path) -> None:
    # The API says when to come again; who recovers the batch need not know.
    gates.plan(status(429, headers={"Retry-After": "300"}))
    with start(killed.between_two_tries, letter_api.url, tmp_path) as program:
        gates.wait("again")
        gates.open("again")
        ends_well(program)
    once(letter_api, dead=40)


def test_killed_with_half_of_a_batch_delivered(letter_api: Any, gates: Gates, tmp_path: Path) -> None:
    gates.plan(status(413), stall(0), no_answer(False))  # 40, 20, and 20
    with start(killed.with_half_of_a_batch_delivered, letter_api.url, tmp_path) as program:
        kill_on_the_wire(program, int(said(program, 1)[0]), letter_api, 20, requests=3)
        ends_well(program)
    once(letter_api, dead=40)


# Families.


def test_two_generations(letter_api: Any, tmp_path: Path) -> None:
    output_of(killed.two_generations, letter_api, tmp_path)
    arrived(letter_api, child=200, grandchild=150, parent=10)  # the child may have begun with the grandchild's


def test_a_killed_child_of_a_child_that_never_used_the_client(letter_api: Any, tmp_path: Path) -> None:
    output_of(killed.grandchild, letter_api, tmp_path)
    once(letter_api, grandchild=150)


def test_a_child_delivers_its_killed_parents_events(letter_api: Any, gates: Gates, tmp_path: Path) -> None:
    with start(killed.parent, letter_api.url, tmp_path) as program:
        gates.wait("orphan")
        program.signal(signal.SIGKILL)
        assert program.finish().code == -signal.SIGKILL
        gates.open("orphan")
        assert letter_api.wait_for(210), program.output
        assert not program.left_behind()
        assert program.output == "well\n"
    once(letter_api, parent=200, child=10)
    assert in_turn(letter_api) == ["parent", "child"]
