"""Killed workers of multiprocessing and concurrent.futures: their events are delivered."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from families import output_of
from harness import first_is_quick, whose
from programs import killed_pools

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the guarantees are weaker on other systems")

# Which of the two ends that a process has is the first depends on what was imported first.
both_orders = first_is_quick("first", ["multiprocessing", "client"])


def all_jobs(api: Any, count: int = 10_000) -> None:
    came = whose(api)
    assert list(came) == ["job"] and sorted(came["job"]) == list(range(count))


def test_a_pool_whose_with_terminates_its_workers(letter_api: Any, tmp_path: Path) -> None:
    output_of(killed_pools.terminated_pool, letter_api, tmp_path)
    all_jobs(letter_api)


@both_orders
def test_a_pool_that_is_not_closed(first: str, letter_api: Any, tmp_path: Path) -> None:
    output_of(killed_pools.open_pool, letter_api, tmp_path, first)
    all_jobs(letter_api)


def test_a_pool_in_a_multiprocessing_child(letter_api: Any, tmp_path: Path) -> None:
    output_of(killed_pools.pool_in_a_child, letter_api, tmp_path)
    all_jobs(letter_api, 1000)


@both_orders
def test_a_daemonic_process_terminated_at_the_end_of_its_parent(first: str, letter_api: Any, tmp_path: Path) -> None:
    output_of(killed_pools.daemon, letter_api, tmp_path, first)
    all_jobs(letter_api, 500)


@pytest.mark.parametrize("end", ["kill", "terminate"])
def test_a_process_that_is_ended_by(end: str, letter_api: Any, tmp_path: Path) -> None:
    output_of(killed_pools.process, letter_api, tmp_path, end)
    all_jobs(letter_api, 500)


def test_an_executor_whose_worker_is_killed(letter_api: Any, tmp_path: Path) -> None:
    # It terminates the others. The jobs write down outside of the client what they have tracked. Nothing of the
    # executor is cancelled, as `map` does: it does not survive that when it is broken.
    output_of(killed_pools.executor, letter_api, tmp_path)
    tracked = {int(word) for word in (tmp_path / "journal").read_text().split()}
    came = set(whose(letter_api)["job"])
    assert 300 in tracked and tracked <= came and len(came - tracked) <= 2, "two others, between two lines"
