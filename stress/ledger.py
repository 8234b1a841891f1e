"""The sums: what the calls returned for, what came, and what does not balance.

Lives here: `balance`, the columns and the verdict. Pure: it is given what the programs and the API wrote down. Never
here: processes, clocks, tables.

An event is known by (who, serial): who is a thread of a process and numbers its own calls. Both travel as properties,
so the count relies on nothing that a client makes up.
"""

from __future__ import annotations

from collections import Counter
from typing import Iterable, NamedTuple, Tuple

Key = Tuple[str, int]  # who, serial

# Any of them makes a cell red. In the order in which a reader asks.
FAULTS = ("lost", "twice", "collided", "disordered", "hung", "orphans", "leaked")


class Books(NamedTuple):
    """What was written down outside the client."""

    returned: dict[Key, int]  # calls that returned, and the microseconds that they took
    told: dict[Key, str]  # events that the client named to its error callback, or refused by the call's answer
    arrivals: list[tuple[str, Key]]  # what the API stored, in that order: the client's id of the event, and the event
    unnamed: int = 0  # events that the client reported as given up by their number alone


class Sums(NamedTuple):
    """The columns that come from counting events."""

    calls: int
    delivered: int  # of the calls that returned
    told: int  # not delivered, but the program knows
    lost: int  # neither
    twice: int  # events that came under two ids: the API counts them twice
    collided: int  # ids that two events share: the API drops one
    disordered: int  # events that came after a later one of the same thread
    cut: int  # came though their call never returned, because a kill cut it short: no fault
    longest_call_ms: float


def balance(books: Books) -> Sums:
    ids: dict[Key, set[str]] = {}
    keys: dict[str, set[Key]] = {}
    for identity, key in books.arrivals:
        ids.setdefault(key, set()).add(identity)
        keys.setdefault(identity, set()).add(key)
    missing = books.returned.keys() - ids.keys()
    # Told by number is told: the program knows that they are gone and how many. A client that counted too many could
    # hide a loss, but by no more than it overstated it.
    told = min(len(missing), len(missing & books.told.keys()) + books.unnamed)
    return Sums(
        calls=len(books.returned),
        delivered=len(books.returned) - len(missing),
        told=told,
        lost=len(missing) - told,
        twice=sum(len(each) > 1 for each in ids.values()),
        collided=sum(len(each) > 1 for each in keys.values()),
        disordered=_disordered(key for _, key in books.arrivals),
        cut=len(ids.keys() - books.returned.keys()),
        longest_call_ms=max(books.returned.values(), default=0) / 1e3,
    )


def _disordered(arrivals: Iterable[Key]) -> int:
    """Count first arrivals that came late. A second delivery of the same event is no disorder: the API drops it."""
    latest: Counter[str] = Counter()
    seen: set[Key] = set()
    late = 0
    for key in arrivals:
        if key not in seen:
            seen.add(key)
            who, serial = key
            late += serial < latest[who]
            latest[who] = max(latest[who], serial)
    return late


def verdict(entry: dict[str, object]) -> str:
    """``balances``, ``told`` (all is accounted for), ``red``, or ``failed`` where nothing could be counted."""
    if entry["failure"]:
        return "failed"
    if any(entry[fault] for fault in FAULTS):
        return "red"
    return "told" if entry["told"] else "balances"
