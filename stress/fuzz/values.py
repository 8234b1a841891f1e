"""Turns bytes into any Python value, hostile ones included: the arguments of a call.

Responsible for: what a program may pass to `track`, on purpose or by mistake. The same bytes always give the same
value.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import itertools
import struct
import types
import uuid
from typing import Any, Callable, Iterator, List, Mapping


class Source:
    """Reads the bytes of an input one after the other; zeros after its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken.ljust(count, b"\0")

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def some(self) -> bytes:
        """Between 0 and 4095 bytes."""
        size = self.byte()
        return self.take(size if size < 250 else self.number(2) % 4096)

    def rest(self) -> bytes:
        rest, self._data = self._data[self._at :], b""
        return rest

    def is_over(self) -> bool:
        return self._at >= len(self._data)


class Hostile(Exception):
    """The exception that the hostile classes raise."""


class _Raises:
    """Raises from every attribute and every special method."""

    def __getattr__(self, name: str) -> Any:
        raise Hostile(name)

    def __repr__(self) -> str:
        raise Hostile("repr")

    def __str__(self) -> str:
        raise Hostile("str")

    def __iter__(self) -> Any:
        raise Hostile("iter")

    def __len__(self) -> int:
        raise Hostile("len")

    def __bool__(self) -> bool:
        raise Hostile("bool")

    def __eq__(self, other: object) -> bool:
        raise Hostile("eq")

    def __hash__(self) -> int:
        return 1

    def __float__(self) -> float:
        raise Hostile("float")

    def __index__(self) -> int:
        raise Hostile("index")


class _Local(_Raises):
    """Like an unbound proxy: even its class cannot be determined."""

    @property  # type: ignore[misc]  # `object` has it as a variable that can be set
    def __class__(self) -> Any:
        raise Hostile("class")


class _Text(str):
    def __str__(self) -> str:
        raise Hostile("str")

    def __repr__(self) -> str:
        raise Hostile("repr")

    def __eq__(self, other: object) -> bool:
        raise Hostile("eq")

    def __hash__(self) -> int:
        raise Hostile("hash")

    def encode(self, *_: Any) -> bytes:
        raise Hostile("encode")


class _Int(int):
    def __repr__(self) -> str:
        raise Hostile("repr")

    def __index__(self) -> int:
        raise Hostile("index")


class _Float(float):
    def __repr__(self) -> str:
        raise Hostile("repr")

    def __float__(self) -> float:
        raise Hostile("float")


class _Id(uuid.UUID):
    def __str__(self) -> str:
        raise Hostile("str")


class _Zone(datetime.tzinfo):
    def utcoffset(self, moment: Any) -> Any:
        raise Hostile("utcoffset")

    def dst(self, moment: Any) -> Any:
        raise Hostile("dst")

    def tzname(self, moment: Any) -> Any:
        raise Hostile("tzname")


class _Moment(datetime.datetime):
    def astimezone(self, zone: Any = None) -> Any:
        raise TypeError("Cannot convert tz-naive Timestamp, use tz_localize to localize")


class _Mapping(Mapping[Any, Any]):
    def __init__(self, pairs: list[tuple[Any, Any]], lies: int) -> None:
        self._pairs = pairs
        self._lies = lies

    def __getitem__(self, key: Any) -> Any:
        if self._lies & 1:
            raise KeyError(key)
        return next((value for name, value in self._pairs if name is key), None)

    def __iter__(self) -> Iterator[Any]:
        yield from [name for name, _ in self._pairs]
        if self._lies & 2:
            raise Hostile("iter")

    def __len__(self) -> int:
        return 1 << 70 if self._lies & 4 else len(self._pairs)


class _Endless(_Mapping):
    def __iter__(self) -> Iterator[Any]:
        return map(str, itertools.count())


class _EndlessList(List[Any]):
    def __iter__(self) -> Iterator[Any]:
        return itertools.count()


class _Colour(enum.Enum):
    RED = "red"
    ODD = float("nan")


@dataclasses.dataclass
class _Data:
    value: Any


