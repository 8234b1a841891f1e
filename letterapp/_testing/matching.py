"""Comparing the events that a test expects with those that came.

Responsible for: what counts as a match, the text of a failure. Pure: nothing is read, nothing waits. Not responsible
for: where events come from.
"""

from __future__ import annotations

import datetime
import re
from difflib import get_close_matches, ndiff
from pprint import pformat
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

_SHOWN = 20  # events in the text of a failure
_WIDTH = 100  # characters of a line there
_MISSING = object()
_UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_DONE = {"track": "tracked", "identify": "identified", "group": "grouped"}
_NAMES = {"userId": "user_id", "accountId": "account_id"}  # of arguments; the others are the wire's


class Expected:
    """A description of an event: fields that have to be equal, and a part of its properties or traits."""

    def __init__(self, kind: str, fields: Mapping[str, Any], details: Mapping[str, Any]) -> None:
        """``kind``: the event's type. Fields whose value is None are not compared."""
        self.kind = kind
        self.group = "properties" if kind == "track" else "traits"
        self.fields = {name: value for name, value in fields.items() if value is not None}
        self.details = dict(details)

    def matches(self, item: Mapping[str, Any]) -> bool:
        return item["type"] == self.kind and all(equal(wanted, came) for _, wanted, came in self._compared(item))

    def differences(self, item: Mapping[str, Any]) -> List[Tuple[str, Any, Any]]:
        """The names, expected and received values that are not equal."""
        return [(name, wanted, came) for name, wanted, came in self._compared(item) if not equal(wanted, came)]

    def _compared(self, item: Mapping[str, Any]) -> Iterable[Tuple[str, Any, Any]]:
        for name, wanted in self.fields.items():
            yield _NAMES.get(name, name), wanted, item.get(name, _MISSING)
        came = item[self.group]
        for name, wanted in self.details.items():
            yield name, wanted, came.get(name, _MISSING)

    def __str__(self) -> str:
        fields = {_NAMES.get(name, name): value for name, value in self.fields.items()}
        said = [repr(fields.pop("event"))] if "event" in fields else []
        said += [f"{name}={value!r}" for name, value in {**fields, **self.details}.items()]
        return " ".join(said)


def equal(wanted: Any, came: Any) -> bool:
    """True if ``wanted`` is written to JSON as ``came``. A value with its own ``==``, like `mock.ANY`, decides itself.

    Unlike in Python, True is not 1. A tuple equals a list.
    """
    if isinstance(wanted, Mapping) and isinstance(came, dict):
        return wanted.keys() == came.keys() and all(equal(wanted[name], came[name]) for name in came)
    if isinstance(wanted, (list, tuple)) and isinstance(came, list):
        return len(wanted) == len(came) and all(map(equal, wanted, came))
    if (type(wanted) is bool) != (type(came) is bool) and type(wanted) in (bool, int, float):
        return False
    return bool(wanted == came)


def failure(expected: Expected, events: Sequence[Dict[str, Any]], notes: Sequence[str] = ()) -> str:
    """Why none of ``events`` is the ``expected`` one: the closest one, similar names, and all that came."""
    said = [f"not {_DONE[expected.kind]}: {expected}"]
    same_kind = [item for item in events if item["type"] == expected.kind]
    closest = min(reversed(same_kind), key=lambda item: _distance(expected, item), default=None)
    if closest is not None:
        said += ["", "The closest one differs:", *_diff(expected.differences(closest))]
    said += [f"Did you mean {name!r}?" for name in _similar(expected, same_kind, closest)]
    if events:
        left_out = len(events) - _SHOWN
        said += ["", f"What came ({_count(len(events))}{f', the last {_SHOWN} of which' if left_out > 0 else ''}):"]
        said += [f"  {line(item)}" for item in events[-_SHOWN:]]
    else:
        said += ["Nothing came."]
    return "\n".join([*said, *notes])


def line(item: Mapping[str, Any]) -> str:
    """``item`` on one line, without its ID and time."""
    rest = dict(item)
    parts = [f"{rest.pop('type'):8}", repr(rest.pop("userId"))]
    parts += [repr(rest.pop(name)) for name in ("event", "accountId") if name in rest]
    details = rest.pop("properties", rest.pop("traits", {}))
    parts += [f"{name}={value!r}" for name, value in rest.items() if name not in ("messageId", "timestamp")]
    return " ".join([*parts, repr(details)])


def without_chance(items: Iterable[Dict[str, Any]], is_now: Callable[[str], bool]) -> List[Dict[str, Any]]:
    """Copies of ``items`` in which nothing depends on chance or on the clock.

    A random messageId is ``"id-1"``, ``"id-2"``, ... in order of appearance; a timestamp that ``is_now`` is ``"now"``.
    Those that the application has chosen stay.
    """
    ids: Dict[str, str] = {}
    copies = []
    for item in items:
        identity, timestamp = item["messageId"], item["timestamp"]
        if _UUID4.fullmatch(identity):
            identity = ids.setdefault(identity, f"id-{len(ids) + 1}")
        copies.append({**item, "messageId": identity, "timestamp": "now" if is_now(timestamp) else timestamp})
    return copies


def seconds_of(timestamp: str) -> Optional[float]:
    """``timestamp``, in the API's format, in seconds since the epoch; None if it has no time zone."""
    try:
        moment = datetime.datetime.fromisoformat(timestamp.replace("Z", "+00:00"))
    except ValueError:
        return None
    return moment.timestamp() if moment.tzinfo is not None else None


def _distance(expected: Expected, item: Mapping[str, Any]) -> Tuple[bool, int]:
    differences = expected.differences(item)
    return any(name in ("event", "account_id") for name, _, _ in differences), len(differences)


def _diff(differences: Iterable[Tuple[str, Any, Any]]) -> Iterable[str]:
    for name, wanted, came in differences:
        before, after = pformat(wanted, width=_WIDTH), "(missing)" if came is _MISSING else pformat(came, width=_WIDTH)
        if "\n" in before + after:
            yield f"    {name}:"
            yield from (f"  {row.rstrip()}" for row in ndiff(before.splitlines(), after.splitlines()))
        else:
            yield f"  - {name}: {before}  (expected)"
            yield f"  + {name}: {after}"


def _similar(
    expected: Expected, items: Sequence[Mapping[str, Any]], closest: Optional[Mapping[str, Any]]
) -> Iterable[str]:
    """Names that came and are similar to one that was expected and did not come."""
    for field, wanted in expected.fields.items():
        came = {item[field] for item in items if isinstance(item.get(field), str)}
        if isinstance(wanted, str) and wanted not in came:
            yield from _closest_name(wanted, came)
    details = closest[expected.group] if closest is not None else {}
    for name in expected.details:
        if name not in details:
            yield from _closest_name(name, set(details) - set(expected.details))


def _closest_name(wanted: str, names: Iterable[str]) -> List[str]:
    folded = {name.casefold(): name for name in sorted(names)}
    return [folded[name] for name in get_close_matches(wanted.casefold(), list(folded), n=1)]


def _count(events: int) -> str:
    return "1 event" if events == 1 else f"{events:,} events"
