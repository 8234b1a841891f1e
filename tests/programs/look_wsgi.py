"""A WSGI application whose workers call `look`."""

from __future__ import annotations

from typing import Any

from programs.look import look


def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    look()
    start_response("200 OK", [("Content-Length", "0")])
    return []
