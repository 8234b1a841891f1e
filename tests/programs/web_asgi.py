"""The ASGI application."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from programs.web_clients import ends, gate, late, note, prompt, ready


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        ready()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if ends == "lifespan":
            await late.aclose()
            await prompt.aclose()
        await send({"type": "lifespan.shutdown.complete"})
        return
    serial = int(scope["query_string"])
    note("request", serial)
    if scope["path"] == "/gate":
        reader, writer = await asyncio.open_connection(*gate())
        await reader.read(1)
        writer.close()
        note("after the gate", serial)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(os.getpid()).encode()})
