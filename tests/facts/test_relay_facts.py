"""How the kernel and multiprocessing behave, as far as the relay depends on it: a small program for each fact."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Callable

import pytest
from harness import run
from programs import relay_facts
from relayed import NOWHERE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="facts about Linux")


def holds(fact: Callable[[], None], tmp_path: Path) -> None:
    """Run a program that must succeed and print nothing."""
    finished = run(fact, NOWHERE, tmp_path)
    assert (finished.code, finished.output) == (0, ""), finished


def test_what_a_killed_writer_sent_can_still_be_read(tmp_path: Path) -> None:
    holds(relay_facts.killed_writer, tmp_path)


def test_what_a_writer_sent_can_be_read_before_the_reset_that_its_unread_answers_cause(tmp_path: Path) -> None:
    holds(relay_facts.unread_answers, tmp_path)


def test_after_shut_rd_a_send_fails_and_earlier_data_can_be_read(tmp_path: Path) -> None:
    holds(relay_facts.shut_rd, tmp_path)


def test_a_connection_that_was_not_accepted_when_the_listener_closed_is_reset(tmp_path: Path) -> None:
    holds(relay_facts.closed_listener, tmp_path)


def test_a_send_of_32_kb_is_complete_or_does_nothing(tmp_path: Path) -> None:
    holds(relay_facts.send_32_kb, tmp_path)


def test_a_send_of_60_kb_may_be_partial(tmp_path: Path) -> None:
    # In pieces of some 36 kB, however large the buffer is: the second one may find no room.
    holds(relay_facts.send_60_kb, tmp_path)


def test_a_stopped_process_accepts_connections_and_data_until_its_buffers_are_full(tmp_path: Path) -> None:
    holds(relay_facts.stopped_process, tmp_path)


@pytest.mark.slow
def test_connecting_to_a_stopped_manager_blocks(tmp_path: Path) -> None:
    # Why the relay is no manager: the handshake has no deadline, and each call would wait like that.
    holds(relay_facts.stopped_manager, tmp_path)


@pytest.mark.slow
def test_a_manager_has_a_thread_for_each_connection_even_if_it_says_nothing(tmp_path: Path) -> None:
    holds(relay_facts.silent_connections, tmp_path)
