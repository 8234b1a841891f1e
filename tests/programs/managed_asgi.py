"""An ASGI application for gunicorn, whose clients use a manager. Its lifespan closes them, unless they have
``exit_signals``.
"""

from __future__ import annotations

from typing import Any, Callable

from programs.managed_service import letters, options, track


async def application(scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if "exit_signals" not in options:
            for letter in letters.values():
                await letter.aclose()
        await send({"type": "lifespan.shutdown.complete"})
        return
    track("request", int(scope["query_string"]))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})
