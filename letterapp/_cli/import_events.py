"""From a row to an event: its fields, its timestamp, its id.

Responsible for: the names of fields and columns, the timestamps that are understood, ids that are derived from a row.
Not responsible for: reading rows (`import_rows`), JSON text (`_encoding`).
"""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta, timezone
from difflib import get_close_matches
from typing import Any, Callable, Iterable, NamedTuple

from .._config import DEFAULT_BATCH_BYTES
from .._encoding.events import Encoder
from .._encoding.json_text import Unencodable, fastest_encoder
from .._message_id import message_id
from ..errors import LetterError

MAX_BYTES = DEFAULT_BATCH_BYTES  # of a request and of one event
TYPES = ("string", "number", "boolean", "json")  # what the cells of a column are
_COMMON = ("type", "userId", "timestamp", "messageId")
# The fields of each kind of event beside those, and the one that takes all other columns of a CSV file.
_FIELDS: dict[str, tuple[tuple[str, ...], str]] = {
    "track": (("event",), "properties"),
    "identify": (("email", "timezone"), "traits"),
    "group": (("accountId", "name"), "traits"),
}
_SNAKE = {"user_id": "userId", "account_id": "accountId", "message_id": "messageId"}
_SHOWN = 8  # columns in the text of an error
_KNOWN = {name for fields, rest in _FIELDS.values() for name in (*fields, rest)} | set(_COMMON)
_ISO = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)"
    r"(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?(?: ?(Z|z|UTC|[+-]\d\d(?::?\d\d)?))?)?",
    re.ASCII,
)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MILLISECONDS = 100_000_000_000  # a number of seconds that is this large is one of milliseconds: 1973 or later
_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class Refused(Exception):
    """A row is not an event. The text says why."""


class Event(NamedTuple):
    kind: str
    timestamp: str  # "" if the row has none
    data: bytes


def check_columns(columns: list[str], id_fields: tuple[str, ...], undated: bool) -> None:
    """Raise `LetterError` if no row of a CSV file with these columns can be imported, or not as it is meant.

    ``undated``: as for `Converter`.
    """
    seen: dict[str, str] = {}
    for column in columns:
        name = _SNAKE.get(column, column)
        for rest in ("properties.", "traits."):
            if name.startswith(rest):
                name = name[len(rest) :]
        if name in seen:
            raise LetterError(f"the columns {seen[name]!r} and {column!r} have the same name")
        seen[name] = column
    missing = [] if "userId" in seen else ["user_id"]
    if "timestamp" not in seen and "event" in seen and "type" not in seen and not undated:
        missing.append("timestamp")  # all rows are tracks
    if missing:
        raise LetterError(_lacks(columns, missing))
    if not {"type", "event", "accountId", "email", "timezone", "traits"} & set(seen):
        for column in _similar("event", [name for name in columns if "." not in name], 0.7):
            # All rows would be identifies, with this column as a trait.
            raise LetterError(f"the header has no column event: rename {column!r} to event, or to 'traits.{column}'")
    unknown = [name for name in id_fields if name not in columns]
    if unknown:
        raise LetterError(f"--id-from: there is no column {unknown[0]!r}")


def _lacks(columns: list[str], missing: list[str]) -> str:
    others = [name for name in columns if _SNAKE.get(name, name) not in _KNOWN]
    renames = [f"{found!r} to {name}" for name in missing for found in _similar(name, others)]
    said = f"the header has no column {' and no column '.join(missing)}"
    if renames:
        said += f": rename {' and '.join(renames)}"
    if "timestamp" in missing:
        said += " (--now: all events happened now)"
    names = [repr(name[:30]) for name in columns[:_SHOWN]] + ["..."] * (len(columns) > _SHOWN)
    return f"{said}. It has {', '.join(names)}"


def _similar(name: str, others: Iterable[str], at_least: float = 0.6) -> list[str]:
    """The one of ``others`` that is most like ``name``, if one is. Case, spaces and underscores do not count."""
    plain = {re.sub(r"[\W_]", "", other).lower(): other for other in others}
    return [plain[found] for found in get_close_matches(re.sub(r"[\W_]", "", name).lower()[:60], plain, 1, at_least)]


