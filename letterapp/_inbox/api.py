"""The page and the JSON API behind it, which scripts and end-to-end tests use too.

Responsible for: the paths, their parameters and results. Not responsible for: connections (`connections`), the
ingestion API (`ingestion`).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import pkgutil
import re
import sqlite3
import sys
import time
from contextlib import suppress
from typing import Any, Awaitable, Callable, Iterable, Mapping

from . import ingestion, person, query
from .changes import Changes
from .connections import Answer, Connection, Request, Response, Stream
from .ingestion import Ingestion
from .store import Store
from .wire import Refused, error_body

MAX_WAIT = 60.0  # seconds
MAX_STREAMS = 40
_TICK = 0.2  # seconds between two messages of a stream
_SHOWN = 200  # processes and names of events in the counts
_LIMIT = 100
_MAX_ANSWER = 20_000_000  # bytes of items

# The page's script and style are allowed by their hashes; scripts cannot create HTML from text at all.
_PAGE_POLICY = (
    "default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; frame-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types"
)
# The HTML of an email: no scripts, no forms, nothing from the network, and an origin of its own.
_MAIL_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'; sandbox"
)


class Api:
    """Responds to all requests: its own, and those that it passes to the ingestion API."""

    def __init__(self, store: Store, incoming: Ingestion, changes: Changes, url: str) -> None:
        self._store = store
        self._ingestion = incoming
        self._changes = changes
        self._url = url
        self._page = _page()
        self._streams: set[Connection] = set()
        self._stats: tuple[int, dict[str, Any]] = (-1, {})  # and the number of the change that they include
        self._routes: dict[tuple[str, str], Callable[[Request], Awaitable[Answer]]] = {
            ("GET", "/"): self._get_page,
            ("GET", "/api/events"): self._latest,
            ("DELETE", "/api/events"): self._clear,
            ("GET", "/api/list"): self._list,
            ("GET", "/api/count"): self._count,
            ("GET", "/api/stats"): self._get_stats,
            ("GET", "/api/requests"): self._requests,
            ("GET", "/api/people"): self._people,
            ("GET", "/api/person"): self._person,
            ("GET", "/api/faults"): self._get_faults,
            ("POST", "/api/faults"): self._set_fault,
            ("DELETE", "/api/faults"): self._clear_faults,
            ("GET", "/api/stream"): self._stream,
        }

    async def handle(self, request: Request) -> Answer:
        try:
            if request.path in ingestion.PATHS:
                return await self._ingestion.handle(request)
            return await self._route(request)
        except Refused as refused:
            return Response(refused.status, refused.body())
        except query.Gone:
            return Response(408)
        except sqlite3.Error as problem:
            return _cannot_store(problem)

    async def _route(self, request: Request) -> Answer:
        method = "GET" if request.method == "HEAD" else request.method
        found = self._routes.get((method, request.path))
        if found is not None:
            return await found(request)
        one = re.match(r"/api/(events|mails)/(\d{1,18})$", request.path)
        if one is not None and method == "GET":
            return self._mail(int(one[2])) if one[1] == "mails" else self._event(request, int(one[2]))
        allowed = sorted(method for method, path in self._routes if path == request.path)
        if allowed:
            raise Refused(405, "method_not_allowed", "method", f"use {' or '.join(allowed)} for {request.path}")
        raise _not_found(f"no such path: {request.path[:200]}; the ingestion API is {' and '.join(ingestion.PATHS)}")

    async def _get_page(self, request: Request) -> Answer:
        body, policy = self._page
        return Response(200, body, "text/html; charset=utf-8", (("Content-Security-Policy", policy),))

    # Events.

    async def _latest(self, request: Request) -> Answer:
        """The latest match, whole. ``wait``: the seconds to wait for one."""
        wanted = _filter(request, "wait")
        deadline = time.monotonic() + _number(request.query, "wait", 0.0, MAX_WAIT)
        while True:
            changes, searched = self._changes.number, self._store.last
            seq = await query.latest(self._store, wanted, request.is_gone)
            event = None if seq is None else query.whole(self._store, seq)
            if event is not None:
                return _json(event)
            if not request.query.get("again"):  # an event that is there already may still come again
                wanted = wanted._replace(after=max(wanted.after, searched))
            if not await self._change_before(deadline, changes, request):
                raise _not_found(self._no_match(request))

    async def _change_before(self, deadline: float, seen: int, request: Request) -> bool:
        while self._changes.number == seen:
            rest = deadline - time.monotonic()
            if rest <= 0 or request.is_gone():
                return False
            await self._changes.wait(min(rest, 1.0))
        return True

    def _no_match(self, request: Request) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in request.query.items() if name != "wait")
        tracked = ", ".join(f"{name!r} ({count})" for name, count in self._store.names.most_common(5))
        are = "is" if self._store.events == 1 else "are"
        here = f"{self._store.events} {are} here" + (f", tracked: {tracked}" if tracked else "")
        return f"no event matches {given or '(no filter)'}; {here}"

    async def _clear(self, request: Request) -> Answer:
        removed = self._store.clear()
        self._ingestion.rates.clear()
        self._changes.notify()
        return _json({"removed": removed})

    async def _list(self, request: Request) -> Answer:
        """Matches, the newest first, without their items, or with them if ``whole=1``: then perhaps fewer."""
        wanted = _filter(request, "offset", "limit", "whole")
        limit = int(_number(request.query, "limit", _LIMIT, query.MAX_LIMIT))
        offset = int(_number(request.query, "offset", 0, 10**12))
        upto = self._store.last if wanted.upto is None else wanted.upto
        rows = await query.page(self._store, wanted._replace(upto=upto), offset, limit, request.is_gone)
        if request.query.get("whole"):
            rows = self._whole(rows)
        return _json({"upto": upto, "events": rows})

    def _whole(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """``rows`` with their items: the first ones, if all together are too large for one response."""
        events: list[dict[str, Any]] = []
        size = 0
        for row in rows:
            size += row["size"]
            if events and size > _MAX_ANSWER:
                break
            event = query.whole(self._store, row["seq"])
            if event is not None:
                events.append(event)
        return events

    async def _count(self, request: Request) -> Answer:
        return _json({"count": await query.count(self._store, _filter(request), request.is_gone)})

    def _event(self, request: Request, seq: int) -> Answer:
        """One event, whole. ``text=1``: its item as formatted text as well, since a browser rounds large numbers."""
        _known(request, ["text"])
        event = query.whole(self._store, seq)
        if event is None:
            raise _not_found(f"event {seq} is not here, or not any more")
        if request.query.get("text"):
            event["text"] = json.dumps(event["item"], ensure_ascii=False, indent=2)
        return _json(event)

    def _mail(self, seq: int) -> Answer:
        """The HTML of an email, for a sandboxed frame."""
        event = query.whole(self._store, seq)
        if event is None or event["type"] != "send":
            raise _not_found(f"email {seq} is not here, or not any more")
        html = event["item"].get("html") or ""
        body = html.encode("utf-8", "replace")
        return Response(200, body, "text/html; charset=utf-8", (("Content-Security-Policy", _MAIL_POLICY),))

    async def _requests(self, request: Request) -> Answer:
        _known(request, ["before", "limit"])
        before = int(_number(request.query, "before", 0, 2**62))
        limit = int(_number(request.query, "limit", _LIMIT, query.MAX_LIMIT))
        return _json({"requests": query.recent_requests(self._store, before, limit)})

    # People.

    async def _people(self, request: Request) -> Answer:
        _known(request, ["start", "limit"])
        limit = int(_number(request.query, "limit", _LIMIT, query.MAX_LIMIT))
        return _json({"people": person.people(self._store, request.query.get("start", ""), limit)})

    async def _person(self, request: Request) -> Answer:
        _known(request, ["user"])
        return _json(await person.person(self._store, request.query.get("user", ""), request.is_gone))

    # Switches.

    async def _get_faults(self, request: Request) -> Answer:
        return _json(self._ingestion.faults.state())

    async def _set_fault(self, request: Request) -> Answer:
        try:
            given = json.loads(request.body or b"null")
            if not isinstance(given, dict) or set(given) - {"kind", "count", "seconds"}:
                raise ValueError('send {"kind": ..., "count": ..., "seconds": ...}')
            kind, count, seconds = given.get("kind"), given.get("count", 1), given.get("seconds")
            if not isinstance(count, int) or not isinstance(seconds, (int, float, type(None))):
                raise ValueError("count and seconds must be numbers")
            self._ingestion.faults.turn_on(str(kind), count, seconds)
        except (ValueError, RecursionError) as problem:
            raise Refused(400, "bad_request", "fault", str(problem))
        return self._faults_changed()

    async def _clear_faults(self, request: Request) -> Answer:
        self._ingestion.faults.turn_off()
        return self._faults_changed()

    def _faults_changed(self) -> Answer:
        self._changes.notify()
        return _json(self._ingestion.faults.state())

    # Counts, and the stream that tells of changes.

    async def _get_stats(self, request: Request) -> Answer:
        return _json(self._current_stats())

    def _current_stats(self) -> dict[str, Any]:
        """The counts, which all streams share."""
        if self._stats[0] == self._changes.number:
            return {**self._stats[1], "now": time.time()}
        store = self._store
        names = ("events", "last", "again", "evicted", "requests", "refused", "bytes", "max_events", "max_bytes")
        stats: dict[str, Any] = {name: getattr(store, name) for name in names}
        stats.update(
            url=self._url,
            kept=store.path,
            now=time.time(),
            types={kind: store.types.get(kind, 0) for kind in ("track", "identify", "group", "send")},
            processes=[
                {"pid": pid, "process": process, "count": count}
                for (pid, process), count in store.processes.most_common(_SHOWN)
            ],
            names=[{"name": name, "count": count} for name, count in store.names.most_common(_SHOWN)],
            rates=[[second, *counts] for second, counts in self._ingestion.rates.items()],
            faults=self._ingestion.faults.state(),
        )
        self._stats = (self._changes.number, stats)
        return stats

    async def _stream(self, request: Request) -> Answer:
        self._streams = {connection for connection in self._streams if not connection.is_gone()}
        if len(self._streams) >= MAX_STREAMS:
            raise Refused(503, "unavailable", "streams", f"{MAX_STREAMS} windows are open already")

        self._streams.add(request.connection)
        return Stream(lambda send: self._tell(request, send))

    async def _tell(self, request: Request, send: Callable[[bytes], Awaitable[None]]) -> None:
        await send(b"retry: 1000\n\n")
        quiet = 0
        while not request.is_gone():
            seen = self._changes.number
            await send(b"data: " + json.dumps(self._current_stats()).encode() + b"\n\n" if not quiet else b":\n\n")
            await asyncio.sleep(_TICK)  # what changes meanwhile is in the next message
            quiet = 0
            while self._changes.number == seen and quiet < 15 and not request.is_gone():
                quiet += not await self._changes.wait(1.0)
            quiet = quiet if self._changes.number == seen else 0


def _filter(request: Request, *others: str) -> query.Filter:
    _known(request, [*query.parameter_names(), *others])
    try:
        return query.parse_filter(request.query)
    except ValueError as problem:
        raise Refused(400, "bad_request", "parameter", str(problem))


def _known(request: Request, names: list[str]) -> None:
    """Refuse a parameter that does not exist: a filter with a wrong name would match everything."""
    for name in request.query:
        if name not in names:
            raise Refused(
                400, "bad_request", "parameter", f"unknown parameter {name[:50]!r}; known: {', '.join(names)}"
            )


def _number(parameters: Mapping[str, str], name: str, default: float, highest: float) -> float:
    text = parameters.get(name, "")
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= highest:
        raise Refused(400, "bad_request", "parameter", f"{name}: must be a number from 0 to {highest:g}")
    return value


def _json(value: Any) -> Response:
    return Response(200, json.dumps(value).encode())


def _cannot_store(problem: sqlite3.Error) -> Response:
    """The disk is full, or the file is damaged: the client keeps its events and tries again."""
    with suppress(OSError, ValueError):
        print(f"inbox: cannot use its file: {problem}", file=sys.stderr, flush=True)
    return Response(500, error_body("storage", "file", f"the inbox cannot use its file: {problem}"))


def _not_found(message: str) -> Refused:
    return Refused(404, "not_found", "not_found", message)


def _page() -> tuple[bytes, str]:
    """The page, and the policy that allows its script and its style only."""
    body = pkgutil.get_data(__package__, "page.html")
    assert body is not None
    policy = _PAGE_POLICY.format(script=_hashes(body, b"script"), style=_hashes(body, b"style"))
    return body, policy


def _hashes(body: bytes, tag: bytes) -> str:
    found: Iterable[bytes] = re.findall(b"<" + tag + b">(.*?)</" + tag + b">", body, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(each).digest()).decode()}'" for each in found)
