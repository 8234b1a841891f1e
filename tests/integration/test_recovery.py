"""Recovery of killed processes' events: which process of the family delivers them, how many, and which count as dead.

Not responsible for: how and where a process was killed (test_killed.py).
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from families import NUMBERED, Gates, arrived, batches, ends_well, in_turn, no_answer, once, output_of, said
from harness import DEADLINE, start, whose
from programs import recovery

from letterapp.testing import Hold, status

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the guarantees are weaker on other systems")


@pytest.fixture
def gates(letter_api: Any) -> Gates:
    return Gates(letter_api)


# Who delivers it.


@pytest.mark.parametrize("act", ["flush", "close", "its end", "sys.exit"])
def test_recovered_by_a_parent_that_tracked_nothing_by(act: str, letter_api: Any, tmp_path: Path) -> None:
    output_of(recovery.idle_parent, letter_api, tmp_path, act)
    once(letter_api, dead=300)


def test_recovered_by_its_parent_before_it_is_reaped(letter_api: Any, tmp_path: Path) -> None:
    output_of(recovery.before_it_is_reaped, letter_api, tmp_path)
    once(letter_api, dead=300)


def test_recovered_by_a_later_sibling_with_its_first_event(letter_api: Any, gates: Gates, tmp_path: Path) -> None:
    # Nothing else would make it look: its own event waits for an hour.
    with start(recovery.later_sibling, letter_api.url, tmp_path) as program:
        assert letter_api.wait_for(300), program.output
        gates.open("arrived")
        ends_well(program)
    once(letter_api, dead=300, sibling=1)


@pytest.mark.slow
def test_recovered_by_a_sibling_that_continues_to_send(letter_api: Any, gates: Gates, tmp_path: Path) -> None:
    # It has looked before, and looks again after a while. The dead one has too few for a batch.
    with start(recovery.busy_sibling, letter_api.url, tmp_path) as program:
        assert letter_api.wait_until(lambda: len(whose(letter_api).get("dead", [])) == 39), program.output
        gates.open("arrived")
        ends_well(program)
        once(letter_api, dead=39, sibling=int(program.output))


@pytest.mark.slow
def test_recovered_by_one_of_eight_that_scan_at_the_same_time(letter_api: Any, tmp_path: Path) -> None:
    adopted = [int(word) for word in output_of(recovery.eight_at_once, letter_api, tmp_path).split()]
    assert sorted(adopted) == [0] * 7 * 15 + [20] * 15
    once(letter_api, **{f"dead {number}": 20 for number in range(15)})


@pytest.mark.parametrize("act", ["flush", "close", "its end"])
def test_recovered_by_its_parent_while_another_thread_has_just_found_it_alive(
    act: str, letter_api: Any, tmp_path: Path
) -> None:
    output_of(recovery.just_found_alive, letter_api, tmp_path, act)
    once(letter_api, dead=69)


def test_a_process_without_time_leaves_recovery_to_the_next(letter_api: Any, gates: Gates, tmp_path: Path) -> None:
    gates.plan(no_answer(False))
    output_of(recovery.no_time, letter_api, tmp_path)
    once(letter_api, dead=250)


def test_recovered_by_a_parent_that_never_tracks_when_it_forks_again(letter_api: Any, tmp_path: Path) -> None:
    # As a forking server does whose children are killed. Nothing else would look: no child that lives tracks.
    with start(recovery.next_fork, letter_api.url, tmp_path) as program:
        assert program.finish().code == -signal.SIGKILL
    once(letter_api, dead=30)


# The bounds.


@pytest.mark.parametrize("option, bound", [("max_queue_events", 20), ("max_queue_bytes", 4000)])
def test_of_a_full_queue_the_accepted_events_are_recovered(
    option: str, bound: int, letter_api: Any, tmp_path: Path
) -> None:
    waited = int(output_of(recovery.full_queue, letter_api, tmp_path, option, bound))
    assert 0 < waited < 100
    once(letter_api, dead=waited)


@pytest.mark.parametrize("stored", [False, True], ids=["not stored", "stored"])
def test_of_a_drop_oldest_queue_the_batch_in_flight_and_the_newest_are_recovered(
    stored: bool, letter_api: Any, gates: Gates, tmp_path: Path
) -> None:
    gates.plan(no_answer(stored))
    with start(recovery.drop_oldest, letter_api.url, tmp_path) as program:
        gates.wait("wire")
        assert letter_api.wait_until(lambda: len(batches(letter_api)) == 1)
        gates.open("wire")
        ends_well(program)
    assert whose(letter_api) == {"dead": [*range(30), *range(510, 530)]}
    assert list(letter_api.repeated().values()) == [2] * 30 * stored


def test_recovered_events_do_not_count_towards_the_bounds(letter_api: Any, gates: Gates, tmp_path: Path) -> None:
    hold = Hold()
    gates.plan(hold)
    with start(recovery.no_room_taken, letter_api.url, tmp_path) as program:
        assert said(program, 1) == ["queued"]
        hold.release()
        ends_well(program)
    once(letter_api, **{f"dead {number}": 50 for number in range(4)}, parent=50)


@pytest.mark.slow
def test_with_all_slots_of_dead_processes_a_new_process_uses_one(letter_api: Any, tmp_path: Path) -> None:
    words = output_of(recovery.no_free_slot, letter_api, tmp_path).split()
    assert 0 <= int(words[0]) <= 2 * 127 + 150 and words[1] == "{}"
    arrived(letter_api, **{f"dead {number}": 2 for number in range(127)}, new=150)


@pytest.mark.slow
def test_a_new_process_finds_a_slot_while_another_recovers_more_than_it_can_send_at_once(
    letter_api: Any, gates: Gates, tmp_path: Path
) -> None:
    hold = Hold()
    gates.plan(hold, hold)  # the parent's first batch, and the new process's, which is killed before one is answered
    with start(recovery.room_for_a_new_process, letter_api.url, tmp_path) as program:
        assert hold.arrived.wait(DEADLINE)
        gates.wait("released")
        hold.release()
        gates.open("released")
        ends_well(program)
    came = {who: sorted(serials) for who, serials in whose(letter_api).items()}
    assert came == {**{f"dead {number}": [0, 1] for number in range(127)}, "new": [0, 1, 2]}


@pytest.mark.slow
def test_events_that_could_not_be_recovered_in_time_are_reported(letter_api: Any, tmp_path: Path) -> None:
    letter_api.rule = lambda request: status(503)
    output_of(recovery.no_time_for_all, letter_api, tmp_path)
    assert letter_api.events == []


# Not dead.


def test_a_stopped_process_is_not_taken_for_dead_and_continues(letter_api: Any, tmp_path: Path) -> None:
    output_of(recovery.stopped, letter_api, tmp_path)
    once(letter_api, dead=50, parent=10, child=300)
    assert in_turn(letter_api) == ["dead", "parent", "child"]


def test_a_process_that_is_killed_while_it_is_stopped_is_dead(letter_api: Any, tmp_path: Path) -> None:
    output_of(recovery.killed_while_stopped, letter_api, tmp_path)
    once(letter_api, dead=150)


# At any instant.


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_250_processes_killed_at_random_instants_lose_nothing(seed: int, letter_api: Any, tmp_path: Path) -> None:
    # Each counts in shared memory what it has tracked, outside of the client. It is killed in the middle of a call, of
    # a request, of a look, of its own beginning; and sometimes another begins before somebody has looked.
    printed = output_of(recovery.random_instants, letter_api, tmp_path, seed, longest=240)
    came = whose(letter_api)
    assert came.pop("parent") == [0]
    tracked = [int(word) for word in printed.split()]
    assert len(tracked) == 250 and 60 in tracked and set(range(60)) & set(tracked)
    for number, count in enumerate(tracked):
        serials = came.pop(f"child {number}", [])
        assert serials in (NUMBERED[:count], NUMBERED[: count + 1]), (number, count, serials)
    assert not came
