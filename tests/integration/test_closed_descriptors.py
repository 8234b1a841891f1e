"""A daemon closes the descriptor whose locks show which processes are alive. Nothing is lost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Callable

import pytest
from families import once, runs_quietly
from harness import first_is_quick, whose
from programs import closed_descriptors, systems

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="memory is shared on Linux")

each_act = first_is_quick("act", ["closes", "closes and opens"], ids=["", "and opens files at their numbers"])
each_file = first_is_quick("system", [None, systems.lacks_memfd_create], ids=["memfd", "temporary file"])


@each_act
@each_file
def test_a_child_closes_all_descriptors_before_its_first_use(
    system: Callable[[], None] | None, act: str, letter_api: Any, tmp_path: Path
) -> None:
    runs_quietly(closed_descriptors.before_first_use, letter_api, tmp_path, act, system=system)
    names = ["parent", "daemon", "other", "killed", "other killed", "sibling"]
    once(letter_api, **dict.fromkeys(names, 20))


@each_act
def test_a_process_closes_all_descriptors_in_the_middle_of_use(act: str, letter_api: Any, tmp_path: Path) -> None:
    runs_quietly(closed_descriptors.in_the_middle_of_use, letter_api, tmp_path, act)
    once(letter_api, program=40, killed=20, busy=40)


def test_a_process_that_lost_its_lock_and_those_that_took_its_slot_lose_nothing(
    letter_api: Any, tmp_path: Path
) -> None:
    # To the others its events are orphans: they deliver them and use the slot for their own.
    runs_quietly(closed_descriptors.slot_is_taken, letter_api, tmp_path)
    came = whose(letter_api)
    assert sorted(came["parent"]) == list(range(30))
    assert came["sibling"] == list(range(3))
    assert came["somebody with a longer name than the one before"] == list(range(40))


def test_a_flush_does_not_wait_for_events_that_another_process_has_taken_over(letter_api: Any, tmp_path: Path) -> None:
    runs_quietly(closed_descriptors.flush_after_loss, letter_api, tmp_path)
    assert sorted(whose(letter_api)["parent"]) == list(range(20))


@pytest.mark.parametrize(
    "act",
    [
        "settles a batch",
        "drops its oldest",
        "gives up all",
        "gives memory back",
    ],
)
def test_a_process_that_has_lost_its_slot_does_not_touch_it(act: str, letter_api: Any, tmp_path: Path) -> None:
    runs_quietly(closed_descriptors.lost_slot, letter_api, tmp_path, act)
    assert whose(letter_api)["next"] == list(range(60))
    assert whose(letter_api)["before"] == list(range(60))


def test_a_temporary_file_with_the_same_descriptor_is_not_taken_for_the_lock_file(
    letter_api: Any, tmp_path: Path
) -> None:
    # A disk gives a new file the number of an old one's inode.
    runs_quietly(closed_descriptors.same_inode, letter_api, tmp_path, system=systems.lacks_memfd_create)


@pytest.mark.parametrize("closed", ["0", "1", "0 1 2"])
@each_file
def test_a_program_that_is_started_without_its_standard_files_does_not_lock_one(
    system: Callable[[], None] | None, closed: str, letter_api: Any, tmp_path: Path
) -> None:
    runs_quietly(closed_descriptors.no_standard_files, letter_api, tmp_path, closed, system=system)
    (event,) = letter_api.events
    assert event["properties"]["lock"] > 2 and event["properties"]["open"] == []
