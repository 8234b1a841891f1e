"""An ASGI application for uvicorn, whose client has a relay and is not closed by a lifespan."""

from __future__ import annotations

from typing import Any, Awaitable, Callable

from programs.relay_service import track


async def application(
    scope: dict[str, Any], receive: Callable[[], Awaitable[object]], send: Callable[[dict[str, Any]], Awaitable[object]]
) -> None:
    if scope["type"] == "http":
        track("request", int(scope["query_string"]))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})
