"""All processes at once: nothing in memory outlives that. What a next start of the program finds on disk.

For this client with `spool=`; the others have nothing of the kind, and show what it is worth.
"""

from __future__ import annotations

import signal
import time
from typing import Any

TITLES = {
    "spool-kill-all": "SIGKILL to a parent and its 4 children at once, 5 times, then a start; spool= where it exists",
    "spool-outage": "3 programs end while the API is down, then a start; spool= where it exists",
}
FAMILIES = 5
PROGRAMS = 3
PATIENCE = 25.0


def inside(name: str) -> None:
    import desk
    import family

    if name == "family":
        family.run(parent_tracks=True)
    else:
        desk.track(200)


def outside(stage: Any) -> None:
    options = {"spool": str(stage.folder / "spool"), "exit_timeout": 1.0}
    if stage.name == "spool-kill-all":
        for _ in range(FAMILIES):
            family = stage.play("family", patience=PATIENCE, **options)
            family.hear()
            time.sleep(stage.random.uniform(0.05, 1))
            family.signal_group(signal.SIGKILL)
            stage.finish(family)
    else:
        stage.api.down()
        stage.finish(*[stage.play("program", patience=PATIENCE, **options) for _ in range(PROGRAMS)])
        stage.api.up()
    stage.finish(stage.play("program", patience=PATIENCE, **{**options, "exit_timeout": 20.0}))
