"""Importing this module starts a manager, and makes every `letterapp.Letter` created later use it.

Such a client prints which manager it has, how long each call took, and when it has sent events without the manager.
"""

from __future__ import annotations

import os
import time
from typing import Any

import letterapp
from letterapp.relay import SenderManager


def say(line: str) -> None:
    """Print in one piece and on a separate line, whatever other processes write to the same file."""
    os.write(1, f"\n{line}\n".encode())


manager = SenderManager("k", os.environ["TEST_API"], exit_timeout=25)
manager.start()
say(f"manager {manager.status()['pid']} of {os.getpid()}")


class ManagedLetter(letterapp.Letter):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, relay=manager.queue, **options)

    def track(self, *arguments: Any, **options: Any) -> None:
        began = time.monotonic()
        super().track(*arguments, **options)
        took = time.monotonic() - began
        delivered, stats = self.stats()["delivered"], self.stats()  # in this order, or a batch settles between
        own = max(0, delivered - stats["relayed"])
        if own or stats["mode"] != "relay":
            say(f"local fallback: {own} events as {stats['mode']}")
        say(f"took {took:.3f} s, {stats['relayed']} relayed in {os.getpid()}")


letterapp.Letter = ManagedLetter  # type: ignore[misc]
