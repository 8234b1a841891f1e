"""Searching what the inbox has received.

Responsible for: the filters of a request, as SQL; reading pages of matches. Not responsible for: storing (`store`).

A search goes through the events in slices, the newest first, and lets the loop handle other connections in between. So
no search, whatever it looks for, delays the application that sends.
"""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from datetime import datetime, timezone
from typing import Any, Callable, Dict, Mapping, NamedTuple

from .store import Store, iso_time, json_text, storable

SLICE = 5_000  # events: some 2 ms for a text that is in none of them
_SLICE_BYTES = 20_000_000  # if events are large: some 20 ms
MAX_LIMIT = 1_000
_BRIEF = 160  # characters
_SMALL_BODY = "CASE WHEN size < 50000 THEN body ELSE '' END"
_ROW = "seq, at, type, user, name, pid, process, deliveries, size"
_MAX_NUMBER = 2**63 - 1

Row = Dict[str, Any]
IsGone = Callable[[], bool]


class Gone(Exception):
    """Nobody waits for the result any more."""


class Filter(NamedTuple):
    """Which events: a condition in SQL, its values, and the range of numbers that is searched."""

    condition: str
    values: tuple[str | float, ...]
    after: int = 0  # only later ones than this
    upto: int | None = None  # only this one and earlier ones


# A parameter of the request, and its condition, in which each `?` is its value.
_CONDITIONS = {
    "type": "type = ?",
    "user": "user = ?",
    "user_prefix": "substr(user, 1, length(?)) = ?",
    "event": "name = ?",
    "process": "(process = ? OR CAST(pid AS TEXT) = ?)",
    "pid": "CAST(pid AS TEXT) = ?",
}
_OTHERS = ("q", "after", "upto", "again")


def parse_filter(parameters: Mapping[str, str]) -> Filter:
    """The filter that ``parameters`` describe; empty ones do not filter. Raises `ValueError` with what is wrong.

    ``after`` is the number of an event, or a time as ISO 8601; ``again=1`` leaves events that came more than once.
    """
    conditions, values = ["1"], []
    for name, condition in _CONDITIONS.items():
        value = parameters.get(name, "")
        if not value:
            continue
        conditions.append(condition)
        values += [storable(value)] * condition.count("?")
    text = parameters.get("q", "")
    if text:
        # Also as it is shown, with a space after the colon, which the stored JSON does not have.
        patterns = sorted({_like(text), _like(text, squeeze=True)})
        conditions.append("(" + " OR ".join([r"body LIKE ? ESCAPE '\'"] * len(patterns)) + ")")
        values += patterns
    if parameters.get("again"):
        conditions.append("deliveries > 1")
    after = 0
    given = parameters.get("after", "")
    if given.isdigit():
        after = _number("after", given)
    elif given:
        conditions.append("at > ?")
        values.append(_time(given))  # type: ignore[arg-type]
    upto = parameters.get("upto", "")
    return Filter(" AND ".join(conditions), tuple(values), after, _number("upto", upto) if upto else None)


def parameter_names() -> list[str]:
    return [*_CONDITIONS, *_OTHERS]


def _number(name: str, text: str) -> int:
    if not text.isdigit() or len(text) > 19:
        raise ValueError(f"{name}: must be a number")
    return min(int(text), _MAX_NUMBER)


