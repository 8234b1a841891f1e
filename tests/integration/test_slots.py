"""Slots of the memory that a family shares: which one a process uses, and what happens when there are too few."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from families import once, runs_quietly
from harness import first_is_quick
from programs import slots

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="memory is shared on Linux")


def test_processes_without_a_slot_use_private_memory_and_the_first_one_reports_it(
    letter_api: Any, tmp_path: Path
) -> None:
    runs_quietly(slots.too_few, letter_api, tmp_path)
    once(letter_api, **{"parent": 20, **{f"child {n}": 20 for n in range(7)}})


def test_a_process_that_finds_no_empty_slot_uses_one_of_a_dead_process(letter_api: Any, tmp_path: Path) -> None:
    runs_quietly(slots.of_the_dead, letter_api, tmp_path)
    assert [item["userId"] for item in letter_api.events[::20]] == ["first", "second", "last", "after it"]
    once(letter_api, **dict.fromkeys(["first", "second", "last", "after it"], 20))


@first_is_quick("end", ["close", "os._exit", "SIGKILL", "sys.exit"])
def test_a_slot_is_free_before_its_dead_owner_is_reaped(end: str, letter_api: Any, tmp_path: Path) -> None:
    runs_quietly(slots.before_it_is_reaped, letter_api, tmp_path, end)
    once(letter_api, **{f"child {n}": 3 for n in range(3)})


@pytest.mark.slow
def test_300_children_one_after_the_other_use_one_slot(letter_api: Any, tmp_path: Path) -> None:
    runs_quietly(slots.one_after_the_other, letter_api, tmp_path)
    once(letter_api, **{"parent": 1, **{f"child {n}": 1 for n in range(300)}})
