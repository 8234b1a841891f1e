"""All processes end at once, which no queue in memory survives: what the next start of the program finds on disk.

For this client with `spool=`; the others have nothing comparable, and show what would be lost.
"""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..scenario_run import ScenarioRun

TITLES = {
    "spool-kill-all": "SIGKILL to a parent and its 4 children at once, 5 times, then a restart; spool= where it exists",
    "spool-outage": "3 programs end while the API is down, then a restart; spool= where it exists",
}
FAMILIES = 5
PROGRAMS = 3
TIMEOUT = 25.0


def inside(name: str) -> None:
    import family
    import tracker

    if name == "family":
        family.run(parent_tracks=True)
    else:
        tracker.track(200)


def outside(run: ScenarioRun) -> None:
    options: dict[str, Any] = {"spool": str(run.folder / "spool"), "exit_timeout": 1.0}
    if run.name == "spool-kill-all":
        for _ in range(FAMILIES):
            family = run.start("family", timeout=TIMEOUT, **options)
            family.receive()
            time.sleep(run.random.uniform(0.05, 1))
            family.signal_group(signal.SIGKILL)
            run.finish(family)
    else:
        run.api.down()
        run.finish(*[run.start("program", timeout=TIMEOUT, **options) for _ in range(PROGRAMS)])
        run.api.up()
    run.finish(run.start("program", timeout=TIMEOUT, **{**options, "exit_timeout": 20.0}))
