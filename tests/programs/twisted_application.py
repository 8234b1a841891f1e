"""An application for `twistd -y`, which tracks an event a hundred times a second."""

from __future__ import annotations

import os
from itertools import count

from twisted.application import service
from twisted.internet import task

from programs.common import make

letter = make(flush_interval=10)
serials = count()


def track() -> None:
    serial = next(serials)
    letter.track("twisted", "Worked", {"serial": serial})
    os.write(1, f"{serial}\n".encode())


task.LoopingCall(track).start(0.01)
application = service.Application("letters")  # type: ignore[no-untyped-call]
