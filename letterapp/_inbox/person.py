"""What the inbox knows about one user.

Responsible for: the list of users, one user's traits and accounts as the API would have them after all identify and
group calls. Not responsible for: the user's events, which are a search like any other (`query`).
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from .query import Gone, IsGone
from .store import Store, storable

_SLICE = 500
_MAX_CALLS = 20_000  # the latest identify and group calls of one user that count


def people(store: Store, start: str, limit: int) -> list[dict[str, Any]]:
    """The users whose id starts with ``start``, those with the latest event first."""
    start = storable(start)
    found = store.db.execute(
        "SELECT user, count(*), max(seq) AS latest FROM events"
        " WHERE type <> 'send' AND substr(user, 1, length(?)) = ? GROUP BY user ORDER BY latest DESC LIMIT ?",
        (start, start, limit),
    ).fetchall()
    return [{"user": user, "events": count, "last": last} for user, count, last in found]


async def person(store: Store, user: str, is_gone: IsGone) -> dict[str, Any]:
    """``user`` with the resulting traits: a later value replaces an earlier one, other names stay."""
    seqs = [
        row[0]
        for row in store.db.execute(
            "SELECT seq FROM events WHERE user = ? AND type IN ('identify', 'group') ORDER BY seq DESC LIMIT ?",
            (storable(user), _MAX_CALLS),
        )
    ]
    seqs.reverse()
    result: dict[str, Any] = {"user": user, "email": None, "timezone": None, "traits": {}, "accounts": {}}
    for start in range(0, len(seqs), _SLICE):
        chosen = seqs[start : start + _SLICE]
        marks = ",".join("?" * len(chosen))
        for (body,) in store.db.execute(f"SELECT body FROM events WHERE seq IN ({marks}) ORDER BY seq", chosen):
            _apply(result, json.loads(body))
        await asyncio.sleep(0)
        if is_gone():
            raise Gone
    result["counts"] = dict(
        store.db.execute("SELECT type, count(*) FROM events WHERE user = ? GROUP BY type", (storable(user),)).fetchall()
    )
    result["accounts"] = list(result["accounts"].values())
    return result


def _apply(result: dict[str, Any], item: dict[str, Any]) -> None:
    if item["type"] == "identify":
        for name in ("email", "timezone"):
            result[name] = item.get(name, result[name])
        result["traits"].update(item["traits"])
        return
    account = result["accounts"].setdefault(
        item["accountId"], {"account": item["accountId"], "name": None, "traits": {}}
    )
    account["name"] = item.get("name", account["name"])
    account["traits"].update(item["traits"])
