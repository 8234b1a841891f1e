"""A client that a test runs step by step, with a manual clock: no test sleeps.

Responsible for: that client, which the fixture `driven` of conftest.py hands out. Not responsible for: what is right.
"""

from __future__ import annotations

from typing import Any

from letterapp import Letter, LetterError
from letterapp._delivery.sender import Sender
from letterapp.testing import IngestionServer

DONE = float("inf")  # what a turn answers when nothing waits


class Driven:
    """A client whose sender has no thread: the test takes the turns, at times that it chooses."""

    def __init__(self, api_url: str, errors: list[LetterError], **options: Any) -> None:
        self.now = 1000.0
        options = {"api_key": "test-key", "flush_interval": 0, **options}
        self.letter = Letter(base_url=api_url, on_error=errors.append, **options)
        self.sender = Sender(self.letter._settings, lambda: self.now)
        claim = self.sender._queue.claim_worker()
        assert claim is not None
        claim.started = True  # as the thread does, so that no other is started
        self.letter._delivery = self.sender

    def track(self, count: int = 1) -> None:
        for serial in range(count):
            self.letter.track("u", "E", {"serial": serial})

    def settle(self) -> list[float]:
        """Take turns until nothing waits. Returns the waits between two tries, which the clock jumped over."""
        waits: list[float] = []
        while True:
            wait = self.sender._batches.send_once()
            if wait == DONE:
                return waits
            if wait:
                waits.append(wait)
                self.now += wait

    def stop(self) -> None:
        self.sender._queue.abandon("closed")
        self.sender._queue.release_worker()
        self.sender._batches._transport.close()


def connections(api: IngestionServer) -> int:
    return len({request.connection for request in api.requests})
