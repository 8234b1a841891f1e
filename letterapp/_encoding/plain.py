"""Copying the values of one event to plain ones: built-in types that JSON can represent.

Responsible for: `Copier`, the rules in docs/configuration.md for subclasses, dates, decimals, enums, dataclasses, numpy
and so on; the limit on the copy's size. Not responsible for: JSON text (`json_text`), events (`events`).

No lock, no I/O, no state. Whatever a value's class raises becomes `Unencodable` (`within`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping as _Mapping

from .._runtime.signal_errors import reraise_signal_error
from .._text import described, said, shown
from ..errors import LetterError
from .json_text import MAX_DEPTH, Unencodable, key_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterable

FLAT = frozenset((str, int, float, bool, type(None)))
_TEXTS = frozenset((str,))
_LARGE = 1 << 256  # the digits of smaller integers are not counted


def copied(name: str, properties: Any, max_bytes: int, default: Callable[[Any], Any] | None) -> dict[str, Any]:
    try:
        if type(properties) is not dict and not isinstance(properties, _Mapping):
            raise LetterError(f"{name} must be a dict or None, not {described(properties)}")
        copy: dict[str, Any] = Copier(max_bytes, default).copy_mapping(properties)
        return copy
    except LetterError:
        raise
    except Exception as error:
        raise within(name, error) from error


def within(step: str, error: Exception) -> Unencodable:
    """The error to raise for the value at ``step``, after reading it has raised ``error``."""
    if not isinstance(error, Unencodable):
        reraise_signal_error(error)
        error = Unencodable(f"could not be read: {said(error)}")
    return error.within(step)


class Copier:
    """Copies the values of one event to plain ones by the rules in docs/configuration.md, or raises `Unencodable`.

    It computes a lower bound of their size as JSON, and stops above ``max_bytes``. A value that is small in memory may
    be huge as JSON: a list that contains another list twice, which contains a third one twice, and so on.
    """

    def __init__(self, max_bytes: int, default: Callable[[Any], Any] | None) -> None:
        self._max_bytes = max_bytes
        self._left = max_bytes
        self._default = default

    def copy(self, value: Any) -> Any:
        try:
            return self._plain(value, MAX_DEPTH)
        except Exception as error:
            raise within("", error) from error

    def copy_mapping(self, value: Any) -> dict[str, Any]:
        return self._fields(value.copy(), MAX_DEPTH) if type(value) is dict else self._mapping(value, MAX_DEPTH)

    def _plain(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind in FLAT:
            if kind is str:
                self._spend(len(value))
            elif kind is int:
                self._spend(value.bit_length() >> 2)
            return value
        if depth == 0:
            raise Unencodable(f"nested deeper than {MAX_DEPTH} levels, or contains itself")
        if kind is dict:
            return self._fields(value.copy(), depth)
        if kind is list:
            return self._items(value.copy(), depth)
        if kind is tuple:
            return self._items(list(value), depth)
        return self._unusual(value, depth)

    def _fields(self, fields: dict[Any, Any], depth: int) -> dict[str, Any]:
        """Replace the values of ``fields``, which is a private copy, by plain ones."""
        self._spend(5 * len(fields) or 1)  # two quotes, a colon, a comma and at least one character each
        if not _TEXTS.issuperset(map(type, fields)):
            fields = {key_text(key): value for key, value in fields.items()}
        self._spend(sum(map(len, fields)))
        self._each(fields, fields.items(), depth, ".%s")
        return fields

    def _items(self, items: list[Any], depth: int) -> list[Any]:
        """Replace the values of ``items``, which is a private copy, by plain ones."""
        self._spend(2 * len(items) or 1)
        self._each(items, enumerate(items), depth, "[%d]")
        return items

    def _each(self, holder: Any, pairs: Iterable[tuple[Any, Any]], depth: int, place: str) -> None:
        """Replace each value of ``pairs``, the items of ``holder``, by a plain one. ``place``: its path in an error."""
        size = 0
        for at, value in pairs:
            kind = type(value)
            if kind is str:
                size += len(value)
            elif kind is int:
                if not -_LARGE < value < _LARGE:
                    size += value.bit_length() >> 2
            elif kind not in FLAT:
                try:
                    holder[at] = self._plain(value, depth - 1)
                except Exception as error:
                    raise within(place % at, error) from error
        self._spend(size)

    def _spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise _TooLarge(self._max_bytes)

    def _mapping(self, mapping: Any, depth: int) -> dict[str, Any]:
        items = getattr(type(mapping), "items", None)
        if items is dict.items or items is getattr(loaded("collections", "OrderedDict"), "items", None):
            return self._fields(dict.copy(mapping), depth)  # atomic: no other thread can change it meanwhile
        return self._fields_of(mapping.items(), depth)

    # Other classes may yield endlessly many values, created on demand, so each one is copied and counted as it comes.

    def _fields_of(self, pairs: Any, depth: int) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for key, value in pairs:
            name = key_text(key)
            self._spend(5 + len(name))
            try:
                fields[name] = self._plain(value, depth - 1)
            except Exception as error:
                raise within(f".{name}", error) from error
        return fields

    def _items_of(self, values: Any, depth: int) -> list[Any]:
        items: list[Any] = []
        for value in values:
            self._spend(2)
            try:
                items.append(self._plain(value, depth - 1))
            except Exception as error:
                raise within(f"[{len(items)}]", error) from error
        return items

    def _unusual(self, value: Any, depth: int) -> Any:
        """Convert values of other supported types: subclasses, dates, UUIDs, decimals, enums, sets, dataclasses, ..."""
        if isinstance(value, loaded("enum", "Enum")):
            return self._plain(value.value, depth - 1)
        if isinstance(value, str):
            return self._plain(str.__str__(value), depth)
        if isinstance(value, int):
            return self._plain(int.__index__(value), depth)
        if isinstance(value, (float, loaded("decimal", "Decimal"))):
            return float(value)
        if isinstance(value, loaded("uuid", "UUID")):
            return self._plain(str.__str__(str(value)), depth)
        if is_missing(value):
            return None
        day = from_date(value)
        if day is not None:
            return self._plain(day, depth)
        if isinstance(value, (list, tuple)):
            return self._items_of(value, depth)
        if isinstance(value, (set, frozenset)):
            return _in_order(self._items_of(list(value) if type(value) in (set, frozenset) else value, depth))
        if hasattr(type(value), "__dataclass_fields__"):
            # Not `__dataclass_fields__` itself: it also lists class variables and `InitVar`s, such as a password.
            fields = sys.modules["dataclasses"].fields(value)
            return self._fields({field.name: getattr(value, field.name) for field in fields}, depth)
        if isinstance(value, _Mapping):
            return self._mapping(value, depth)
        return self._foreign(value, depth)

    def _foreign(self, value: Any, depth: int) -> Any:
        """Convert values of numpy, pandas and similar classes, recognised by their methods; else call ``default``."""
        kind = type(value)
        if hasattr(kind, "tolist") and hasattr(kind, "dtype"):
            sort = getattr(value.dtype, "kind", "")
            if value.shape:
                return self._array(value, sort, depth)
            # A datetime64 in nanoseconds would become an int. So would a timedelta64, which `default` has to convert.
            single = value.astype("datetime64[us]").tolist() if sort == "M" else value.tolist()
            if sort != "m" and type(single) is not kind:
                return self._plain(single, depth - 1)
        if hasattr(kind, "isoformat"):
            text = value.isoformat()
            if isinstance(text, str):
                return self._plain(str.__str__(text), depth)
        if self._default is None:
            raise _refused(value)
        try:
            replacement = self._default(value)
        except Exception as error:
            reraise_signal_error(error)
            raise Unencodable(f"default raised {said(error)}") from error
        return self._plain(replacement, depth - 1)

    def _array(self, value: Any, sort: str, depth: int) -> Any:
        if not sort or sort not in "biuf":
            return self._items_of(value, depth)
        count = 1
        for length in value.shape:
            count *= length
        if 2 * count > self._left:  # before a list is created: a large array may be a view of a single value
            raise _TooLarge(self._max_bytes)
        return self._plain(value.tolist(), depth)


class _TooLarge(Unencodable):
    """The event as a whole is too large, so there is no path."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"its size is over the {max_bytes:,} that max_batch_bytes allows")

    def within(self, step: str) -> Unencodable:
        return self


