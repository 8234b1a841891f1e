"""Sending one batch after the other (`letterapp._delivery.batches`)."""

from __future__ import annotations

from typing import Any


def test_an_unexpected_exception_does_not_end_the_sender(letter_api: Any, driven: Any) -> None:
    one = driven(max_retries=0)
    one.track()
    look = one.sender._recovery.recover_if_due

    def fail(now: float) -> None:
        raise BufferError("unheard of")

    one.sender._recovery.recover_if_due = fail
    assert 0 < one.sender._batches.send_once() <= 1  # not at once again, which would be forever
    one.sender._recovery.recover_if_due = look
    one.settle()
    assert letter_api.distinct == 1
