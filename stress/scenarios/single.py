"""One process: what is sent at a normal exit, and what a burst leaves behind."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..scenario_run import ScenarioRun

TITLES = {
    "single": "a script, 5,000 events, without close()",
    "single-close": "the same, with close() at its end",
    "bursts": "5 bursts of 200 events; as many threads and descriptors after the last as after the first",
    "threads": "8 threads with 500 events each, without close()",
}


def inside(name: str) -> None:
    import tracker

    if name == "bursts":
        while tracker.pause():
            tracker.track(200)
        return
    if name == "threads":
        threads = [threading.Thread(target=tracker.track, args=(500,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return
    tracker.track(5_000)
    if name == "single-close":
        tracker.close()


def outside(run: ScenarioRun) -> None:
    program = run.start(run.name)
    if run.name == "bursts":
        program.receive()
        for number in range(1, 6):
            program.resume()
            program.receive()
            run.api.wait_for(200 * number)
            run.check_for_leaks(program.pid)
        program.close_stdin()
    run.finish(program)
