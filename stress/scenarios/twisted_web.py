"""Twisted's web server, whose reactor installs its own signal handlers, and ends with the signal's default action."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..scenario_run import ScenarioRun

TITLES = {
    "twisted": "twistd web with a resource, SIGTERM to the busy server after 300 requests",
    "twisted-ctrl-c": "the same; Ctrl-C",
}
REQUESTS = 300
TIMEOUT = 30.0
RUN = "from twisted.scripts.twistd import run; run()"


def outside(run: ScenarioRun) -> None:
    from ..http_load import LoadGenerator
    from ..ports import free_port

    port = free_port()
    twistd = ("-c", RUN, "--nodaemon", "--pidfile=", "--logfile", run.folder / "log")
    web = ("web", "--listen", f"tcp:{port}:interface=127.0.0.1", "--class", "twisted_site.Site")
    server = run.start_server(*twistd, *web, timeout=2 * TIMEOUT)
    load = LoadGenerator(server, port)
    load.wait_for_workers(1)
    number = signal.SIGINT if run.name == "twisted-ctrl-c" else signal.SIGTERM
    load.send_requests(2 * REQUESTS, halfway=lambda: server.signal_group(number))
    run.finish(server, seconds=TIMEOUT)
