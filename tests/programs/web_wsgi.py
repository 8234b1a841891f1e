"""The WSGI application."""

from __future__ import annotations

import os
import socket
from typing import Any

from programs.web_clients import gate, note


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    serial = int(environ["QUERY_STRING"])
    note("request", serial)
    if environ["PATH_INFO"] == "/gate":
        with socket.create_connection(gate()) as waiting:
            waiting.recv(1)
        note("after the gate", serial)
    body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
