"""What the kernel and the interpreter do with locks and shared memory, each fact shown by a minimal program.

A process's events are in memory that all processes share, each in a separate slot; the owner of a slot is dead when
the lock on the slot's byte can be taken. What servers make of it is in test_server_facts.py.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from pathlib import Path
from typing import Any, Callable

import pytest
from harness import run

if sys.platform != "linux":
    pytest.skip("facts about Linux", allow_module_level=True)

from programs import kernel_facts

pytestmark = pytest.mark.slow  # a change of the library does not change the kernel

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(params=["memfd", "temporary file"])
def locks(request: Any, tmp_path: Path) -> Callable[..., None]:
    """Runs a program whose lock file is one of both."""
    return lambda program, *arguments: holds(program, tmp_path, *arguments, locks=request.param)


def holds(program: Callable[..., None], tmp_path: Path, *arguments: object, locks: str = "memfd") -> None:
    """Run a program, which must end well and print nothing."""
    finished = run(program, NOWHERE, tmp_path, *arguments, TEST_LOCKS=locks)
    assert (finished.code, finished.output) == (0, ""), finished


# When a lock is given back.


@pytest.mark.parametrize("how", ["is killed", "leaves by os._exit", "aborts", "crashes"])
def test_a_lock_is_released_before_its_owner_is_reaped(how: str, locks: Callable[..., None]) -> None:
    locks(kernel_facts.owner_ends, how)


def test_a_stopped_process_keeps_its_lock_until_it_is_killed(locks: Callable[..., None]) -> None:
    locks(kernel_facts.stopped_owner)


@pytest.mark.parametrize(
    "descriptor",
    ["not inheritable", "inheritable"],
    ids=["given back", "kept if the descriptor is inheritable"],
)
def test_lock_across_exec(descriptor: str, locks: Callable[..., None]) -> None:
    locks(kernel_facts.owner_executes, descriptor)


# Who has a lock.


WITHOUT_HOOKS = pytest.param(
    "without hooks",
    marks=pytest.mark.skipif(not hasattr(ctypes, "PyDLL"), reason="PyPy has no PyDLL, and does not bear such a fork"),
)


@pytest.mark.parametrize("hooks", ["with hooks", WITHOUT_HOOKS])
def test_a_child_neither_inherits_nor_releases_a_lock(hooks: str, locks: Callable[..., None]) -> None:
    locks(kernel_facts.fork_of_an_owner, hooks)


def test_a_lock_of_a_child_outlives_its_parent(locks: Callable[..., None]) -> None:
    locks(kernel_facts.orphaned_owner)


def test_a_lock_is_kept_while_and_after_its_owner_runs_programs(locks: Callable[..., None]) -> None:
    locks(kernel_facts.owner_runs_programs)


def test_a_process_can_take_its_own_lock_twice(locks: Callable[..., None]) -> None:
    locks(kernel_facts.owner_with_threads)


@pytest.mark.parametrize("what", ["a copy", "the file opened anew", "a mapping of the file"])
def test_closing_any_descriptor_releases_all_locks_of_a_file(what: str, locks: Callable[..., None]) -> None:
    locks(kernel_facts.owner_closes, what)


# What a killed writer leaves.


def test_a_word_stored_by_a_killed_child_is_complete(tmp_path: Path) -> None:
    holds(kernel_facts.stored_word, tmp_path)


@pytest.mark.slow
def test_no_published_record_is_torn_wherever_its_writer_was_killed(tmp_path: Path) -> None:
    holds(kernel_facts.published_records, tmp_path)


# What the mapping costs.


def test_a_fork_copies_no_page_tables_of_a_shared_mapping(tmp_path: Path) -> None:
    holds(kernel_facts.page_tables_after_a_fork, tmp_path)


def test_removed_pages_are_freed_in_all_processes_and_read_as_zeros(tmp_path: Path) -> None:
    holds(kernel_facts.removed_pages, tmp_path)


EXIT = {"x86_64": 60, "aarch64": 93}  # the system call that ends the thread that makes it, and no other


@pytest.mark.skipif(platform.machine() not in EXIT, reason="its number is not known here")
def test_a_process_whose_main_thread_has_ended_looks_like_a_zombie_and_keeps_its_lock(tmp_path: Path) -> None:
    holds(kernel_facts.first_thread_has_ended, tmp_path, EXIT[platform.machine()])
