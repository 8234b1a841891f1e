"""``python -m letterapp inbox``: a local ingestion API, and a page that shows what arrives.

Responsible for: its start, and what it prints. Not responsible for: the server and the page (`_inbox`).
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from typing import Any, NamedTuple

_MAX_WAITING = 10_000  # events that wait for a reader of stdout
_END = None


class Options(NamedTuple):
    """The arguments of the command."""

    port: int = 8025
    keep: str | None = None
    max_events: int = 100_000
    max_bytes: int = 256_000_000
    as_json: bool = False
    troubled: bool = False
    quiet: bool = False


def inbox(options: Options) -> int:
    """Serve until Ctrl-C or, if `quiet`, until stdin closes. Returns 1 if it cannot start."""
    try:
        from .._inbox import connections, program, store
    except ImportError as problem:  # a Python without sqlite3, which some have
        return _fail(f"this Python cannot run it: {problem}")
    try:
        sock = connections.listen(options.port)
    except OSError as problem:
        return _fail(f"cannot listen on port {options.port}: {problem.strerror}; choose another with --port")
    try:
        kept = store.Store(options.keep, options.max_events, options.max_bytes)
    except store.Unusable as problem:
        sock.close()
        return _fail(f"cannot use {options.keep}: {problem}")
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    printer = _Printer()
    on_event = None if options.quiet else printer.as_json if options.as_json else printer.event
    if options.quiet:
        printer.line(url)
    else:
        # With --json stdout has nothing but events.
        start = f"listening on {url}  (open it in a browser; Ctrl-C to stop)"
        use = f"LETTER_BASE_URL={url} LETTER_API_KEY=lt_test_local is all that an application needs"
        for text in (start, use):
            _complain(text) if options.as_json else printer.line(text)
    stop_when = sys.stdin.read if options.quiet else None
    program.serve(program.Settings(sock, kept, options.troubled, on_event, stop_when))
    printer.close()
    return 0


def _fail(text: str) -> int:
    print(f"inbox: {text}", file=sys.stderr)
    return 1


class _Printer:
    """Prints events, one per line. Never raises, and never blocks: a thread writes what waits.

    If the reader of stdout stops reading, for instance a terminal after Ctrl-S, up to `_MAX_WAITING` events wait. Later
    ones are not printed, but are in the inbox.
    """

    def __init__(self) -> None:
        self._waiting: queue.Queue[str | None] = queue.Queue(_MAX_WAITING)
        self._left_out = 0
        self._writer = threading.Thread(target=self._write, daemon=True)
        self._writer.start()

    def event(self, event: dict[str, Any]) -> None:
        item = event["item"]
        if event["type"] == "send":
            more = json.dumps({"subject": item["subject"]}, ensure_ascii=False)
        else:
            more = json.dumps(item.get("properties") or item.get("traits") or {}, ensure_ascii=False)
            named = {"group": "name", "identify": "timezone"}.get(event["type"], "")  # `event["name"]` is another one
            if item.get(named):
                more = f"{named}={json.dumps(item[named], ensure_ascii=False)}  {more}"
        moment = item.get("timestamp") or event["received"]
        again = "  (again)" if event["again"] else ""
        name = "" if event["type"] == "send" else event["name"]
        self.line(f"{moment}  {event['type']:8}  {event['user']}  {name}  {more}{again}")

    def as_json(self, event: dict[str, Any]) -> None:
        self._put(json.dumps(event))

    def line(self, text: str) -> None:
        self._put(_escaped(text))

    def close(self, timeout: float = 1.0) -> None:
        """Wait until all lines are written, for at most ``timeout`` seconds."""
        try:
            self._waiting.put(_END, timeout=timeout)
            self._writer.join(timeout)
        except queue.Full:
            pass
        if self._left_out:
            _complain(f"{self._left_out:,} events were not printed, since nobody read them")

    def _put(self, text: str) -> None:
        try:
            self._waiting.put_nowait(text)
        except queue.Full:
            self._left_out += 1

    def _write(self) -> None:
        while True:
            text = self._waiting.get()
            if text is _END:
                return
            try:
                if sys.stdout is not None:  # it was closed when Python started
                    # Not by `print`: Python would wait for the file's lock at the end.
                    _write_all(sys.stdout.fileno(), (text + "\n").encode(_encoding(), "backslashreplace"))
            except (OSError, ValueError) as problem:  # the reader has gone, or the disk is full
                _complain(f"events can no longer be printed, but are still kept: {problem}")
                break
        while self._waiting.get() is not _END:
            pass


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


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
