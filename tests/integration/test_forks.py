"""Forks: the parent's waiting events stay the parent's, the child starts empty, nothing is sent twice, nothing hangs.

Each test is a real program; the children's findings come back as events on the wire or as lines of output.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from harness import DEADLINE, eventually, first_is_quick, run, start, whose
from programs import forks

from letterapp.testing import Hold

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


def once(api: Any, expected: dict[str, int]) -> None:
    assert whose(api) == {who: list(range(count)) for who, count in expected.items()}
    assert api.repeated() == {}


@first_is_quick("end", ["return", "exit", "raise", "close"])
def test_a_child_forked_while_events_wait_that_ends_by(end: str, letter_api: Any, tmp_path: Path) -> None:
    finished = run(forks.waiting_events, letter_api.url, tmp_path, end)
    assert finished.code == 0, finished
    once(letter_api, {"parent": 500, "child 0": 300, "child 1": 300, "child 2": 300})


def test_a_child_that_does_nothing_sends_nothing(letter_api: Any, tmp_path: Path) -> None:
    finished = run(forks.idle_children, letter_api.url, tmp_path)
    assert finished.code == 0 and finished.output == "", finished
    once(letter_api, {"parent": 40})


def test_a_child_counts_from_zero(letter_api: Any, tmp_path: Path) -> None:
    assert run(forks.counts, letter_api.url, tmp_path).output == "True 0 0 True\n40\n"


def test_a_request_in_progress_at_the_fork_is_sent_once_by_the_parent(letter_api: Any, tmp_path: Path) -> None:
    hold = Hold()
    letter_api.plan(hold)
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with start(forks.request_on_the_wire, letter_api.url, tmp_path, gate) as running:
        assert hold.arrived.wait(DEADLINE)
        gate.write_text("")
        assert eventually(lambda: running.output, lambda text: "child ended" in text)
        assert whose(letter_api) == {"child": list(range(200))}
        hold.release()
        assert running.finish().code == 0
    once(letter_api, {"parent": 10, "child": 200})
    by_pid: dict[int, set[Any]] = {}
    for request in letter_api.requests:
        for item in request.json["batch"]:
            by_pid.setdefault(item["properties"]["pid"], set()).add(request.connection)
    parents, childs = by_pid.values()
    assert not parents & childs, "the child used the parent's connection"


def test_the_childs_copy_of_the_connection_is_closed_in_the_child_and_open_in_the_parent(
    letter_api: Any, tmp_path: Path
) -> None:
    finished = run(forks.connections, letter_api.url, tmp_path)
    assert finished.output == "1\n0\n", finished
    assert len({request.connection for request in letter_api.requests}) == 1


def test_a_descriptor_that_was_reused_in_the_child_is_not_closed(letter_api: Any, tmp_path: Path) -> None:
    # A daemon closes all that it inherited, and its log gets the number. Without a fork hook (as under uWSGI) the
    # client finds out late.
    finished = run(forks.daemon, letter_api.url, tmp_path)
    assert finished.code == 0 and finished.output == "", finished
    once(letter_api, {"parent": 10, "child": 10})


def test_the_queues_lock_held_by_another_thread_at_the_fork(letter_api: Any, tmp_path: Path) -> None:
    finished = run(forks.held_lock, letter_api.url, tmp_path)
    assert finished.code == 0, finished
    once(letter_api, {"parent": 10, "child": 50})


def test_a_fork_from_a_thread(letter_api: Any, tmp_path: Path) -> None:
    assert run(forks.from_a_thread, letter_api.url, tmp_path).code == 0
    once(letter_api, {"parent": 120, "child": 130})


def test_a_fork_from_on_error_on_the_senders_own_thread(letter_api: Any, tmp_path: Path) -> None:
    from letterapp.testing import status

    letter_api.plan(status(403))
    finished = run(forks.from_on_error, letter_api.url, tmp_path)
    assert finished.code == 0, finished
    once(letter_api, {"parent": 100, "child": 20})


def test_three_generations(letter_api: Any, tmp_path: Path) -> None:
    assert run(forks.generations, letter_api.url, tmp_path).code == 0
    once(letter_api, {f"generation {n}": 100 for n in range(4)})


def test_a_child_of_a_child_that_never_used_the_client(letter_api: Any, tmp_path: Path) -> None:
    assert run(forks.grandchild, letter_api.url, tmp_path).code == 0
    once(letter_api, {"parent": 30, "grandchild": 30})


@pytest.mark.slow
@pytest.mark.parametrize("hooks", ["called", "not called"])
def test_200_children_while_four_threads_track_continuously(hooks: str, letter_api: Any, tmp_path: Path) -> None:
    finished = run(forks.many_children, letter_api.url, tmp_path, hooks)
    assert finished.code == 0, finished
    counts: list[int] = [int(text) for text in finished.output.splitlines()[-1].split()]
    warm_up = {"warm up": 1} if hooks == "not called" else {}
    once(
        letter_api,
        {
            **warm_up,
            **{f"thread {n}": count for n, count in enumerate(counts)},
            **{f"child {n}": 20 for n in range(200)},
        },
    )


def test_after_flush_the_process_forks_single_threaded(letter_api: Any, tmp_path: Path) -> None:
    assert run(forks.threads_after_flush, letter_api.url, tmp_path).output.split() == ["1"] * 100
    once(letter_api, {"parent": 200})


def test_a_fork_in_the_middle_of_the_first_requests_imports_waits_for_them(letter_api: Any, tmp_path: Path) -> None:
    # The child would inherit half of a module, and the import system's lock on it, forever. The gate is an import
    # hook that stands still in the middle of `http.client`.
    finished = run(forks.in_the_middle_of_imports, letter_api.url, tmp_path)
    assert finished.code == 0 and finished.output == "", finished
    once(letter_api, {"parent": 10, "child": 10})