class _Array:
    """Looks like a value of numpy or pandas."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def item(self) -> Any:
        return self._value

    def tolist(self) -> Any:
        return self._value

    def isoformat(self) -> Any:
        return self._value

    def __eq__(self, other: object) -> Any:
        return [other]

    def __bool__(self) -> bool:
        raise ValueError("The truth value of an array is ambiguous")

    def __hash__(self) -> int:
        raise TypeError("unhashable")


def value(source: Source, depth: int = 6) -> Any:
    """The next value. A list may contain one object several times, or itself."""
    if source.is_over():
        return None
    kind = source.byte() % (len(_PLAIN) + len(_NESTED))
    if kind < len(_PLAIN):
        return _PLAIN[kind](source)
    return _NESTED[kind - len(_PLAIN)](source, depth - 1) if depth else None


def _shared(source: Source, depth: int) -> Any:
    shared = value(source, depth)
    for _ in range(source.byte() % 40):
        shared = [shared, shared]
    return shared


def _recursive(source: Source, depth: int) -> Any:
    own: list[Any] = [value(source, depth)]
    own.append(own)
    return own


def _hashable(source: Source, depth: int) -> Any:
    key = value(source, depth)
    try:
        hash(key)
    except Exception:
        return "key"
    return key


def _dict(source: Source, depth: int) -> Any:
    made: dict[Any, Any] = {}
    for _ in range(source.byte() % 6):
        try:
            made[_hashable(source, depth)] = value(source, depth)
        except Hostile:
            pass  # keys that cannot be compared
    return made


def _set(source: Source, depth: int) -> Any:
    made: set[Any] = set()
    for _ in range(source.byte() % 6):
        try:
            made.add(_hashable(source, depth))
        except Hostile:
            pass
    return made


def _list(source: Source, depth: int) -> Any:
    return [value(source, depth) for _ in range(source.byte() % 6)]


def _moment(source: Source) -> datetime.datetime:
    zones: list[Any] = [None, datetime.timezone.utc, datetime.timezone(datetime.timedelta(hours=-14)), _Zone()]
    kind = (datetime.datetime, _Moment)[source.byte() & 1]
    year, zone = 1 + source.number(2) % 9999, zones[source.byte() % 4]
    return kind(year, 1 + source.byte() % 12, 1 + source.byte() % 28, source.byte() % 24, tzinfo=zone)


_PLAIN: list[Callable[[Source], Any]] = [
    lambda source: None,
    lambda source: bool(source.byte() & 1),
    lambda source: source.number(8) - (1 << 63),
    lambda source: source.number(1) << (source.number(2)),  # more digits than Python converts to text
    lambda source: struct.unpack("<d", source.take(8))[0],
    lambda source: source.some().decode("utf-8", "surrogateescape"),
    lambda source: (source.some() + b"\0").decode("utf-16-le", "replace"),
    lambda source: "".join(map(chr, source.some())) + chr(0xD800 + source.byte()),
    lambda source: source.some().decode("latin-1"),
    lambda source: "x" * (source.number(3) % 1_000_000),
    lambda source: source.some(),
    lambda source: bytearray(source.some()),
    lambda source: complex(source.byte(), 1),
    lambda source: fractions.Fraction(source.byte(), 7),
    lambda source: decimal.Decimal((source.byte() & 1, (source.byte() % 10,), source.number(2))),
    lambda source: decimal.Decimal(("NaN", "sNaN", "Infinity", "-0", "1e-400")[source.byte() % 5]),
    _moment,
    lambda source: datetime.date(1 + source.number(2) % 9999, 1, 1),
    lambda source: datetime.timedelta(source.byte()),
    lambda source: uuid.UUID(bytes=source.take(16)),
    lambda source: _Id(bytes=source.take(16)),
    lambda source: (_Colour.RED, _Colour.ODD)[source.byte() & 1],
    lambda source: _Text(source.some().decode("utf-8", "replace")),
    lambda source: _Int(source.byte()),
    lambda source: _Float(source.byte()),
    lambda source: _Raises(),
    lambda source: _Local(),
    lambda source: object,
    lambda source: len,
    lambda source: _Endless([("key", source.byte())], source.byte()),
    lambda source: _EndlessList(),
]

_NESTED: list[Callable[[Source, int], Any]] = [
    _list,
    _dict,
    _set,
    _shared,
    _recursive,
    lambda source, depth: tuple(_list(source, depth)),
    lambda source, depth: iter(_list(source, depth)),
    lambda source, depth: frozenset(_set(source, depth)),
    lambda source, depth: collections.deque(_list(source, depth)),
    lambda source, depth: collections.OrderedDict(_dict(source, depth)),
    lambda source, depth: types.MappingProxyType(_dict(source, depth)),
    lambda source, depth: _Mapping([(value(source, depth), value(source, depth))], source.byte()),
    lambda source, depth: _Data(value(source, depth)),
    lambda source, depth: _Data,
    lambda source, depth: _Array(value(source, depth)),
]
