"""The switches that make the inbox misbehave: which of the next requests fail, and how.

Responsible for: the switches and what is left of each. Not responsible for: carrying a fault out (`ingestion`).
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

MAX_COUNT = 1_000_000
MAX_SECONDS = 60.0


class Fault(NamedTuple):
    """What happens to one request. All false: it is handled as usual."""

    delay: float = 0.0  # seconds, before anything else
    status: int = 0  # respond with this one, and store nothing
    retry_after: float | None = None  # seconds; a header of a 429
    reset: bool = False  # reset the connection without a response
    stored: bool = False  # before that, store the events


class Switch(NamedTuple):
    """``left`` of the next requests fail like this. ``seconds``: Retry-After of a 429, the delay of `slow`."""

    left: int
    seconds: float


# Names of the switches, with the seconds that they have unless told otherwise.
KINDS = {"503": 0.0, "429": 1.0, "401": 0.0, "reset": 0.0, "slow": 2.0, "swallow": 0.0}

# `--troubled`: every Nth request. The numbers are primes, so that two faults seldom coincide.
_TROUBLE = {
    11: Fault(status=503),
    13: Fault(reset=True),
    17: Fault(status=429, retry_after=0.2),
    19: Fault(delay=0.3),
    23: Fault(reset=True, stored=True),  # which the client cannot know: it has to send the request again
}


class Faults:
    """The switches of one inbox. A slow request may have another fault as well, otherwise each takes one."""

    def __init__(self, troubled: bool = False) -> None:
        self._on: dict[str, Switch] = {}  # in the order in which they were turned on, which is that of their use
        self._count = itertools.count(1) if troubled else None

    def turn_on(self, kind: str, count: int, seconds: float | None = None) -> None:
        """Use ``kind`` for the next ``count`` requests; 0 turns it off. Raises `ValueError` with what is wrong."""
        if kind not in KINDS:
            raise ValueError(f"kind: must be one of {', '.join(KINDS)}")
        if not 0 <= count <= MAX_COUNT:
            raise ValueError(f"count: must be from 0 to {MAX_COUNT:,}")
        if seconds is None:
            seconds = KINDS[kind]
        if not 0 <= seconds <= MAX_SECONDS:
            raise ValueError(f"seconds: must be from 0 to {MAX_SECONDS:g}")
        self._on.pop(kind, None)
        if count:
            self._on[kind] = Switch(count, seconds)

    def turn_off(self) -> None:
        """Turn all switches off."""
        self._on.clear()

    def state(self) -> dict[str, Any]:
        """Every switch, as JSON."""
        return {
            kind: {"left": switch.left, "seconds": switch.seconds}
            for kind, switch in ((kind, self._on.get(kind, Switch(0, seconds))) for kind, seconds in KINDS.items())
        }

    def take(self) -> Fault:
        """What happens to this request. Each call uses up one request of a switch."""
        delay = self._use("slow").seconds if "slow" in self._on else 0.0
        kind = next((kind for kind in self._on if kind != "slow"), None)
        if kind is None:
            if delay or self._count is None:
                return Fault(delay)
            number = next(self._count)
            return next((fault for every, fault in _TROUBLE.items() if number % every == 0), Fault())
        switch = self._use(kind)
        if kind in ("reset", "swallow"):
            return Fault(delay, reset=True, stored=kind == "swallow")
        return Fault(delay, status=int(kind), retry_after=switch.seconds if kind == "429" else None)

    def _use(self, kind: str) -> Switch:
        switch = self._on[kind]
        if switch.left > 1:
            self._on[kind] = switch._replace(left=switch.left - 1)
        else:
            del self._on[kind]
        return switch
