"""The API takes every request and never answers, while a program tracks more than any queue should hold."""

from __future__ import annotations

from typing import Any

TITLES = {"dead-api": "60,000 events, no answer ever; bounded memory, all told within 8 s of the end"}
END = 8.0  # seconds from the word that it is over to the program's end: this client's default budget is 5


def inside() -> None:
    import desk

    desk.track(60_000)
    desk.pause(over=True)


def outside(stage: Any) -> None:
    from letterapp.testing import Hold, reset

    silence = Hold(then=reset())
    stage.api.rule = lambda request: silence
    program = stage.play()
    try:
        program.hear()
        program.go_on()
        stage.finish(program, seconds=END)
    finally:
        silence.release()
