"""The memory and descriptors of clients; clients, forks and bursts of events leak nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Callable

import pytest
from families import once, runs_quietly
from programs import memory, memory_costs

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="looks into Linux's /proc")


@pytest.mark.slow
def test_200_clients_cost_one_descriptor_and_a_child_uses_them_all(letter_api: Any, tmp_path: Path) -> None:
    runs_quietly(memory_costs.many_clients, letter_api, tmp_path)
    once(letter_api, **{f"{who} {n}": 1 for who in ("parent", "child", "killed") for n in range(200)})


@pytest.mark.slow
def test_discarded_clients_leave_nothing(letter_api: Any, tmp_path: Path) -> None:
    runs_quietly(memory_costs.thrown_away, letter_api, tmp_path)
    assert letter_api.distinct == 22


@pytest.mark.slow
def test_2_000_forks_leak_nothing(letter_api: Any, tmp_path: Path) -> None:
    runs_quietly(memory_costs.many_forks, letter_api, tmp_path)
    once(letter_api, **{"parent": 1, **{f"child {n}": 1 for n in range(0, 2_000, 20)}})


@pytest.mark.slow
def test_an_idle_client_uses_little_memory_even_after_a_backlog(letter_api: Any, tmp_path: Path) -> None:
    runs_quietly(memory_costs.idle_after_a_backlog, letter_api, tmp_path)
    assert letter_api.distinct == 50_010


@pytest.mark.slow
@pytest.mark.parametrize(
    "program",
    [memory_costs.large_events, memory_costs.killed_process, memory_costs.killed_before_its_thread_left],
    ids=["large events", "a killed process", "a process that was killed before its thread left, when the slot is used"],
)
def test_memory_is_returned_after(program: Callable[[], None], letter_api: Any, tmp_path: Path) -> None:
    runs_quietly(program, letter_api, tmp_path)


def test_a_disabled_client_reserves_nothing(letter_api: Any, tmp_path: Path) -> None:
    runs_quietly(memory.switched_off, letter_api, tmp_path)


def test_a_disabled_client_does_nothing_and_changes_no_signal(letter_api: Any, tmp_path: Path) -> None:
    runs_quietly(memory.switched_off_often, letter_api, tmp_path)
