"""multiprocessing and concurrent.futures: a worker's events are sent at its end, although `atexit` does not run."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import PROGRAMS, first_is_quick, run, whose
from programs import late_multiprocessing

METHODS = multiprocessing.get_all_start_methods()


def go(program: str, method: str, api: Any, tmp_path: Path) -> None:
    """Run a program of pools.py to its good end."""
    finished = run(PROGRAMS / "pools.py", api.url, tmp_path, program, method)
    assert finished.code == 0, finished
    assert "Exception ignored" not in finished.output and "AssertionError" not in finished.output, finished


def once(api: Any, jobs: dict[str, int]) -> None:
    expected = {"parent": list(range(50)), **{f"job {name}": list(range(count)) for name, count in jobs.items()}}
    assert whose(api) == expected
    assert api.repeated() == {}


@first_is_quick("method", METHODS)
def test_process(method: str, letter_api: Any, tmp_path: Path) -> None:
    go("process", method, letter_api, tmp_path)
    once(letter_api, {f"{number}": 50 for number in range(3)})


@first_is_quick("method", METHODS)
def test_process_whose_target_raises_or_exits(method: str, letter_api: Any, tmp_path: Path) -> None:
    go("failing_processes", method, letter_api, tmp_path)
    once(letter_api, {"0": 50, "1": 50})


@first_is_quick("method", METHODS)
def test_pool_closed_and_joined(method: str, letter_api: Any, tmp_path: Path) -> None:
    go("pool", method, letter_api, tmp_path)
    once(letter_api, {f"{number}": 50 for number in range(8)})


@first_is_quick("method", METHODS)
def test_pool_whose_workers_are_replaced_after_each_task(method: str, letter_api: Any, tmp_path: Path) -> None:
    go("pool_with_one_task_a_child", method, letter_api, tmp_path)
    once(letter_api, {f"{number}": 50 for number in range(4)})


@first_is_quick("method", METHODS)
def test_process_pool_executor(method: str, letter_api: Any, tmp_path: Path) -> None:
    go("executor", method, letter_api, tmp_path)
    once(letter_api, {f"{number}": 50 for number in range(6)})


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 11), reason="max_tasks_per_child came with 3.11")
def test_process_pool_executor_whose_workers_are_replaced(letter_api: Any, tmp_path: Path) -> None:
    go("executor_with_one_task_a_child", "spawn", letter_api, tmp_path)
    once(letter_api, {f"{number}": 50 for number in range(3)})


@first_is_quick("method", METHODS)
def test_a_client_as_an_argument_of_a_job(method: str, letter_api: Any, tmp_path: Path) -> None:
    # One that exists nowhere else: the worker throws it away after the job, and its events still go out.
    go("pool_with_a_client_as_argument", method, letter_api, tmp_path)
    once(letter_api, {f"{number}": 50 for number in range(4)})


@first_is_quick("method", METHODS)
def test_a_child_of_a_multiprocessing_child(method: str, letter_api: Any, tmp_path: Path) -> None:
    go("nested_process", method, letter_api, tmp_path)
    once(letter_api, {"0": 50, "0, grandchild": 50})


def test_a_terminated_pool_loses_only_waiting_events(letter_api: Any, tmp_path: Path) -> None:
    # `with Pool` ends its workers by SIGTERM, where nothing of theirs can run. What was sent before is there; the
    # workers' last batch is what docs/guarantees.md says can be lost.
    if "fork" not in METHODS:
        pytest.skip("needs fork")
    go("terminated_pool", "fork", letter_api, tmp_path)
    once(letter_api, {f"{number}": 50 for number in range(4)})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_multiprocessing_imported_after_the_client_was_created_and_used(letter_api: Any, tmp_path: Path) -> None:
    assert run(late_multiprocessing.forked, letter_api.url, tmp_path).code == 0
    once(letter_api, {"0": 50})


def test_an_event_tracked_while_a_spawned_child_imports_its_main_module(letter_api: Any, tmp_path: Path) -> None:
    # multiprocessing clears what such a child registered for its end before the job begins.
    assert run(PROGRAMS / "spawned_import.py", letter_api.url, tmp_path).code == 0
    assert {who: len(serials) for who, serials in whose(letter_api).items()} == {
        "parent": 50,
        **{f"job import {method}": 5 for method in METHODS if method != "fork"},
    }
