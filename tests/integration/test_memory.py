"""Where the events of a client are stored: in memory that its family shares, or in private memory if there is none.

Each test is a real program. What its processes find out comes back as an exit status, or as events on the wire.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any, Callable

import pytest
from families import ends_well, once, output_of, runs_quietly
from harness import Program, environment, first_is_quick, start, whose
from programs import backends, many_clients, memory, systems

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="looks into Linux's /proc")

# What takes the place of shared memory, or of a part of it.

SHARED = {
    "everything": None,
    "memfd_create is missing": systems.lacks_memfd_create,
    "memfd_create is refused": systems.refuses_memfd_create,
    "MADV_REMOVE is refused": systems.refuses_madv_remove,
}
PRIVATE = {
    "mmap is missing": systems.lacks_mmap,
    "fcntl is missing": systems.lacks_fcntl,
    "mmap refuses": systems.refuses_mmap,
    "no file can be made": systems.refuses_files,
    "os.fork is missing": systems.lacks_fork,
}


def behaves(api: Any, tmp_path: Path, system: Callable[[], None] | None, kind: str, says: str = "") -> dict[str, Any]:
    """A program that uses a client in several ways; what its parent's `stats` said of a queue that adopts."""
    output = output_of(backends.every_use, api, tmp_path, kind, system=system)
    assert re.fullmatch(says, output), output
    came = whose(api)
    found: dict[str, Any]
    (found,) = (item["properties"]["stats"] for item in api.events if item["userId"] == "found")
    counts = {"parent": 500, "closes": 250, "comes to its end": 250, "has a child": 10, "grandchild": 10, "last": 150}
    assert {who: came.get(who) for who in counts} == {who: list(range(count)) for who, count in counts.items()}
    assert came["small"] == list(range(70, 120))
    assert api.repeated() == {}
    assert "killed" not in came or came["killed"] == list(range(30))
    return found


@first_is_quick("system", SHARED.values(), ids=SHARED.keys())
def test_memory_is_shared_with(system: Callable[[], None] | None, letter_api: Any, tmp_path: Path) -> None:
    assert behaves(letter_api, tmp_path, system, "shared")["adopted"] == 30
    assert "killed" in whose(letter_api)


@first_is_quick("system", PRIVATE.values(), ids=PRIVATE.keys())
def test_private_memory_is_reported_once_and_works_otherwise(
    system: Callable[[], None], letter_api: Any, tmp_path: Path
) -> None:
    says = r"letterapp: events are kept in private memory \(.+\n"
    if system is systems.lacks_fork:
        says = ""  # such a system never had any to share
    assert behaves(letter_api, tmp_path, system, "private", says)["adopted"] == 0
    assert "killed" not in whose(letter_api)


def test_near_the_address_space_limit_a_family_reports_private_memory_once(letter_api: Any, tmp_path: Path) -> None:
    runs_quietly(memory.near_limit, letter_api, tmp_path)
    once(letter_api, parent=500, child=100, other=100)


def test_children_that_lose_the_shared_memory_and_cannot_map_any_report_it_once(
    letter_api: Any, tmp_path: Path
) -> None:
    runs_quietly(memory.lost_for_good, letter_api, tmp_path)


def test_without_memory_for_the_whole_queue_a_smaller_one_is_created(letter_api: Any, tmp_path: Path) -> None:
    runs_quietly(memory.smaller_queue, letter_api, tmp_path)
    assert len([item for item in letter_api.events if "serial" in item["properties"]]) == 20


def test_private_memory_is_allocated_page_by_page_and_not_shared_with_a_child(letter_api: Any, tmp_path: Path) -> None:
    runs_quietly(memory.private_pages, letter_api, tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="mlockall as Linux has it")
@pytest.mark.parametrize("flags, keeps", [(2, 8192), (3, 8192), (6, 0)], ids=["future", "current too", "on fault"])
def test_with_mlockall_a_client_allocates_only_the_pages_that_it_writes(
    flags: int, keeps: int, letter_api: Any, tmp_path: Path
) -> None:
    runs_quietly(memory.locked_memory, letter_api, tmp_path, flags, keeps)
    if letter_api.events:
        once(letter_api, parent=1000, killed=10)


# Other interpreters, and an interpreter's end.


@pytest.mark.skipif(shutil.which("pypy3") is None, reason="needs PyPy")
def test_pypy(letter_api: Any, tmp_path: Path) -> None:
    with start(backends.pypy, letter_api.url, tmp_path, python=str(shutil.which("pypy3"))) as program:
        ends_well(program)
        assert program.output == ""
    once(letter_api, **{"parent": 260, "closes": 120, "comes to its end": 120, "killed": 120})


@first_is_quick("options", [[], ["-X", "dev", "-W", "error"]], ids=["plain", "-X dev -W error"])
def test_an_interpreter_ends_quietly_with_many_clients_alive(
    options: list[str], letter_api: Any, tmp_path: Path
) -> None:
    env = environment(letter_api.url)
    del env["PYTHONWARNINGS"]
    command = [sys.executable, *options, "-m", many_clients.__name__, many_clients.clients.__name__]
    for used in [], ["used"]:
        with Program([*command, *used], env, tmp_path) as program:
            ends_well(program)
            assert program.output == ""
    assert letter_api.distinct == 129
