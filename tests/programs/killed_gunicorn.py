"""An application for gunicorn that sends nothing before a worker, or the master, ends. gunicorn imports it."""

from __future__ import annotations

import os
from typing import Any, Callable

from letterapp import Letter

letter = Letter("k", os.environ["TEST_API"], flush_interval=3600, flush_at=10_000, exit_timeout=25)


def app(environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
    letter.track("request", "Worked", {"serial": int(environ["QUERY_STRING"]), "pid": os.getpid()})
    body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
