"""One process: what goes out at a plain end, and what a burst leaves behind."""

from __future__ import annotations

import threading
from typing import Any

TITLES = {
    "single": "a script, 5,000 events, nobody closes",
    "single-close": "the same, close() at its end",
    "bursts": "5 bursts of 200 events; threads and descriptors after the last as after the first",
    "threads": "8 threads of 500 events, nobody closes",
}


def inside(name: str) -> None:
    import desk

    if name == "bursts":
        while desk.pause():
            desk.track(200)
        return
    if name == "threads":
        threads = [threading.Thread(target=desk.track, args=(500,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return
    desk.track(5_000)
    if name == "single-close":
        desk.close()


def outside(stage: Any) -> None:
    program = stage.play(stage.name)
    if stage.name == "bursts":
        program.hear()
        for number in range(1, 6):
            program.go_on()
            program.hear()
            stage.api.wait_for(200 * number)
            stage.rest(program.pid)
        program.close_stdin()
    stage.finish(program)