class Converter:
    """Makes events of rows.

    ``columns``: those of a CSV file, whose cells are of the ``types`` of their columns. Columns that are no field are
    properties or traits. None: rows of JSON. ``id_fields``: the fields from which ids are derived; if there are none,
    the whole event. ``undated``: a track without a timestamp is accepted.
    """

    def __init__(
        self, columns: list[str] | None, types: dict[str, str], id_fields: tuple[str, ...], undated: bool
    ) -> None:
        self._columns = None if columns is None else {_SNAKE.get(name, name) for name in columns}
        self._types = types
        self._id_fields = id_fields
        self._undated = undated
        self._encoder = Encoder(MAX_BYTES, None, None, fastest_encoder())
        self._makers: dict[str, Callable[..., bytes | None]] = {
            "track": lambda item, when, identity: self._encoder.track(
                item.get("userId"), item.get("event"), item.get("properties"), when, identity
            ),
            "identify": lambda item, when, identity: self._encoder.identify(
                item.get("userId"), item.get("email"), item.get("traits"), item.get("timezone"), when, identity
            ),
            "group": lambda item, when, identity: self._encoder.group(
                item.get("userId"), item.get("accountId"), item.get("name"), item.get("traits"), when, identity
            ),
        }

    def event(self, fields: dict[str, Any]) -> Event:
        """The event of a row. Raises `Refused`."""
        item = _of_json(fields) if self._columns is None else self._of_cells(fields, self._columns)
        kind = item["type"]
        when = item.get("timestamp")
        if when is not None:
            item["timestamp"] = when = utc(when)
        elif kind == "track" and not self._undated:
            raise Refused("it has no timestamp: add one, or run with --now if it happened now")
        identity = item.pop("messageId", None)
        if identity is None:
            identity = self._identity(kind, item, fields)
        try:
            data = self._makers[kind](item, when, identity)
        except Unencodable as problem:
            raise Refused(str(problem)) from None
        except LetterError as problem:
            raise Refused(_wire_names(str(problem))) from None
        assert data is not None  # there is no `before_send`
        return Event(kind, when or "", data)

    def _identity(self, kind: str, item: dict[str, Any], fields: dict[str, Any]) -> str:
        if not self._id_fields:
            try:
                whole = json.dumps(item, sort_keys=True, separators=(",", ":"))
            except (ValueError, RecursionError) as problem:
                raise Refused(f"it cannot be encoded: {problem}") from None
            return message_id("import", whole)
        parts = [kind, item.get("event") or item.get("accountId") or ""]
        for name in self._id_fields:
            value = _found(fields, name)
            if value in (None, "") or isinstance(value, (dict, list)):
                raise Refused(f"it has no value {name}, from which its id is derived")
            parts += [name, value if isinstance(value, str) else json.dumps(value)]
        try:
            return message_id("import", *parts)
        except LetterError as problem:
            raise Refused(str(problem)) from None

    def _of_cells(self, cells: dict[str, Any], columns: set[str]) -> dict[str, Any]:
        """A row of CSV as an item of the API."""
        known = {_SNAKE.get(name, name): name for name in cells if _SNAKE.get(name, name) in _KNOWN}
        kind = _kind(cells.get("type"), columns)
        fields, rest = _FIELDS[kind]
        item: dict[str, Any] = {"type": kind}
        others: dict[str, Any] = {}
        if rest in known:
            others = _as_object(rest, cells[known[rest]])
        for column, cell in cells.items():
            name = _SNAKE.get(column, column)
            if name in ("type", rest):
                continue
            if name in _COMMON or name in fields:
                item[name] = cell
                continue
            inner = column[len(rest) + 1 :] if column.startswith(f"{rest}.") else column
            others[inner] = typed(column, cell, self._types.get(column, "string"))
        item[rest] = others
        return item


def _kind(given: Any, fields: set[str]) -> str:
    """The kind of an event, as it was given, or by the fields that it has, even without a value."""
    if given is None:
        return "track" if "event" in fields else "group" if "accountId" in fields else "identify"
    if not isinstance(given, str) or given not in _FIELDS:
        raise Refused(f"its type must be track, identify or group, not {json.dumps(given)[:60]}")
    return given


