"""An application for gunicorn's gevent and eventlet workers, whose client is used before they patch."""

from __future__ import annotations

from typing import Any

from programs.common import work
from programs.greenlets import begin

letter = begin()
work(letter, 5, "before the patch")  # in the master, if it is preloaded: its sender runs when the worker is forked
letter.flush(0)


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    if environ["PATH_INFO"] == "/flush":
        letter.flush(30)
    else:
        work(letter, 1, "request", start=int(environ["QUERY_STRING"]))
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