def _refused(value: object) -> Unencodable:
    return Unencodable(f"{shown(value)} is not JSON")


def _in_order(values: list[Any]) -> list[Any]:
    try:
        return sorted(values)  # so that equal sets have the same JSON in every process
    except TypeError:
        return values


def loaded(module: str, name: str) -> Any:
    """A class for `isinstance`, or an empty tuple if its module is not loaded: then no value can be an instance.

    A fork in another thread could interrupt an import here, and programs that never use the class would pay for it.
    """
    return getattr(sys.modules.get(module), name, ())


def from_date(value: Any) -> str | None:
    """A datetime or a date as an ISO 8601 string; None for any other value."""
    kind = loaded("datetime", "datetime")
    if isinstance(value, kind):
        if type(value) is not kind:
            # A subclass may not support what its base class does, like pandas' for a naive datetime.
            value = kind(
                *(value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond),
                tzinfo=value.tzinfo,
                fold=value.fold,
            )
        try:
            moment = value.astimezone(sys.modules["datetime"].timezone.utc)
        except (OverflowError, ValueError, OSError) as error:
            reraise_signal_error(error)
            raise Unencodable("the datetime is outside of the years 1 to 9999 in UTC") from None
        return f"{moment.replace(tzinfo=None).isoformat()}Z"
    if not isinstance(value, loaded("datetime", "date")):
        return None
    text: str = str.__str__(value.isoformat())
    return text


def is_missing(value: Any) -> bool:
    """True for pandas' markers of missing values."""
    pandas: Any = sys.modules.get("pandas")
    return pandas is not None and (value is getattr(pandas, "NaT", pandas) or value is getattr(pandas, "NA", pandas))
