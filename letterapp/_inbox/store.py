"""What the inbox has received, in SQLite: in memory, or in a file that survives a kill.

Responsible for: the tables, deduplication, the bounds, the counts. Not responsible for: searching (`query`), what a
request has to look like (`wire`). Used on one thread; each call takes milliseconds.

An event is stored once for each messageId. Later deliveries are counted and remembered with their requests. When a
bound is reached, the oldest events go and are counted. Of requests, accepted or not, the latest ones are kept.

A file is in WAL mode with `synchronous=NORMAL`: a transaction that was committed survives the end of the process, also
by SIGKILL. A power loss may take the last ones. The file is locked while it is open, so that there is one writer.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections import Counter
from datetime import datetime, timezone
from typing import Any, Iterable, NamedTuple, TypeVar

MAX_REQUESTS = 20_000
MAX_HEADERS = 4_096  # bytes of one request's headers as JSON
_OVERHEAD = 200  # bytes of an event in tables and indexes, beyond its texts; approximately
_SPARE = 100  # events go in groups: each removal costs a search for the oldest ones
_APPLICATION = 0x6C747269  # "ltri", which marks a file as an inbox's
_VERSION = 1

_SCHEMA = """
CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, type TEXT NOT NULL, user TEXT NOT NULL, name TEXT NOT NULL,
    id TEXT NOT NULL UNIQUE, pid INTEGER, process TEXT NOT NULL, deliveries INTEGER NOT NULL DEFAULT 1,
    request INTEGER NOT NULL, size INTEGER NOT NULL, body TEXT NOT NULL
);
CREATE INDEX events_by_user ON events (user, type);
CREATE INDEX events_by_name ON events (name);
CREATE TABLE requests (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, path TEXT NOT NULL, status INTEGER NOT NULL,
    note TEXT NOT NULL, attempt INTEGER NOT NULL, items INTEGER NOT NULL, bytes INTEGER NOT NULL, pid INTEGER,
    process TEXT NOT NULL, headers TEXT NOT NULL
);
CREATE TABLE deliveries (id TEXT NOT NULL, request INTEGER NOT NULL, PRIMARY KEY (id, request)) WITHOUT ROWID;
CREATE TABLE counts (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""


Key = TypeVar("Key")


class Unusable(Exception):
    """The file cannot be used; the text says why."""


class Received(NamedTuple):
    """A request to the API, and what became of it."""

    at: float  # seconds since 1970
    path: str
    status: int  # of the response; 0 if there was none
    note: str  # why, if it is not 200
    attempt: int  # 1, or more if the same events have been sent before
    items: int
    size: int  # bytes of its body
    pid: int | None
    process: str
    headers: dict[str, str]  # without secrets


class Entry(NamedTuple):
    """An item of a batch, or an email, as it is stored."""

    type: str
    user: str
    name: str  # the event, account or address of a track, group or identify; the subject of an email
    id: str
    body: dict[str, Any]
    text: str  # `json_text` of the body


class Store:
    """All that was received.

    Attributes:
        db: The connection, for `query` and `person`, which only read.
        events: The number of events that are stored.
        again: Deliveries of events that were there already, since the last `clear`.
        evicted: Events that went because of a bound, since the last `clear`.
        last: The number of the latest event. Numbers increase and are never reused.
    """

    def __init__(self, path: str | None, max_events: int, max_bytes: int) -> None:
        self.max_events = max_events
        self.max_bytes = max_bytes
        self.path = path
        self.db = _opened(path)
        self.events: int
        self.bytes: int  # approximately
        self.last: int
        self.types: Counter[str] = Counter()
        self.processes: Counter[tuple[int | None, str]] = Counter()
        self.names: Counter[str] = Counter()  # of tracked events
        self._load()
        with self.db:  # the file may come from an inbox with other bounds
            self._evict()
            self._save_counts()

    def _load(self) -> None:
        kept = dict(self.db.execute("SELECT name, value FROM counts"))
        self.again: int = kept.get("again", 0)
        self.evicted: int = kept.get("evicted", 0)
        self.requests: int = kept.get("requests", 0)
        self.refused: int = kept.get("refused", 0)
        self.events, self.bytes, self.last = self.db.execute(
            "SELECT count(*), coalesce(sum(size), 0), (SELECT coalesce(max(seq), 0) FROM sqlite_sequence"
            " WHERE name = 'events') FROM events"
        ).fetchone()
        for counter in (self.types, self.processes, self.names):
            counter.clear()
        rows = self.db.execute("SELECT type, name, pid, process, count(*) FROM events GROUP BY 1, 2, 3, 4")
        for kind, name, pid, process, count in rows:
            self._count(count, kind, name, pid, process)

    def add(self, received: Received, entries: Iterable[Entry] = ()) -> list[str]:
        """Store a request and its entries in one transaction; return the ids of those that were there already."""
        repeated = []
        try:
            with self.db:
                request = self._add_request(received)
                for entry in entries:
                    if not self._add_event(received, request, entry):
                        repeated.append(entry.id)
                self.again += len(repeated)
                self._evict()
                self._save_counts()
        except sqlite3.Error:
            self._load()  # the counts too are as they were before
            raise
        return repeated

    def has_id(self, identity: str) -> bool:
        """True if an event or email with this id is stored."""
        found = self.db.execute("SELECT 1 FROM events WHERE id = ?", (storable(identity),)).fetchone()
        return found is not None

    def clear(self) -> int:
        """Remove all events and requests, and set the counts to 0. Returns the number of events removed."""
        removed = self.events
        with self.db:
            for table in ("events", "requests", "deliveries", "counts"):
                self.db.execute(f"DELETE FROM {table}")
        self._load()
        if self.path is not None:
            self.db.execute("VACUUM")
            self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return removed

    def close(self) -> None:
        self.db.close()

    def _add_request(self, received: Received) -> int:
        headers = json.dumps(received.headers)
        if len(headers) > MAX_HEADERS:
            headers = json.dumps({"(left out)": f"{len(headers):,} bytes of headers"})
        cursor = self.db.execute(
            "INSERT INTO requests (at, path, status, note, attempt, items, bytes, pid, process, headers)"
            " VALUES (?,?,?,?,?,?,?,?,?,?)",
            (
                received.at,
                storable(received.path),
                received.status,
                storable(received.note),
                received.attempt,
                received.items,
                received.size,
                received.pid,
                storable(received.process),
                headers,
            ),
        )
        request = cursor.lastrowid or 0
        self.requests += 1
        self.refused += received.status != 200
        if request % 100 == 0:
            self.db.execute("DELETE FROM requests WHERE id <= ?", (request - MAX_REQUESTS,))
            self.db.execute("DELETE FROM deliveries WHERE request <= ?", (request - MAX_REQUESTS,))
        return request

    def _add_event(self, received: Received, request: int, entry: Entry) -> bool:
        identity = storable(entry.id)
        body = entry.text
        user, name, process = storable(entry.user), storable(entry.name), storable(received.process)
        size = _OVERHEAD + sum(map(len, (body, user, name, process, identity)))
        repeated = self.db.execute("UPDATE events SET deliveries = deliveries + 1 WHERE id = ?", (identity,))
        if repeated.rowcount:
            self.db.execute("INSERT OR IGNORE INTO deliveries VALUES (?, ?)", (identity, request))
            return False
        cursor = self.db.execute(
            "INSERT INTO events (at, type, user, name, id, pid, process, request, size, body)"
            " VALUES (?,?,?,?,?,?,?,?,?,?)",
            (received.at, entry.type, user, name, identity, received.pid, process, request, size, body),
        )
        self.last = cursor.lastrowid or self.last
        self.events += 1
        self.bytes += size
        self._count(1, entry.type, name, received.pid, process)
        return True

    def _count(self, change: int, kind: str, name: str, pid: int | None, process: str) -> None:
        _change(self.types, kind, change)
        _change(self.processes, (pid, process), change)
        if kind == "track":
            _change(self.names, name, change)

    def _evict(self) -> None:
        while self.events > self.max_events or self.bytes > self.max_bytes:
            # In a large store a little more, so that not every request has to remove something.
            spare = min(_SPARE, self.max_events // 100)
            excess = max(1, min(self.events - self.max_events + spare, 1000))
            oldest = self.db.execute(
                "SELECT seq, size, type, name, pid, process FROM events ORDER BY seq LIMIT ?", (excess,)
            ).fetchall()
            if not oldest:
                return
            last = oldest[-1][0]
            self.db.execute(
                "DELETE FROM deliveries WHERE id IN (SELECT id FROM events WHERE seq <= ? AND deliveries > 1)", (last,)
            )
            self.db.execute("DELETE FROM events WHERE seq <= ?", (last,))
            for _, size, *rest in oldest:
                self.bytes -= size
                self._count(-1, *rest)
            self.events -= len(oldest)
            self.evicted += len(oldest)

    def _save_counts(self) -> None:
        counts = {"again": self.again, "evicted": self.evicted, "requests": self.requests, "refused": self.refused}
        self.db.executemany("INSERT OR REPLACE INTO counts VALUES (?, ?)", counts.items())


def recent_rates(store: Store, seconds: int) -> Counter[int]:
    """How many events arrived in each of the last ``seconds`` seconds, as seconds since 1970."""
    since = time.time() - seconds
    first = store.db.execute("SELECT max(seq) FROM events WHERE at < ?", (since,)).fetchone()[0] or 0
    rows = store.db.execute("SELECT CAST(at AS INT), count(*) FROM events WHERE seq > ? GROUP BY 1", (first,))
    return Counter(dict(rows.fetchall()))


def _change(counter: Counter[Key], key: Key, change: int) -> None:
    counter[key] += change
    if counter[key] <= 0:
        del counter[key]


def iso_time(at: float) -> str:
    """Seconds since 1970 as ISO 8601."""
    return datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="milliseconds")[:-6] + "Z"


def storable(text: str) -> str:
    """``text`` with the halves of surrogate pairs escaped, which SQLite cannot store."""
    return text.encode("utf-8", "backslashreplace").decode()


def json_text(value: Any) -> str:
    """``value`` as compact JSON, in characters rather than escapes where SQLite can store them."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":"))
    return text


def _opened(path: str | None) -> sqlite3.Connection:
    if path is None:
        db = sqlite3.connect(":memory:")
        db.executescript(_SCHEMA)
        return db
    try:
        # Only this user may read what an application sends.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        db = sqlite3.connect(path, timeout=0.5)
    except (OSError, sqlite3.Error) as problem:
        raise Unusable(getattr(problem, "strerror", None) or str(problem))
    try:
        _prepare(db)
    except (sqlite3.Error, Unusable) as problem:
        db.close()
        if "locked" in str(problem):
            raise Unusable("another inbox has it open")
        raise Unusable(str(problem))
    return db


def _prepare(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA locking_mode = EXCLUSIVE")
    marks = tuple(db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
    is_empty = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    if marks != (_APPLICATION, _VERSION) and not is_empty:
        raise Unusable("it was not made by this version of the inbox")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA journal_size_limit = 16000000")
    if is_empty:
        db.executescript(
            f"BEGIN; {_SCHEMA} PRAGMA application_id = {_APPLICATION}; PRAGMA user_version = {_VERSION}; COMMIT;"
        )
    else:  # takes the lock, which the next inbox has to see
        db.execute("BEGIN IMMEDIATE")
        db.execute("COMMIT")