def _time(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00").replace(" ", "+" if "T" in text else " "))
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        raise ValueError("after: must be the number of an event, or a time such as 2026-01-31T12:00:00Z")


def _like(text: str, squeeze: bool = False) -> str:
    """A pattern that finds ``text`` in JSON: in a string, or, if ``squeeze``, as a part of the JSON itself."""
    escaped = re.sub(r'"\s*:\s*', '":', text) if squeeze else json.dumps(storable(text), ensure_ascii=False)[1:-1]
    for sign in "\\%_":
        escaped = escaped.replace(sign, "\\" + sign)
    return f"%{escaped}%"


async def page(store: Store, wanted: Filter, offset: int, limit: int, is_gone: IsGone) -> list[Row]:
    """Up to ``limit`` matches, the newest first, without the first ``offset``; each with the beginning of its item."""
    rows: list[Row] = []
    async for low, high in _slices(store, wanted, is_gone):
        where = f"seq > ? AND seq <= ? AND {wanted.condition}"
        if offset:
            count = _count(store, wanted, low, high)
            if count <= offset:
                offset -= count
                continue
        found = store.db.execute(
            f"SELECT {_ROW}, {_SMALL_BODY} FROM events WHERE {where} ORDER BY seq DESC LIMIT ? OFFSET ?",
            (low, high, *wanted.values, limit - len(rows), offset),
        )
        rows += [{**as_row(columns), "brief": _brief(body)} for *columns, body in found]
        offset = 0
        if len(rows) >= limit:
            break
    return rows


async def count(store: Store, wanted: Filter, is_gone: IsGone) -> int:
    """The number of matches."""
    if wanted == Filter("1", ()):
        return store.events
    total = 0
    async for low, high in _slices(store, wanted, is_gone):
        total += _count(store, wanted, low, high)
    return total


async def latest(store: Store, wanted: Filter, is_gone: IsGone) -> int | None:
    """The number of the latest match."""
    rows = await page(store, wanted, 0, 1, is_gone)
    return rows[0]["seq"] if rows else None


def whole(store: Store, seq: int) -> dict[str, Any] | None:
    """One event with its item and all its requests; None if it is not there (any more)."""
    found = store.db.execute(f"SELECT {_ROW}, id, request, body FROM events WHERE seq = ?", (seq,)).fetchone()
    if found is None:
        return None
    *columns, identity, request, body = found
    numbers = [request, *(row[0] for row in store.db.execute(
        "SELECT request FROM deliveries WHERE id = ? ORDER BY request DESC LIMIT 50", (identity,)
    ))]  # fmt: skip
    item = json.loads(body)
    return {
        **as_row(columns),
        "item": item,
        "requests": sorted(_requests(store.db, numbers), key=lambda each: each["id"]),
    }


def recent_requests(store: Store, before: int | None, limit: int) -> list[Row]:
    """The latest requests, the newest first."""
    return [
        _as_request(row)
        for row in store.db.execute(
            f"SELECT {_REQUEST} FROM requests WHERE id < ? ORDER BY id DESC LIMIT ?", (before or _MAX_NUMBER, limit)
        )
    ]


def _brief(body: str) -> str:
    """The beginning of an item's properties or traits, for one line."""
    if not body:
        return "(large)"
    item = json.loads(body)
    if "subject" in item and "userId" not in item:  # an email
        return " ".join(str(item.get("text") or item.get("tag") or "").split())[:_BRIEF]
    parts = []
    length = 0
    for name, value in (item.get("properties") or item.get("traits") or {}).items():
        parts.append(f"{name}: {value if isinstance(value, str) else json_text(value)}")
        length += len(parts[-1])
        if length > _BRIEF:
            break
    text = ", ".join(parts)
    return text if len(text) <= _BRIEF else text[: _BRIEF - 1] + "\u2026"


def as_row(columns: Any) -> Row:
    row = dict(zip(_ROW.split(", "), columns))
    row["received"] = iso_time(row["at"])
    return row


_REQUEST = "id, at, path, status, note, attempt, items, bytes, pid, process, headers"


def _requests(db: sqlite3.Connection, numbers: list[int]) -> list[Row]:
    marks = ",".join("?" * len(numbers))
    return [_as_request(row) for row in db.execute(f"SELECT {_REQUEST} FROM requests WHERE id IN ({marks})", numbers)]


def _as_request(columns: Any) -> Row:
    request = dict(zip(_REQUEST.split(", "), columns))
    request["headers"] = json.loads(request["headers"])
    return request


def _count(store: Store, wanted: Filter, low: int, high: int) -> int:
    found = store.db.execute(
        f"SELECT count(*) FROM events WHERE seq > ? AND seq <= ? AND {wanted.condition}", (low, high, *wanted.values)
    )
    total: int = found.fetchone()[0]
    return total


async def _slices(store: Store, wanted: Filter, is_gone: IsGone) -> Any:
    """Ranges of numbers, (low, high], the newest first."""
    first = store.db.execute("SELECT min(seq) FROM events").fetchone()[0]
    if first is None:
        return
    bottom = max(first - 1, wanted.after)
    step = max(10, min(SLICE, _SLICE_BYTES * store.events // max(1, store.bytes)))
    high = store.last if wanted.upto is None else min(wanted.upto, store.last)
    while high > bottom:
        low = max(bottom, high - step)
        yield low, high
        high = low
        await asyncio.sleep(0)
        if is_gone():
            raise Gone
