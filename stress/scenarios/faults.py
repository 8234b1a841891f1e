"""The API answers slowly, wrongly, by halves or not at all. Three retries survive all of it, but for a refusal."""

from __future__ import annotations

import itertools
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Callable

if TYPE_CHECKING:
    from ..scenario_run import ScenarioRun

TITLES = {
    "slow-api": "4 processes, each answer takes 0.2 s",
    "storm-5xx": "each request is answered 500, 502 or 503 for 1 s",
    "storm-429": "each request is answered 429, Retry-After: 1, for 1 s",
    "resets": "one request in five is reset, unread",
    "half-answers": "one answer in five is cut, garbage or missing, its events stored or not",
    "swallowed": "each 4th request is stored and then reset",
    "too-large": "500 events at once, 413 for more than 3,000 bytes",
    "denied": "each request is answered 401: all is told",
}
SLOW = 0.2  # seconds
STORM = 1.0  # seconds from the first request on
LONGEST = 15.0  # seconds for a program that needs 3
IN_A_ROW = 2  # requests that chance may spoil one after the other, so that bad luck outlasts no client's retries


def inside(name: str) -> None:
    import tracker

    if name == "too-large":
        tracker.track(500)  # at once, so that batches are large
        return
    for _ in range(200):  # 2 seconds or more, so that the storms are over before the end
        tracker.track(5)
        time.sleep(0.01)


def outside(run: ScenarioRun) -> None:
    if run.name == "too-large":
        run.api.max_body = 3_000
    elif run.name.startswith("storm"):
        run.api.rule = _storm(run)
    else:
        faults = itertools.cycle(_faults(run))  # so the n-th request of any client meets the same
        run.api.rule = lambda request: next(faults)
    run.finish(*[run.start(run.name) for _ in range(4 if run.name == "slow-api" else 1)], seconds=LONGEST)


def _storm(run: ScenarioRun) -> Callable[[Any], Any]:
    from letterapp.testing import status

    over: list[float] = []

    def rule(request: Any) -> Any:
        if not over:
            over.append(time.monotonic() + STORM)
        if time.monotonic() > over[0]:
            return None
        if run.name == "storm-429":
            return status(429, headers={"Retry-After": "1"})
        return status(run.random.choice((500, 502, 503)))

    return rule


def _faults(run: ScenarioRun) -> list[Any]:
    """What becomes of one request after the other; None: it is treated well."""
    from letterapp.testing import cut, raw, reset, stall, status

    if run.name == "resets":
        return _one_in_five(run.random, [reset()])
    if run.name == "half-answers":
        halves: list[Callable[..., Any]] = [cut, partial(raw, b"\x00 no HTTP\r\n\r\n"), partial(raw, b"")]
        return _one_in_five(run.random, [half(stored=stored) for half in halves for stored in (False, True)])
    plans: dict[str, list[Any]] = {
        "slow-api": [stall(SLOW)],
        "swallowed": [None, None, None, reset(stored=True)],
        "denied": [status(401)],
    }
    return plans[run.name]


def _one_in_five(chance: Any, faults: list[Any]) -> list[Any]:
    plan: list[Any] = [None]
    for _ in range(1_000):
        bad = chance.random() < 0.2 and not all(plan[-IN_A_ROW:])
        plan.append(chance.choice(faults) if bad else None)
    return plan
