"""``socketserver.ForkingMixIn``: a child for each request, which ends with ``os._exit``. The parent never tracks."""

from __future__ import annotations

import os
import signal
import socketserver
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..scenario_run import ScenarioRun

TITLES = {
    "forking-mixin": "an HTTP server that forks for each of 300 requests; SIGTERM to the busy server",
    "forking-mixin-shutdown": "the same; after SIGTERM it waits for its children with shutdown() and server_close()",
}
REQUESTS = 300
PER_REQUEST = 3  # events
TIMEOUT = 30.0


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        import tracker

        tracker.track(PER_REQUEST)
        body = b"%d" % os.getpid()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def inside(name: str, port: str) -> None:
    class Server(socketserver.ForkingMixIn, HTTPServer):  # here, because not every system has ForkingMixIn
        max_children = 8

    server = Server(("127.0.0.1", int(port)), Handler)
    if name == "forking-mixin-shutdown":
        # In a thread, because it waits for the end of the loop that the signal has interrupted.
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    with server:
        server.serve_forever(poll_interval=0.05)


def outside(run: ScenarioRun) -> None:
    from ..http_load import LoadGenerator
    from ..ports import free_port

    port = free_port()
    server = run.start(run.name, port, timeout=2 * TIMEOUT)
    load = LoadGenerator(server, port)
    load.send_requests(2 * REQUESTS, halfway=lambda: server.signal(signal.SIGTERM))
    run.finish(server, seconds=TIMEOUT)
