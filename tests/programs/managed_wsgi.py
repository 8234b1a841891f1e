"""A WSGI application for gunicorn, whose clients use a manager."""

from __future__ import annotations

from typing import Any, Callable

from programs.managed_service import track


def application(environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
    track("request", int(environ["QUERY_STRING"]))
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
