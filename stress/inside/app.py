"""The application of every web server: it tracks while it is imported, and in each request; it answers who it is.

Runs in the client's interpreter; standard library only. Lives here: WSGI as `app`; ASGI as `asgi`, and with a
lifespan as `closing`. Never here: what a server is.
"""

from __future__ import annotations

import os
from typing import Any, Callable

import tracker

AT_IMPORT, A_REQUEST = 5, 3  # events

tracker.track(AT_IMPORT)


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    tracker.track(A_REQUEST)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % os.getpid()]


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        raise ValueError("no lifespan here")  # how an ASGI application says so
    tracker.track(A_REQUEST)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d" % os.getpid()})


async def closing(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] != "lifespan":
        await asgi(scope, receive, send)
        return
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    tracker.close()
    await send({"type": "lifespan.shutdown.complete"})
