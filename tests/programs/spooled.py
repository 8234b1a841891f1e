"""Programs that leave events in a spool."""

from __future__ import annotations

import os

from programs.common import main, make, work


def aborted(spool: str) -> None:
    letter = make(spool=spool, flush_interval=1000)
    work(letter, 5, "left")
    os.abort()


main(globals())
