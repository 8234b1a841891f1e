"""The API is down for a while: it refuses connections, and closes those that are open."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..scenario_run import ScenarioRun

TITLES = {
    "outage-start": "no API for 1 s from the first call on",
    "outage-middle": "no API for 1 s while the program continues",
    "outage-end": "no API from 1 s before the end on: the rest is reported, within 15 s",
}
OUTAGE = 1.0  # seconds; three retries take 1.75 or more
END = 15.0  # seconds until the program ends; the default limit of this client is 5


def inside(name: str) -> None:
    import tracker

    tracker.track(50)
    tracker.notify(tracked=50)
    tracker.track_until_resumed()


def outside(run: ScenarioRun) -> None:
    if run.name == "outage-start":
        run.api.down()
    program = run.start(run.name)
    program.receive()
    if run.name != "outage-start":
        run.api.wait_for(50, 5)
        run.api.down()
    time.sleep(OUTAGE)
    if run.name != "outage-end":
        before = len(run.api.arrivals)
        run.api.up()
        run.api.wait_until(lambda: len(run.api.arrivals) > before, 5)
    program.resume()
    run.finish(program, seconds=END)
