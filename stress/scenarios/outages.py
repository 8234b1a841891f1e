"""The API is not there for a while: connections are refused, and those that are open are dropped."""

from __future__ import annotations

import time
from typing import Any

TITLES = {
    "outage-start": "no API for 1 s from the first call on",
    "outage-middle": "no API for 1 s while the program goes on",
    "outage-end": "no API from 1 s before the end on: the rest is told, within 15 s",
}
OUTAGE = 1.0  # seconds; three retries last for 1.75 or more
END = 15.0  # seconds from the word that it is over to the program's end: this client's default budget is 5


def inside(name: str) -> None:
    import desk

    desk.track(50)
    desk.say(tracked=50)
    desk.track_until_told()


def outside(stage: Any) -> None:
    if stage.name == "outage-start":
        stage.api.down()
    program = stage.play(stage.name)
    program.hear()
    if stage.name != "outage-start":
        stage.api.wait_for(50, 5)
        stage.api.down()
    time.sleep(OUTAGE)
    if stage.name != "outage-end":
        before = len(stage.api.arrivals)
        stage.api.up()
        stage.api.wait_until(lambda: len(stage.api.arrivals) > before, 5)
    program.go_on()
    stage.finish(program, seconds=END)
