"""The wall clock is changed while a program tracks and its client waits for a retry. No wait may depend on it."""

from __future__ import annotations

import glob
import os
import select
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..scenario_run import ScenarioRun

TITLES = {"clock-jumps": "the clock jumps 1 h forward and 2 h back between retries; SIGKILL 7 s after the last call"}
LIBRARIES = ("/usr/lib*/faketime/libfaketimeMT.so.1", "/usr/lib*/*/faketime/libfaketimeMT.so.1")
JUMPS = ("+1h", "-1h")
PAUSE = 0.4  # seconds between two jumps, so that each happens during a wait for a retry
LATE = 7.0  # seconds after the last call, longer than any client delays a batch; events that are sent later are lost


def inside() -> None:
    import tracker

    # With libfaketime 0.9.10 `time.sleep` of Python 3.11 and later raises "invalid argument". It does not affect other
    # waits, those of locks and sockets.
    time.sleep = lambda seconds: select.select([], [], [], float(seconds)) and None
    tracker.track_until_resumed()
    tracker.pause(over=True)


def outside(run: ScenarioRun) -> None:
    from letterapp.testing import status

    clock = run.folder / "clock"
    _set(clock, "+0")
    program = run.start(env=_fake(clock))
    run.api.wait_for(50, 5)
    run.api.rule = lambda request: status(503)
    for jump in JUMPS:
        time.sleep(PAUSE)
        _set(clock, jump)
    run.api.rule = None
    time.sleep(PAUSE)
    program.resume()
    program.receive()
    run.api.wait_until(lambda: len({key for _, key in run.api.arrivals}) >= run.calls, LATE)
    program.signal(signal.SIGKILL)
    run.finish(program)
    for left in ("faketime_shm_", "sem.faketime_sem_"):  # which libfaketime removes at a normal exit only
        Path(f"/dev/shm/{left}{program.pid}").unlink(missing_ok=True)


def _set(clock: Path, offset: str) -> None:
    new = clock.with_name("new")
    new.write_text(offset)
    os.replace(new, clock)  # atomic: libfaketime must not read half a file


def _fake(clock: Path) -> dict[str, str]:
    """The environment of a program whose wall clock, but not its monotonic clock, follows the file ``clock``."""
    from ..scenario_run import Skipped

    found = [each for pattern in LIBRARIES for each in glob.glob(pattern)]
    if not found:
        raise Skipped("needs libfaketime: apt install libfaketime")
    return {
        "LD_PRELOAD": found[0],
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",  # the same, for versions before 0.9.9
        "FAKETIME_FORCE_MONOTONIC_FIX": "0",  # it makes Python's threads wait 20 times as long for each other
    }
