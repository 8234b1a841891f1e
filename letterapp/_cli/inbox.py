"""``python -m letterapp inbox``: an ingestion server that prints events.

Responsible for: what it prints, and the faults of ``--troubled``. Not responsible for: the API's protocol (`testing`).
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
from typing import Any

from ..testing import Fault, IngestionServer, Request, reset, stall, status

# Every Nth request gets a fault. The numbers are primes, so that two faults seldom coincide.
_TROUBLE = {
    11: status(503, b'{"error":{"code":"unavailable","message":"try later"}}'),
    13: reset(),
    17: status(429, headers={"Retry-After": "0.2"}),
    19: stall(0.3),
    23: reset(stored=True),  # stored, which the client cannot know: it has to send the request again
}


def inbox(port: int, troubled: bool, quiet: bool) -> int:
    """Serve until Ctrl-C or, if ``quiet``, until stdin closes."""
    show = _Printer()
    try:
        api = IngestionServer(port, on_event=None if quiet else show)
    except OSError as error:
        print(f"cannot listen on port {port}: {error}", file=sys.stderr)
        return 1
    if troubled:
        api.rule = _Trouble()
    with api:
        show.line(api.url if quiet else f"listening on {api.url}  (Ctrl-C to stop)")
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


class _Printer:
    """Prints events, one per line. Never raises, whatever an event contains and even if stdout is closed."""

    def __init__(self) -> None:
        self._is_broken = False

    def __call__(self, item: dict[str, Any]) -> None:
        what = item.get("event") or item.get("accountId") or item.get("email") or ""
        more = json.dumps(item.get("properties") or item.get("traits") or {}, ensure_ascii=False)
        self.line(f"{item['timestamp']}  {item['type']:8}  {item['userId']}  {what}  {more}")

    def line(self, text: str) -> None:
        """Print ``text``; the first failure is reported on stderr."""
        try:
            print(_escaped(text).encode(_encoding(), "backslashreplace").decode(_encoding()), flush=True)
        except (OSError, ValueError) as problem:  # the reader has gone, the disk is full, or stdout was closed
            if not self._is_broken:
                self._is_broken = True
                _complain(f"events can no longer be printed, but are still kept: {problem}")


def _encoding() -> str:
    return getattr(sys.stdout, "encoding", None) or "utf-8"


def _escaped(text: str) -> str:
    """``text`` on one line, with control characters and changes of direction escaped as in JSON."""
    return "".join(sign if sign.isprintable() else json.dumps(sign)[1:-1] for sign in text)


def _complain(text: str) -> None:
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass
