"""The API responds slowly, wrongly, partly or not at all. Three retries are enough in all cases but a refusal."""

from __future__ import annotations

import itertools
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Callable

if TYPE_CHECKING:
    from ..scenario_run import ScenarioRun

TITLES = {
    "slow-api": "4 processes, each response takes 0.2 s",
    "storm-5xx": "the response to each request is 500, 502 or 503 for 1 s",
    "storm-429": "the response to each request is 429, Retry-After: 1, for 1 s",
    "resets": "one request in five is reset before it is read",
    "half-answers": "one response in five is truncated, invalid or missing, its events stored or not",
    "swallowed": "each 4th request is stored and then reset",
    "too-large": "500 events at once, 413 for more than 3,000 bytes",
    "denied": "the response to each request is 401: every event is reported",
}
SLOW = 0.2  # seconds
STORM = 1.0  # seconds, from the first request on
LONGEST = 15.0  # seconds for a program that needs 3
IN_A_ROW = 2  # the maximum number of consecutive faults, so that no client runs out of retries


def inside(name: str) -> None:
    import tracker

    if name == "too-large":
        tracker.track(500)  # without pauses, so that batches are large
        return
    for _ in range(200):  # 2 seconds or more, so that the faults end before the program does
        tracker.track(5)
        time.sleep(0.01)


def outside(run: ScenarioRun) -> None:
    if run.name == "too-large":
        run.api.max_body = 3_000
    elif run.name.startswith("storm"):
        run.api.rule = _storm(run)
    else:
        faults = itertools.cycle(_faults(run))  # so that the Nth request of every client meets the same fault
        run.api.rule = lambda request: next(faults)
    run.finish(*[run.start(run.name) for _ in range(4 if run.name == "slow-api" else 1)], seconds=LONGEST)


def _storm(run: ScenarioRun) -> Callable[[Any], Any]:
    from letterapp.testing import status

    end: list[float] = []

    def rule(request: Any) -> Any:
        if not end:
            end.append(time.monotonic() + STORM)
        if time.monotonic() > end[0]:
            return None
        if run.name == "storm-429":
            return status(429, headers={"Retry-After": "1"})
        return status(run.random.choice((500, 502, 503)))

    return rule


def _faults(run: ScenarioRun) -> list[Any]:
    """The faults of consecutive requests; None for a normal response."""
    from letterapp.testing import cut, raw, reset, stall, status

    if run.name == "resets":
        return _one_in_five(run.random, [reset()])
    if run.name == "half-answers":
        responses: list[Callable[..., Any]] = [cut, partial(raw, b"\x00 no HTTP\r\n\r\n"), partial(raw, b"")]
        return _one_in_five(run.random, [response(stored=stored) for response in responses for stored in (False, True)])
    plans: dict[str, list[Any]] = {
        "slow-api": [stall(SLOW)],
        "swallowed": [None, None, None, reset(stored=True)],
        "denied": [status(401)],
    }
    return plans[run.name]


def _one_in_five(rng: Any, faults: list[Any]) -> list[Any]:
    plan: list[Any] = [None]
    for _ in range(1_000):
        bad = rng.random() < 0.2 and not all(plan[-IN_A_ROW:])
        plan.append(rng.choice(faults) if bad else None)
    return plan