def _of_json(fields: dict[str, Any]) -> dict[str, Any]:
    """A row of JSON as an item of the API."""
    item = {_SNAKE.get(name, name): value for name, value in fields.items() if value is not None}
    twice = [name for snake, name in _SNAKE.items() if snake in fields and name in fields]
    if twice:
        raise Refused(f"it has the field {twice[0]} twice")
    given = item.get("type")
    kind = item["type"] = _kind(given, {_SNAKE.get(name, name) for name in fields})
    allowed, rest = _FIELDS[kind]
    unknown = [name for name in item if name not in _COMMON and name not in allowed and name != rest]
    if unknown:
        raise Refused(_unknown(unknown, item, is_guessed=given is None and kind == "identify"))
    item.setdefault(rest, {})
    return item


def _unknown(names: list[str], item: dict[str, Any], is_guessed: bool) -> str:
    """Why an ``item`` with fields of these ``names`` is refused. ``is_guessed``: nothing says its kind."""
    kind = item["type"]
    allowed, rest = _FIELDS[kind]
    possible = (_KNOWN if is_guessed else {*_COMMON, *allowed, rest}) - set(item)
    for name in names:
        for found in () if name in _KNOWN else _similar(name, sorted(possible)):
            return f"{_article(kind)} has no field {name[:60]!r}. Did you mean {found!r}? If not, put it into {rest}"
    return f"{_article(kind)} has no field {names[0][:60]!r}: put it into {rest}"


def _article(kind: str) -> str:
    return f"an {kind}" if kind == "identify" else f"a {kind}"


def _as_object(name: str, cell: str) -> dict[str, Any]:
    value = _as_json(name, cell)
    if not isinstance(value, dict):
        raise Refused(f"{name} must be a JSON object")
    return value


def _as_json(name: str, cell: str) -> Any:
    try:
        return json.loads(cell)
    except (ValueError, RecursionError) as problem:
        raise Refused(f"{name} is not JSON: {problem}") from None


def typed(name: str, cell: str, kind: str) -> Any:
    """A cell of CSV as a value of that type. Raises `Refused`."""
    if kind == "string":
        return cell
    if kind == "json":
        return _as_json(name, cell)
    if kind == "boolean":
        value = _BOOLEANS.get(cell.strip().lower())
        if value is None:
            raise Refused(f"{name} must be true or false, not {cell[:40]!r}")
        return value
    try:
        number = json.loads(cell.strip())
    except ValueError:
        number = None
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise Refused(f"{name} must be a number, not {cell[:40]!r}")
    return number


def _found(fields: dict[str, Any], name: str) -> Any:
    """A field of a row, or ``properties.order`` of a row of JSON."""
    if name in fields:
        return fields[name]
    value: Any = fields
    for step in name.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return value


def _wire_names(text: str) -> str:
    for snake, name in _SNAKE.items():
        text = text.replace(snake, name)
    return text


# Timestamps.


def utc(value: Any) -> str:
    """A timestamp of a row as the API gets it: in UTC, or a date as it is. Raises `Refused`.

    ISO 8601, where UTC is assumed if there is no offset; or seconds or milliseconds since 1970.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise Refused("its timestamp must be a string or a number")
    text = value.strip() if isinstance(value, str) else ""
    match = _ISO.fullmatch(text)
    try:
        if match is None:
            return _of_number(value)
        year, month, day, hour, minute, second, fraction, offset = match.groups()
        moment = datetime(int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0))
        if hour is None:
            return text
        moment -= _offset(offset)
    except (ValueError, OverflowError):
        raise Refused(
            f"its timestamp {str(value)[:40]!r} is neither ISO 8601, like 2026-01-31T12:00:00Z, nor seconds since 1970"
        ) from None
    return f"{moment.isoformat()}{f'.{fraction}' if fraction else ''}Z"


def _offset(text: str | None) -> timedelta:
    if text is None or text in ("Z", "z", "UTC"):
        return timedelta()
    digits = text[1:].replace(":", "")
    size = timedelta(hours=int(digits[:2]), minutes=int(digits[2:] or 0))
    return -size if text[0] == "-" else size


def _of_number(value: Any) -> str:
    number = float(value)
    if not 0 <= number < 1e14:
        raise ValueError
    moment = _EPOCH + timedelta(microseconds=round(number * (1000 if number >= _MILLISECONDS else 1_000_000)))
    return moment.replace(tzinfo=None).isoformat() + "Z"
