"""The API reads every request and never responds, while a program tracks more events than any queue should hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..scenario_run import ScenarioRun

TITLES = {"dead-api": "60,000 events, no response at all; bounded memory, all reported within 8 s of the end"}
END = 8.0  # seconds until the program ends; the default limit of this client is 5


def inside() -> None:
    import tracker

    tracker.track(60_000)
    tracker.pause(over=True)


def outside(run: ScenarioRun) -> None:
    from letterapp.testing import Hold, reset

    silence = Hold(then=reset())
    run.api.rule = lambda request: silence
    program = run.start()
    try:
        program.receive()
        program.resume()
        run.finish(program, seconds=END)
    finally:
        silence.release()
