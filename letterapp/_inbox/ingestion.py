"""The ingestion API: ``/v1/batch`` and ``/v1/send``.

Responsible for: the order of a request's steps (the sender's process, faults, checks, storing, the response), and which
attempt a request is. Not responsible for: each of these (`peers`, `faults`, `wire`, `store`).
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections import Counter, OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Dict

from . import wire
from .changes import Changes
from .connections import Answer, Request, Reset, Response
from .faults import Fault, Faults
from .peers import Peer, Peers
from .store import Entry, Received, Store, iso_time, json_text, recent_rates

PATHS = ("/v1/batch", "/v1/send")
RATE_SECONDS = 300  # that the plot shows
_MAX_ATTEMPTS = 50_000  # messageIds whose number of attempts is remembered
_PEER_TIMEOUT = 1.0  # seconds to look for the process
_SECRET = ("authorization", "proxy-authorization", "cookie", "x-api-key")

OnEvent = Callable[[Dict[str, Any]], None]


class Ingestion:
    """Receives events.

    Attributes:
        faults: The switches.
        rates: For each of the last seconds how many events were new, came again, and were refused.
        repeated: The latest ids of events that came again, for those who show them.
    """

    def __init__(self, store: Store, faults: Faults, changes: Changes, port: int, on_event: OnEvent | None) -> None:
        self.store = store
        self.faults = faults
        self.rates: dict[int, list[int]] = {second: [count, 0, 0] for second, count in _rates(store).items()}
        self._changes = changes
        self._port = port
        self._on_event = on_event
        self._attempts: OrderedDict[str, int] = OrderedDict()
        self._peers = Peers()
        self._finder = ThreadPoolExecutor(1, "letterapp-inbox-peers")  # which reads hundreds of files

    def close(self) -> None:
        self._finder.shutdown(wait=False)

    async def handle(self, request: Request) -> Answer:
        """Respond to a request whose path is one of `PATHS`."""
        peer = await self._peer(request)
        fault = self.faults.take()
        if fault.delay:
            await asyncio.sleep(fault.delay)
        entries, attempt, problem = self._checked(request)
        note = ""
        status = 200
        body = b'{"ok":true}'
        if fault.status:
            status, note = fault.status, "switched on here"
            body = wire.error_body(
                "unavailable" if status == 503 else str(status), "switch", "switched on in the inbox"
            )
        elif fault.reset:
            status, note = 0, "reset, events stored" if fault.stored and not problem else "reset"
        elif problem is not None:
            status, note, body = problem.status, problem.message, problem.body()
        stored = problem is None and (status == 200 or (fault.reset and fault.stored))
        replayed = stored and request.path == "/v1/send" and self.store.has_id(entries[0].id)
        self._store(request, peer, status, note, attempt, entries, stored)
        if fault.reset:
            return Reset()
        if status == 200 and request.path == "/v1/send":
            body = _mail_answer(entries[0], replayed)
        return Response(status, body, headers=_retry_after(fault) if status == 429 else ())

    def _checked(self, request: Request) -> tuple[list[Entry], int, wire.Refused | None]:
        """The entries of a request, which attempt to send them it is, and what is wrong with it."""
        entries: list[Entry] = []
        try:
            if request.method != "POST":
                raise wire.Refused(405, "method_not_allowed", "method", f"use POST for {request.path}")
            wire.check_key(request.headers.get("authorization", ""))
            body = wire.decoded(request.body, request.headers.get("content-encoding", "").lower())
            entries = _entries(request.path, body)
        except wire.Refused as problem:
            return entries, 1, problem
        return entries, max(map(self._attempt, entries)), None

    def _attempt(self, entry: Entry) -> int:
        attempt = self._attempts.pop(entry.id, 0) + 1
        self._attempts[entry.id] = attempt
        if len(self._attempts) > _MAX_ATTEMPTS:
            self._attempts.popitem(last=False)
        return attempt

    def _store(
        self, request: Request, peer: Peer, status: int, note: str, attempt: int, entries: list[Entry], stored: bool
    ) -> None:
        headers = {name: value for name, value in request.headers.items() if name not in _SECRET}
        received = Received(
            time.time(), request.path[:200], status, note[:500], attempt, len(entries), len(request.body), peer.pid,
            peer.name, headers,
        )  # fmt: skip
        repeated = self.store.add(received, entries if stored else ())
        rate = self.rates.setdefault(int(received.at), [0, 0, 0])
        if stored:
            rate[0] += len(entries) - len(repeated)
            rate[1] += len(repeated)
        else:
            rate[2] += len(entries) or 1
        while len(self.rates) > RATE_SECONDS:
            del self.rates[next(iter(self.rates))]
        self._changes.notify()
        if stored and self._on_event is not None:
            again = set(repeated)
            for entry in entries:
                self._on_event(_told(entry, received, entry.id in again))

    async def _peer(self, request: Request) -> Peer:
        """The process that has sent ``request``, which waits for the response. Looked for once a connection."""
        known = request.connection.notes.get("peer")
        if isinstance(known, Peer):
            return known
        loop = asyncio.get_running_loop()
        try:
            search = loop.run_in_executor(self._finder, self._peers.find, request.connection.port, self._port)
            found = await asyncio.wait_for(search, _PEER_TIMEOUT)
        except asyncio.TimeoutError:
            found = Peer()
        request.connection.notes["peer"] = found
        return found


def _told(entry: Entry, received: Received, again: bool) -> dict[str, Any]:
    """What `on_event` gets."""
    return {
        "received": iso_time(received.at),
        "type": entry.type,
        "user": entry.user,
        "name": entry.name,
        "pid": received.pid,
        "process": received.process,
        "again": again,
        "attempt": received.attempt,
        "item": entry.body,
    }


def _entries(path: str, body: bytes) -> list[Entry]:
    if path == "/v1/send":
        mail = wire.mail(body)
        identity = f"send:{mail.key}" if mail.key else f"send-{uuid.uuid4()}"
        return [Entry("send", mail.to, mail.fields["subject"], identity, mail.fields, _text(mail.fields))]
    return [_entry(item) for item in wire.batch(body)]


def _entry(item: dict[str, Any]) -> Entry:
    kind = item["type"]
    name = {"track": "event", "group": "accountId", "identify": "email"}[kind]
    return Entry(kind, item["userId"], item.get(name) or "", item["messageId"], item, _text(item))


def _text(body: dict[str, Any]) -> str:
    try:
        return json_text(body)
    except (RecursionError, ValueError):  # encoding takes more levels than decoding
        raise wire.Refused(400, "bad_request", "not_json", "the body is nested too deeply")


def _mail_answer(entry: Entry, replayed: bool) -> bytes:
    # The same for each delivery of one idempotency key.
    identity = uuid.uuid5(uuid.NAMESPACE_URL, entry.id)
    answer = {"id": str(identity), "messageId": f"<{identity}@inbox.invalid>", "status": "sent", "replayed": replayed}
    return json.dumps(answer).encode()


def _retry_after(fault: Fault) -> tuple[tuple[str, str], ...]:
    return () if fault.retry_after is None else (("Retry-After", f"{fault.retry_after:g}"),)


def _rates(store: Store) -> Counter[int]:
    return recent_rates(store, RATE_SECONDS)
