"""Locks on bytes of a file: which process gets one, and when it is free again. Test processes compete for one lock."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from families import runs_quietly
from programs import file_lock

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="Linux's locks, on a file in memory")


def test_one_of_eight_threads_gets_a_lock(letter_api: Any, tmp_path: Path) -> None:
    runs_quietly(file_lock.eight_threads, letter_api, tmp_path)


def test_one_of_eight_processes_gets_a_lock(letter_api: Any, tmp_path: Path) -> None:
    runs_quietly(file_lock.eight_processes, letter_api, tmp_path)


def test_a_process_gets_a_lock_once_until_it_is_released(letter_api: Any, tmp_path: Path) -> None:
    runs_quietly(file_lock.until_it_is_released, letter_api, tmp_path)


def test_a_lock_is_released_when_it_is_deleted(letter_api: Any, tmp_path: Path) -> None:
    runs_quietly(file_lock.until_it_is_deleted, letter_api, tmp_path)


def test_a_lock_can_be_taken_once_the_process_that_held_it_has_ended(letter_api: Any, tmp_path: Path) -> None:
    runs_quietly(file_lock.until_its_process_ends, letter_api, tmp_path)


@pytest.mark.parametrize("fork", ["os.fork", "without Python's hooks"])
def test_a_childs_copy_releases_neither_its_parents_lock_nor_its_own(
    fork: str, letter_api: Any, tmp_path: Path
) -> None:
    runs_quietly(file_lock.copy_in_a_child, letter_api, tmp_path, fork)


def test_a_descriptor_that_is_closed_gives_no_lock_and_one_that_is_back_does(letter_api: Any, tmp_path: Path) -> None:
    runs_quietly(file_lock.closed_descriptor, letter_api, tmp_path)


@pytest.mark.parametrize("when", ["before", "after"], ids=["before the kernel has it", "after"])
def test_an_interrupted_attempt_leaves_no_lock(when: str, letter_api: Any, tmp_path: Path) -> None:
    # Interrupted by an exception of a signal handler. Otherwise no process could recover the events in it.
    runs_quietly(file_lock.interrupted, letter_api, tmp_path, when)
