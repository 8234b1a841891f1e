"""A WSGI application for gunicorn and uWSGI, whose client has a relay."""

from __future__ import annotations

import os
import sys
from typing import Any, Callable

from programs.relay_service import say, stay, track

track("import", int.from_bytes(os.urandom(6), "big"))  # a reload of uWSGI keeps the process id
say(f"executable {sys.executable}")


def application(environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
    track("request", int(environ["QUERY_STRING"]))
    if environ["PATH_INFO"] == "/stay":
        stay()
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
