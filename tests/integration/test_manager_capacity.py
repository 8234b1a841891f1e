"""A manager that has no space for a batch: what ``overflow`` says holds, and a process may still send directly."""

from __future__ import annotations

import os
from typing import Any

import pytest
from harness import DEADLINE, eventually, first_is_quick, whose
from managed import (
    SLOW,
    Suspended,
    balanced,
    own_directory,  # noqa: F401  (a fixture for all tests)
    own_manager,  # noqa: F401  (a fixture)
    troubles,
    work,
)

from letterapp import Letter, LetterError
from letterapp.testing import Hold

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Unix")


@first_is_quick("overflow", ["drop_newest", "drop_oldest", "block"])
def test_a_full_manager(overflow: str, manager: Any, letter_api: Any) -> None:
    one = manager(max_queue_events=11, overflow=overflow)
    hold = Hold()
    letter_api.plan(hold)
    reported: list[list[LetterError]] = [[] for _ in range(4)]
    letters = [Letter(relay=one.queue, on_error=each.append, flush_interval=0, timeout=DEADLINE) for each in reported]
    work(letters[0], 1, "0")
    assert hold.arrived.wait(DEADLINE)
    for who in (1, 2, 3):
        with Suspended(letters[who]):
            work(letters[who], 5, str(who))
        if who < 3:
            assert eventually(lambda: one.status()["accepted"] >= 1 + 5 * who, bool), one.status()  # noqa: B023
    if overflow == "drop_newest":
        assert letters[3].flush(DEADLINE)  # its process sends, while the manager waits
    else:
        assert not letters[3].flush(1.5)
    hold.release()
    for letter in letters:
        assert letter.close(DEADLINE)
        balanced(letter)
    lost = {who: sum(error.lost for error in each if error.cause) for who, each in enumerate(reported)}
    came = {who: len(serials) for who, serials in whose(letter_api).items()}
    if overflow == "drop_oldest":
        assert sum(lost.values()) + sum(came.values()) == 16 and sum(lost.values()) > 0, (lost, came)
        assert all(error.cause == "overflow" for each in reported for error in each if error.cause)
    else:
        assert came == {"0": 1, "1": 5, "2": 5, "3": 5}, (lost, came)
        assert not any(lost.values())


def test_a_process_that_ends_does_not_wait_for_space(manager: Any, letter_api: Any) -> None:
    one = manager(max_queue_events=3, overflow="block")
    hold = Hold()
    letter_api.plan(hold)
    first = Letter(relay=one.queue, flush_interval=0)
    work(first, 1, "first")
    assert hold.arrived.wait(DEADLINE)
    second = Letter(relay=one.queue, flush_interval=0, timeout=DEADLINE)
    work(second, 3, "second")
    assert not second.flush(0.5)
    assert second.close(DEADLINE / 2)  # it sends them itself
    assert whose(letter_api) == {"second": [0, 1, 2]}
    hold.release()
    assert first.close(DEADLINE)


def test_a_request_in_progress_is_not_dropped_for_newer_events(manager: Any, letter_api: Any) -> None:
    # `drop_oldest` drops waiting events. Here all queued events are being sent, so a batch has no space.
    one = manager(max_queue_events=100, overflow="drop_oldest")
    hold = Hold()
    letter_api.plan(hold)
    first, second = (Letter(relay=one.queue, flush_at=100, flush_interval=3600) for _ in range(2))
    work(first, 100, "first")
    assert hold.arrived.wait(DEADLINE)
    work(second, 100, "second")
    assert second.flush(DEADLINE) and second.stats()["relayed"] == 0
    hold.release()
    assert first.close(DEADLINE)
    assert whose(letter_api) == {"first": list(range(100)), "second": list(range(100))}


def test_only_the_event_that_is_too_large_for_the_manager_is_sent_by_its_process(
    manager: Any, letter_api: Any, errors: Any
) -> None:
    one = manager(max_batch_bytes=2_000)
    letter = Letter(relay=one.queue, on_error=errors.append, **SLOW)
    letter.track("large", "Worked", {"serial": 0, "x": "y" * 3_000})
    assert letter.flush(DEADLINE) and letter.stats()["relayed"] == 0
    work(letter, 3)
    assert letter.flush(DEADLINE) and letter.stats()["relayed"] == 3
    assert letter.close() and len(troubles(errors)) == 1 and "did not accept a batch" in str(errors[0])
    assert whose(letter_api) == {"large": [0], "program": [0, 1, 2]}


def test_a_batch_that_can_never_fit_does_not_wait_for_space(manager: Any, letter_api: Any) -> None:
    letter = Letter(relay=manager(max_queue_events=20, overflow="block").queue, timeout=DEADLINE * 2, **SLOW)
    work(letter, 50)
    assert letter.flush(DEADLINE) and letter.stats()["relayed"] == 0
    assert letter.close() and whose(letter_api) == {"program": list(range(50))}


def test_a_connection_whose_batch_was_refused_is_closed_like_any_other(manager: Any, letter_api: Any) -> None:
    one = manager(max_queue_events=1)
    letter = Letter(relay=one.queue, on_error=lambda error: None, **SLOW)
    work(letter, 50)
    assert letter.close(DEADLINE)
    assert eventually(lambda: one.status()["connections"], lambda count: count == 0) == 0
