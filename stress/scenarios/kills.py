"""Signals while events wait: SIGKILL and SIGSTOP to workers, SIGKILL to their parent, SIGTERM, Ctrl-C.

The waiting events of a killed process are lost unless they are stored elsewhere; the ledger counts the calls that had
returned.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..scenario_run import ScenarioRun

TITLES = {
    "kill-workers": "12 SIGKILLs to 4 forked workers that track, each replaced by the parent",
    "stop-workers": "12 SIGSTOPs of up to 0.8 s to 4 forked workers that track",
    "kill-parent": "SIGKILL to 3 parents that track; the 4 forked children of each track for a while longer",
    "kill-parent-at-rest": "the same with one parent, whose own events have arrived",
    "sigterm-exit-signals": "SIGTERM to 4 programs that track, with the client's own signal handlers if it has any",
    "ctrl-c": "SIGINT to a parent and its 4 forked children, all of which track",
}
PROGRAMS = 4
SIGNALS = 12
FAMILIES = 3  # several, because a kill right after a request loses nothing
TIMEOUT = 25.0


def inside(name: str) -> None:
    import family
    import tracker

    if name == "sigterm-exit-signals":
        tracker.track(50)
        tracker.notify()
        family.track_until_readable(family.STDIN)
    else:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process starts with SIGINT ignored
        family.run(parent_tracks=name != "kill-parent-at-rest", afterwards=100 if name.startswith("kill-parent") else 0)


def outside(run: ScenarioRun) -> None:
    if run.name == "sigterm-exit-signals":
        _sigterm(run)
        return
    for _ in range(FAMILIES if run.name == "kill-parent" else 1):
        _run_family(run)


def _run_family(run: ScenarioRun) -> None:
    program = run.start(run.name, timeout=TIMEOUT)
    program.receive()
    if run.name in ("kill-workers", "stop-workers"):
        for _ in range(SIGNALS):
            time.sleep(run.random.uniform(0.05, 0.3))
            _send_signal(run, program.pid, signal.SIGKILL if run.name == "kill-workers" else signal.SIGSTOP)
        program.close_stdin()
    else:
        if run.name == "kill-parent-at-rest":
            arrivals = run.api.arrivals
            run.api.wait_until(lambda: sum(who.startswith(f"{program.pid}-") for _, (who, _) in arrivals) >= 50)
        time.sleep(run.random.uniform(0.5, 1))
        if run.name == "ctrl-c":
            program.signal_group(signal.SIGINT)
        else:
            program.signal(signal.SIGKILL)
    run.finish(program, seconds=TIMEOUT)


def _send_signal(run: ScenarioRun, parent: int, number: int) -> None:
    import psutil

    worker = run.random.choice(sorted(child.pid for child in psutil.Process(parent).children()))
    with contextlib.suppress(ProcessLookupError):  # killed earlier, and just reaped by its parent
        os.kill(worker, number)
        if number == signal.SIGSTOP:
            time.sleep(run.random.uniform(0.01, 0.8))
            os.kill(worker, signal.SIGCONT)


def _sigterm(run: ScenarioRun) -> None:
    programs = [run.start(run.name, timeout=TIMEOUT, exit_signals=[signal.SIGTERM]) for _ in range(PROGRAMS)]
    for program in programs:
        program.receive()
    for program in programs:
        time.sleep(run.random.uniform(0.05, 0.5))
        program.signal(signal.SIGTERM)
    run.finish(*programs, seconds=TIMEOUT)
