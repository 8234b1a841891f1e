"""The application of every web server: it tracks when it is imported and in each request, and responds with its pid.

Runs in the client's interpreter; standard library only. Responsible for: a WSGI application, `app`, and two ASGI
applications, `asgi` and, with a lifespan, `closing`. Not responsible for: the server.
"""

from __future__ import annotations

import os
from typing import Any, Callable

import tracker

AT_IMPORT, PER_REQUEST = 5, 3  # events

tracker.track(AT_IMPORT)


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    tracker.track(PER_REQUEST)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % os.getpid()]


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        raise ValueError("lifespan is not supported")  # the way to say so in ASGI
    tracker.track(PER_REQUEST)
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
