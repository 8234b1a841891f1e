"""Twisted's web server, whose reactor has signal handlers of its own, and then ends by the signal's default action."""

from __future__ import annotations

import signal
from typing import Any

TITLES = {
    "twisted": "twistd web with a resource, SIGTERM to it at work after 300 requests",
    "twisted-ctrl-c": "the same; Ctrl-C",
}
REQUESTS = 300
PATIENCE = 30.0
RUN = "from twisted.scripts.twistd import run; run()"


def outside(stage: Any) -> None:
    from ..ports import free_port
    from ..visits import Visitors

    port = free_port()
    twistd = ("-c", RUN, "--nodaemon", "--pidfile=", "--logfile", stage.folder / "log")
    web = ("web", "--listen", f"tcp:{port}:interface=127.0.0.1", "--class", "twisted_site.Site")
    server = stage.serve(*twistd, *web, patience=2 * PATIENCE)
    visitors = Visitors(server, port)
    visitors.meet(1)
    number = signal.SIGINT if stage.name == "twisted-ctrl-c" else signal.SIGTERM
    visitors.ask(2 * REQUESTS, halfway=lambda: server.signal_group(number))
    stage.finish(server, seconds=PATIENCE)
