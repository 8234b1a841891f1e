"""The ledger's arithmetic: calls that returned against events that arrived, and what does not balance.

Responsible for: `balance`, the columns and the verdict. Pure: the input is what the programs and the API logged. Not
responsible for: processes, clocks, tables.

An event is identified by (who, serial): "who" is one thread of one process, which numbers its own calls. Both travel as
properties, so the count does not depend on anything that a client generates.
"""

from __future__ import annotations

from collections import Counter
from typing import Iterable, Mapping, NamedTuple, Tuple

Key = Tuple[str, int]  # who, serial

# Any of them makes a cell red. The most severe comes first.
FAULTS = ("lost", "twice", "collided", "disordered", "hung", "orphans", "leaked")


class Records(NamedTuple):
    """What was logged outside the client."""

    returned: dict[Key, int]  # calls that returned, and their duration in microseconds
    reported: dict[Key, str]  # events that the client reported to its error callback or refused by what it returned
    arrivals: list[tuple[str, Key]]  # what the API stored, in order: the client's id of the event, and the event
    unnamed: int = 0  # events that the client reported only as a number


class Counts(NamedTuple):
    """The columns that are counts of events."""

    calls: int
    delivered: int  # of the calls that returned
    reported: int  # not delivered, but reported to the program
    lost: int  # neither delivered nor reported
    twice: int  # events that arrived under two ids: the API counts them twice
    collided: int  # ids that two events share: the API drops one
    disordered: int  # events that arrived after a later one of the same thread
    cut: int  # arrived although a kill interrupted the call before it returned: no fault
    longest_call_ms: float


def balance(records: Records) -> Counts:
    ids: dict[Key, set[str]] = {}
    keys: dict[str, set[Key]] = {}
    for identity, key in records.arrivals:
        ids.setdefault(key, set()).add(identity)
        keys.setdefault(identity, set()).add(key)
    missing = records.returned.keys() - ids.keys()
    # A number alone counts as a report too: the program knows how many events are gone. A client that overstates the
    # number could hide a loss, but no more than it overstated.
    reported = min(len(missing), len(missing & records.reported.keys()) + records.unnamed)
    return Counts(
        calls=len(records.returned),
        delivered=len(records.returned) - len(missing),
        reported=reported,
        lost=len(missing) - reported,
        twice=sum(len(each) > 1 for each in ids.values()),
        collided=sum(len(each) > 1 for each in keys.values()),
        disordered=_disordered(key for _, key in records.arrivals),
        cut=len(ids.keys() - records.returned.keys()),
        longest_call_ms=max(records.returned.values(), default=0) / 1e3,
    )


def _disordered(arrivals: Iterable[Key]) -> int:
    """Count first arrivals that came late. A second delivery of an event does not count: the API drops it."""
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


def verdict(entry: Mapping[str, object]) -> str:
    """``balances``, ``reported`` (every loss was reported), ``red``, or ``failed`` if nothing could be counted."""
    if entry["failure"]:
        return "failed"
    if any(entry[fault] for fault in FAULTS):
        return "red"
    return "reported" if entry["reported"] else "balances"
