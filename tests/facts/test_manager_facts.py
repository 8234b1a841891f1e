"""How `multiprocessing` behaves, as far as `Letter(relay=queue)` depends on it.

Responsible for: the smallest program that shows each fact, run with this Python. Not responsible for: the client.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Callable

import pytest
from harness import eventually, run, start
from programs import multiprocessing_facts as facts

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Unix")


def output_of(program: Callable[..., object], tmp_path: Path, *arguments: object) -> str:
    finished = run(program, "", tmp_path, *arguments)
    assert finished.code == 0, finished
    return finished.output


def test_after_a_raw_fork_parent_and_child_share_the_connection_of_a_used_proxy(tmp_path: Path) -> None:
    assert output_of(facts.connection_after_a_raw_fork, tmp_path).split() == ["True", "False"]


def test_a_raw_forked_child_can_open_its_own_connection_with_the_proxy_s_token(tmp_path: Path) -> None:
    assert output_of(facts.own_connection_after_a_raw_fork, tmp_path) == "300\n"


def test_an_exception_in_the_middle_of_a_call_shifts_every_later_answer(tmp_path: Path) -> None:
    assert output_of(facts.exception_in_the_middle_of_a_call, tmp_path) == "1 False\n"


def test_a_pickled_proxy_loses_the_authkey_of_a_manager_that_has_its_own(tmp_path: Path) -> None:
    # CPython issue 139801
    assert output_of(facts.pickled_proxy, tmp_path) == "lost\n"


def test_a_multiprocessing_child_starts_a_new_feeder_and_a_raw_forked_child_does_not(tmp_path: Path) -> None:
    assert output_of(facts.feeder_after_a_fork, tmp_path).split() == ["False", "True"]


def test_a_feeder_waits_for_more_items_only_when_it_has_written_all(tmp_path: Path) -> None:
    assert output_of(facts.idle_feeder, tmp_path) == "False\nTrue\n"


@pytest.mark.slow
def test_a_process_whose_queue_is_not_read_does_not_end_unless_it_cancels_the_join(tmp_path: Path) -> None:
    assert output_of(facts.queue_that_nobody_reads, tmp_path, "cancelled") == "at its end\n"
    with start(facts.queue_that_nobody_reads, "", tmp_path, "joined") as program:
        assert eventually(lambda: program.output, bool) == "at its end\n"
        with pytest.raises(AssertionError, match="still running"):
            program.finish(1)


def test_a_manager_s_server_ignores_sigint_and_ends_at_sigterm(tmp_path: Path) -> None:
    assert output_of(facts.signals_of_a_server, tmp_path) == "1\ngone\ngone\n"


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_what_a_spawned_child_registers_while_it_unpickles_its_job_may_be_lost(method: str, tmp_path: Path) -> None:
    # Up to Python 3.10 `BaseProcess._bootstrap` drops all finalizers after that, and then calls the after-fork hooks.
    lines = output_of(facts.registered_while_unpickling, tmp_path, method).splitlines()
    assert lines[0] == "True True", lines
    assert lines[1:] in (["called again", "runs"], ["runs", "kept"]), lines


def test_a_second_listen_raises_the_backlog_of_a_listener(tmp_path: Path) -> None:
    # It is 16 up to Python 3.11, and a connect to a full backlog fails at once for a socket with a timeout.
    assert output_of(facts.backlog, tmp_path, tmp_path / "s") == "100\n"


def test_shutting_down_a_listening_socket_interrupts_accept(tmp_path: Path) -> None:
    if os.uname().sysname == "Linux":
        assert output_of(facts.shut_down_while_it_accepts, tmp_path, tmp_path / "s") == "ended\nFalse\n"
