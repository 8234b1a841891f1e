"""Responses of a test's server, and which events arrived or were reported.

Responsible for: what several modules need of that. Not responsible for: what is right.
"""

from __future__ import annotations

from typing import Any, Callable

from letterapp import LetterError
from letterapp.testing import IngestionServer, status

PROPER = status(200, stored=True)
KEEP_ALIVE_200 = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


def then(data: bytes, stored: bool = True) -> Callable[[Any], None]:
    """Respond with these bytes, and leave the connection open."""

    def respond(handler: Any) -> None:
        if stored:
            handler.keep()
        handler.wfile.write(data)

    return respond


def serials(api: IngestionServer) -> list[int]:
    return [item["properties"]["serial"] for item in api.events]


def lost(errors: list[LetterError]) -> list[int]:
    return [event["properties"]["serial"] for error in errors for event in error.events]
