"""``python -m letterapp inbox``: an ingestion server to look at.

Lives here: what it prints, and the trouble it makes when asked. Never here: the wire (`testing`).
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
from typing import Any

from .testing import Fault, IngestionServer, Request, reset, stall, status

# Every so manieth request meets a fault. Primes, so that faults seldom meet on one request.
_TROUBLE = {
    11: status(503, b'{"error":{"code":"unavailable","message":"try later"}}'),
    13: reset(),
    17: status(429, headers={"Retry-After": "0.2"}),
    19: stall(0.3),
    23: reset(stored=True),  # it was kept, and the client cannot know: it must send it again under the same id
}


def inbox(port: int, troubled: bool, quiet: bool) -> int:
    """Serve until Ctrl-C, or until stdin closes when ``quiet``."""
    try:
        api = IngestionServer(port, on_event=None if quiet else _print)
    except OSError as error:
        print(f"cannot listen on port {port}: {error}", file=sys.stderr)
        return 1
    if troubled:
        api.rule = _Trouble()
    with api:
        print(api.url if quiet else f"listening on {api.url}  (Ctrl-C ends it)", flush=True)
        try:
            if quiet:
                sys.stdin.read()
            else:
                threading.Event().wait()
        except KeyboardInterrupt:
            pass
    return 0


class _Trouble:
    def __init__(self) -> None:
        self._count = itertools.count(1)  # `next` on it is atomic

    def __call__(self, request: Request) -> Fault | None:
        number = next(self._count)
        return next((fault for every, fault in _TROUBLE.items() if number % every == 0), None)


def _print(item: dict[str, Any]) -> None:
    what = item.get("event") or item.get("accountId") or item.get("email") or ""
    more = item.get("properties") or item.get("traits") or {}
    print(
        f"{item['timestamp']}  {item['type']:8}  {item['userId']}  {what}  {json.dumps(more, ensure_ascii=False)}",
        flush=True,
    )
