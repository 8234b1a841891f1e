"""The ingestion server for tests (`letterapp.testing`)."""

from __future__ import annotations

import os
import socket
from typing import Callable

import pytest
from harness import DEADLINE

from letterapp import Letter
from letterapp.testing import Hold, IngestionServer, reset, status

# pytest's `faulthandler` and this suite's watchdog are threads, which Python warns of at each fork from 3.12 on.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


def test_a_held_request_is_kept_before_it_is_answered(letter_api: IngestionServer, make: Callable[..., Letter]) -> None:
    hold = Hold()
    letter_api.plan(hold)
    letter = make()
    letter.track("test", "Worked")
    assert hold.arrived.wait(DEADLINE) and letter_api.distinct == 0
    hold.release()
    assert letter.flush(DEADLINE) and letter_api.distinct == 1


def test_held_requests_are_received_and_neither_kept_nor_answered(
    letter_api: IngestionServer, make: Callable[..., Letter]
) -> None:
    letter_api.hold()
    first, second = make(), make()
    first.track("test", "Worked")
    second.track("test", "Worked")
    assert letter_api.wait_until(lambda: len(letter_api.requests) == 2, DEADLINE) and letter_api.distinct == 0
    assert not first.flush(0)
    letter_api.release()
    assert first.flush(DEADLINE) and second.flush(DEADLINE) and letter_api.distinct == 2


def test_a_fault_applies_when_a_held_request_is_released(
    letter_api: IngestionServer, make: Callable[..., Letter]
) -> None:
    letter_api.hold()
    letter_api.plan(status(503))
    letter = make()
    letter.track("test", "Worked")
    assert letter_api.wait_until(lambda: bool(letter_api.requests), DEADLINE)
    letter_api.release()
    assert letter.flush(DEADLINE) and letter_api.distinct == 1 and letter.stats()["retried"] == 1


def test_a_server_that_is_closed_holds_nothing(make: Callable[..., Letter]) -> None:
    with IngestionServer() as api:
        letter = make(base_url=api.url, max_retries=0)
        api.hold()
        letter.track("test", "Lost")
        assert api.wait_until(lambda: bool(api.requests), DEADLINE)
    assert letter.flush(DEADLINE)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_keeps_neither_the_port_nor_a_connection_open(make: Callable[..., Letter]) -> None:
    reads, writes = os.pipe()
    child = 0
    try:
        with IngestionServer() as api:
            letter = make(base_url=api.url)
            letter.track("test", "Worked")
            assert letter.flush(DEADLINE)
            child = os.fork()
            if not child:
                os.close(writes)
                os.read(reads, 1)
                os._exit(0)
            api.plan(reset())
            letter.track("test", "Worked")
            assert letter.flush(DEADLINE) and len(api.requests) == 3
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", api.port), DEADLINE).close()
    finally:
        os.close(writes)
        os.close(reads)
        if child:
            os.waitpid(child, 0)
