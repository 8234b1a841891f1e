"""A call becomes one event: checked, stamped, encoded to the bytes that travel.

Responsible for: the wire's items, the rules that turn Python values into JSON, the path of a value that cannot be
turned. Pure: no lock, no I/O, nothing per process, so any thread may call it and a fork cannot hurt it. Not responsible
for: queues, batches, what is done with an event that was refused.

Encoding happens once, in the call (docs/architecture.md, rule 6). What is encoded is a copy that has values of Python's
own types alone: so no other thread can change it meanwhile, and the C encoder runs nobody's code. Of flat properties,
the usual case, that is a `dict.copy`. Anything nested or unusual is copied by `_Copier`, which knows where it is and
can say so, and stops when no event may be so large. Whatever a foreign class raises costs its own event (`_within`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping as _Mapping

from ._runtime.random_bytes import random_bytes
from ._runtime.signal_errors import reraise_signal_error
from ._text import described, said, short, shown
from .errors import LetterError


def _never(value: object) -> Any:
    raise TypeError(f"{described(value)} is not plain")


try:
    # CPython's own encoder, held directly: `json.dumps` costs half as much again, and importing `json` costs more
    # than this whole package.
    from _json import encode_basestring as _quote
    from _json import make_encoder
except ImportError:  # PyPy
    from json.encoder import JSONEncoder
    from json.encoder import encode_basestring as _quote

    _encode = JSONEncoder(
        ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":"), default=_never
    ).encode
else:
    # By position, because the C type takes no keywords alike in every version: markers (no look-out for cycles: nesting
    # is bounded before), default, text encoder, indent, separators, sort_keys, skipkeys, allow_nan.
    _pieces = make_encoder(None, _never, _quote, None, ":", ",", False, False, False)

    def _encode(o: Any) -> str:
        return "".join(_pieces(o, 0))


TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import date, datetime
    from typing import Any, Callable, Iterable, Mapping, Optional, Union
    from uuid import UUID

    Properties = Optional[Mapping[str, Any]]
    Timestamp = Union[datetime, date, str, None]
    MessageId = Union[str, UUID, None]

MAX_DEPTH = 100  # levels of nesting; far above any event, far below the interpreter's own limit at any call depth
_REQUIRED = ("type", "userId", "messageId")
_FRAME = len(b'{"batch":[]}')  # what a request adds around a single event


class Unencodable(Exception):
    """A value is not JSON, or the event is too large; ``path`` says where: ``properties.cart[3].price``."""

    timestamp = message_id = ""  # those that the event would have had on the wire

    def __init__(self, problem: str, path: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.path = path

    def within(self, step: str) -> Unencodable:
        """Note that the value lay inside ``step``; called from the inside outward."""
        self.path = step + self.path
        return self

    def __str__(self) -> str:
        path = self.path if len(self.path) <= 200 else f"{self.path[:100]}...{self.path[-60:]}"
        return f"{path}: {self.problem}" if path else self.problem


class Encoder:
    """Encodes the three kinds of event.

    Each method returns the event's bytes, None when ``before_send`` dropped it, raises `LetterError` for a wrong
    argument and `Unencodable` for a value that JSON cannot carry. ``default`` is `json.dumps`'s, for such values.
    """

    def __init__(
        self,
        max_batch_bytes: int,
        before_send: Callable[[dict[str, Any]], dict[str, Any] | None] | None,
        default: Callable[[Any], Any] | None = None,
    ) -> None:
        self._max_bytes = max_batch_bytes - _FRAME
        self._before_send = before_send
        self._default = default

    def identify(
        self,
        user_id: str,
        email: str | None,
        traits: Properties,
        timezone: str | None,
        timestamp: Timestamp,
        message_id: MessageId,
    ) -> bytes | None:
        text = f'{{"type":"identify",{_optional("email", email)}{_optional("timezone", timezone)}"traits":'
        return self._finish(text, "traits", traits, user_id, timestamp, message_id)

    def group(
        self,
        user_id: str,
        account_id: str,
        name: str | None,
        traits: Properties,
        timestamp: Timestamp,
        message_id: MessageId,
    ) -> bytes | None:
        if type(account_id) is not str or not account_id:
            account_id = _argument("account_id", account_id, _text)
        text = f'{{"type":"group","accountId":{_quote(account_id)},{_optional("name", name)}"traits":'
        return self._finish(text, "traits", traits, user_id, timestamp, message_id)

    def track(
        self, user_id: str, event: str, properties: Properties, timestamp: Timestamp, message_id: MessageId
    ) -> bytes | None:
        if type(event) is not str or not event:
            event = _argument("event", event, _text)
        text = f'{{"type":"track","event":{_quote(event)},"properties":'
        return self._finish(text, "properties", properties, user_id, timestamp, message_id)

    def _finish(
        self,
        head: str,
        name: str,
        properties: Properties,
        user_id: str,
        timestamp: Timestamp,
        message_id: MessageId,
    ) -> bytes | None:
        if type(user_id) is not str or not user_id:
            user_id = _argument("user_id", user_id, _text)
        stamp = _now() if timestamp is None else _quote(_argument("timestamp", timestamp, _wire_time))
        identity = _new_id() if message_id is None else _quote(_argument("message_id", message_id, _wire_id))
        try:
            copy = self._copy(name, properties) if properties is not None else None
            try:
                data = (
                    f'{head}{_encode(copy) if copy is not None else "{}"},"userId":{_quote(user_id)},'
                    f'"timestamp":{stamp},"messageId":{identity}}}'
                ).encode()
            except (ValueError, TypeError) as error:  # nan, a lone surrogate, a huge int: nobody has looked so far
                reraise_signal_error(error)
                if isinstance(error, TypeError):  # a key
                    _copied(name, properties, self._max_bytes, self._default)
                raise _fault_of(copy, name, error) from None
            if self._before_send is None and len(data) <= self._max_bytes:
                return data
            return self._finish_unusual(data)
        except LetterError:
            raise
        except Exception as error:
            problem = _within("", error)
            problem.timestamp = _unquoted(stamp)
            problem.message_id = _unquoted(identity)
            raise problem from error.__cause__

    def _copy(self, name: str, properties: Any) -> dict[str, Any]:
        if type(properties) is dict and len(properties) <= _FEW:
            copy = properties.copy()
            size = 0
            for value in copy.values():
                kind = type(value)
                if kind is str:
                    size += len(value)
                elif kind not in _FLAT:
                    break
            else:
                if size <= self._max_bytes:
                    return copy
        return _copied(name, properties, self._max_bytes, self._default)

    def _finish_unusual(self, data: bytes) -> bytes | None:
        if self._before_send is not None:
            changed = self._change(self._before_send, data)
            if changed is None:
                return None
            data = changed
        if len(data) > self._max_bytes:
            raise Unencodable(
                f"the event is {len(data):,} bytes, over the {self._max_bytes:,} that max_batch_bytes leaves"
            )
        return data

    def _change(self, before_send: Callable[[dict[str, Any]], dict[str, Any] | None], data: bytes) -> bytes | None:
        # The function gets what would travel, decoded again: a copy, so that nothing of the caller's can change.
        from json import loads  # imported already, by the client's constructor

        try:
            item = before_send(loads(data))
        except Exception as error:  # the function is the application's; its failure costs this event alone
            reraise_signal_error(error)
            raise Unencodable(f"before_send raised {said(error)}") from error
        if item is None:
            return None
        try:
            copy = _Copier(self._max_bytes, self._default).copy(item)
            if type(copy) is not dict or not all(copy.get(key) and type(copy[key]) is str for key in _REQUIRED):
                raise Unencodable("before_send must return an event with its type, userId and messageId, or None")
            return _as_bytes(copy)
        except Unencodable as error:
            error.path = error.path.lstrip(".")
            raise


def copied_fields(
    name: str, fields: dict[str, Any], max_bytes: int, default: Callable[[Any], Any] | None
) -> dict[str, Any]:
    """Copy the fields of a request that is no event to plain values; `LetterError` with the path of what is none.

    ``max_bytes`` bounds them all together, texts excepted.
    """
    texts = sum(len(value) for value in fields.values() if type(value) is str)
    try:
        copy: dict[str, Any] = _Copier(max_bytes + texts, default).copy(fields)
        _as_bytes(copy)
    except Unencodable as problem:
        raise LetterError(f"{name}: {str(problem).lstrip('.')}") from None
    return copy


def to_json(copy: dict[str, Any]) -> bytes:
    """Encode what `copied_fields` returned."""
    return _encode(copy).encode()


def _as_bytes(copy: Any) -> bytes:
    try:
        return _encode(copy).encode()
    except ValueError as error:
        reraise_signal_error(error)
        raise _fault_of(copy, "", error) from None


# Arguments.


def _argument(name: str, value: Any, read: Callable[[str, Any], str]) -> str:
    """What ``read`` makes of an argument, or a `LetterError`, whatever the argument's class raises meanwhile."""
    try:
        return read(name, value)
    except LetterError:
        raise
    except Exception as error:
        reraise_signal_error(error)
        raise LetterError(f"{name} could not be read: {said(error)}") from error


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        if value is None:
            raise LetterError(f"{name} is required")
        raise LetterError(f"{name} must be a string, not {described(value)}")
    text = str.__str__(value)  # of a subclass, too, what the C encoder would take
    if not text:
        raise LetterError(f"{name} is required")
    return text


def _optional(name: str, value: str | None) -> str:
    if value is None:
        return ""
    if type(value) is not str:
        value = _argument(name, value, _optional_text)
    return f'"{name}":{_quote(value)},'


def _optional_text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise LetterError(f"{name} must be a string or None, not {described(value)}")
    return str.__str__(value)


def _unquoted(text: str) -> str:
    if "\\" not in text:
        return text[1:-1]
    from json import loads  # of a text that somebody made up

    plain: str = loads(text)
    return plain


# Time and identity.


def _now() -> str:
    """The moment of the call as a quoted ISO 8601 text in UTC, to the microsecond."""
    global _second
    seconds, rest = divmod(time.time_ns(), 1_000_000_000)
    known, text = _second  # one tuple, swapped whole: threads may race to write it, none can read half of it
    if known != seconds:
        text = time.strftime('"%Y-%m-%dT%H:%M:%S.', time.gmtime(seconds))
        _second = (seconds, text)
    return f'{text}{rest // 1000:06d}Z"'


_second = (0, "")


def _wire_time(name: str, timestamp: Any) -> str:
    """A datetime in UTC (a naive one is local time), a date as a date, text as it is."""
    if isinstance(timestamp, str):
        return str.__str__(timestamp)
    try:
        text = None if _is_missing(timestamp) else _from_date(timestamp)
    except Unencodable as error:
        raise LetterError(f"{name}: {error.problem}") from None
    if text is None:
        raise LetterError(f"{name} must be a datetime, a date or a string, not {short(timestamp)}")
    return text


def _class(module: str, name: str) -> Any:
    """A class for `isinstance`, if its module is loaded: where it is not, no value can be of it.

    An import here could be torn by a fork in another thread, and would cost those who never use the class.
    """
    return getattr(sys.modules.get(module), name, ())


def _from_date(value: Any) -> str | None:
    """The text of a datetime or a date; None for all else."""
    kind = _class("datetime", "datetime")
    if isinstance(value, kind):
        if type(value) is not kind:
            # A subclass may refuse what its base does: pandas' does for a naive moment.
            value = kind(
                *(value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond),
                tzinfo=value.tzinfo,
                fold=value.fold,
            )
        try:
            moment = value.astimezone(sys.modules["datetime"].timezone.utc)
        except (OverflowError, ValueError, OSError) as error:
            reraise_signal_error(error)
            raise Unencodable("a datetime outside the years 1 to 9999 in UTC") from None
        return f"{moment.replace(tzinfo=None).isoformat()}Z"
    if not isinstance(value, _class("datetime", "date")):
        return None
    text: str = str.__str__(value.isoformat())
    return text


def _is_missing(value: Any) -> bool:
    """True for pandas' marks of a value that is not there."""
    pandas: Any = sys.modules.get("pandas")
    return pandas is not None and (value is getattr(pandas, "NaT", pandas) or value is getattr(pandas, "NA", pandas))


_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}


def _new_id() -> str:
    """A random UUID, version 4 (RFC 9562, 5.4), quoted.

    From the kernel at each call: a generator of one's own would repeat itself in forked children, and `uuid.uuid4`
    costs four times as much.
    """
    digits = random_bytes(16).hex()
    return f'"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{_VARIANT[digits[16]]}{digits[17:20]}-{digits[20:]}"'


def _wire_id(name: str, message_id: Any) -> str:
    if isinstance(message_id, str) and str.__len__(message_id):
        return str.__str__(message_id)
    if isinstance(message_id, _class("uuid", "UUID")):
        return str.__str__(str(message_id))
    raise LetterError(f"{name} must be a string that is not empty, or a UUID, not {short(message_id)}")


# Values.


_FLAT = frozenset((str, int, float, bool, type(None)))
_TEXTS = frozenset((str,))
_FEW = 1000  # entries of flat properties, for which nothing but the length of texts needs counting
_LARGE = 1 << 256  # an int from which on its digits are counted


def _copied(name: str, properties: Any, max_bytes: int, default: Callable[[Any], Any] | None) -> dict[str, Any]:
    try:
        if type(properties) is not dict and not isinstance(properties, _Mapping):
            raise LetterError(f"{name} must be a dict or None, not {described(properties)}")
        copy: dict[str, Any] = _Copier(max_bytes, default).copy_mapping(properties)
        return copy
    except LetterError:
        raise
    except Exception as error:
        raise _within(name, error) from error


def _within(step: str, error: Exception) -> Unencodable:
    """The report of what came up while the value at ``step`` was read: whatever its class raised, it is no JSON."""
    if not isinstance(error, Unencodable):
        reraise_signal_error(error)
        error = Unencodable(f"could not be read: {said(error)}")
    return error.within(step)


class _Copier:
    """Copies the values of one event to plain ones, by the rules in docs/configuration.md, or raises `Unencodable`.

    It counts what they take as JSON at the least and stops above ``max_bytes``: what is small in memory may be endless
    as JSON, as a list is that holds another one twice, and so on. It never counts more than they take.
    """

    def __init__(self, max_bytes: int, default: Callable[[Any], Any] | None) -> None:
        self._max_bytes = max_bytes
        self._left = max_bytes
        self._default = default

    def copy(self, value: Any) -> Any:
        try:
            return self._plain(value, MAX_DEPTH)
        except Exception as error:
            raise _within("", error) from error

    def copy_mapping(self, value: Any) -> dict[str, Any]:
        return self._fields(value.copy(), MAX_DEPTH) if type(value) is dict else self._mapping(value, MAX_DEPTH)

    def _plain(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind in _FLAT:
            if kind is str:
                self._spend(len(value))
            elif kind is int:
                self._spend(value.bit_length() >> 2)
            return value
        if depth == 0:
            raise Unencodable(f"nested deeper than {MAX_DEPTH} levels, or inside itself")
        if kind is dict:
            return self._fields(value.copy(), depth)
        if kind is list:
            return self._items(value.copy(), depth)
        if kind is tuple:
            return self._items(list(value), depth)
        return self._unusual(value, depth)

    def _fields(self, fields: dict[Any, Any], depth: int) -> dict[str, Any]:
        """Make the values of ``fields``, which nobody else has, plain."""
        self._spend(5 * len(fields) or 1)  # each with two quotes, a colon, a comma, and a character at least
        if not _TEXTS.issuperset(map(type, fields)):
            fields = {_key(key): value for key, value in fields.items()}
        self._spend(sum(map(len, fields)))
        self._each(fields, fields.items(), depth, ".%s")
        return fields

    def _items(self, items: list[Any], depth: int) -> list[Any]:
        """Make ``items``, which nobody else has, plain."""
        self._spend(2 * len(items) or 1)
        self._each(items, enumerate(items), depth, "[%d]")
        return items

    def _each(self, holder: Any, pairs: Iterable[tuple[Any, Any]], depth: int, place: str) -> None:
        """Make each value of ``pairs``, the keys and values of ``holder``, plain. ``place`` names it in an error."""
        size = 0
        for at, value in pairs:
            kind = type(value)
            if kind is str:
                size += len(value)
            elif kind is int:
                if not -_LARGE < value < _LARGE:
                    size += value.bit_length() >> 2
            elif kind not in _FLAT:
                try:
                    holder[at] = self._plain(value, depth - 1)
                except Exception as error:
                    raise _within(place % at, error) from error
        self._spend(size)

    def _spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise _TooLarge(self._max_bytes)

    def _mapping(self, mapping: Any, depth: int) -> dict[str, Any]:
        items = getattr(type(mapping), "items", None)
        if items is dict.items or items is getattr(_class("collections", "OrderedDict"), "items", None):
            return self._fields(dict.copy(mapping), depth)  # at once, as no other thread can change it
        return self._fields_of(mapping.items(), depth)

    # What a foreign class yields may be without an end, and made for the occasion: each is dealt with as it comes.

    def _fields_of(self, pairs: Any, depth: int) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for key, value in pairs:
            name = _key(key)
            self._spend(5 + len(name))
            try:
                fields[name] = self._plain(value, depth - 1)
            except Exception as error:
                raise _within(f".{name}", error) from error
        return fields

    def _items_of(self, values: Any, depth: int) -> list[Any]:
        items: list[Any] = []
        for value in values:
            self._spend(2)
            try:
                items.append(self._plain(value, depth - 1))
            except Exception as error:
                raise _within(f"[{len(items)}]", error) from error
        return items

    def _unusual(self, value: Any, depth: int) -> Any:
        """What is neither JSON's own nor refused: subclasses, dates, ids, decimals, enums, sets, dataclasses, ..."""
        if isinstance(value, _class("enum", "Enum")):
            return self._plain(value.value, depth - 1)
        if isinstance(value, str):
            return self._plain(str.__str__(value), depth)
        if isinstance(value, int):
            return self._plain(int.__index__(value), depth)
        if isinstance(value, (float, _class("decimal", "Decimal"))):
            return float(value)
        if isinstance(value, _class("uuid", "UUID")):
            return self._plain(str.__str__(str(value)), depth)
        if _is_missing(value):
            return None
        day = _from_date(value)
        if day is not None:
            return self._plain(day, depth)
        if isinstance(value, (list, tuple)):
            return self._items_of(value, depth)
        if isinstance(value, (set, frozenset)):
            return _in_order(self._items_of(list(value) if type(value) in (set, frozenset) else value, depth))
        if hasattr(type(value), "__dataclass_fields__"):
            # Not all that stands there: class variables do too, and arguments of `__init__` alone, a password perhaps.
            fields = sys.modules["dataclasses"].fields(value)
            return self._fields({field.name: getattr(value, field.name) for field in fields}, depth)
        if isinstance(value, _Mapping):
            return self._mapping(value, depth)
        return self._foreign(value, depth)

    def _foreign(self, value: Any, depth: int) -> Any:
        """Classes that are known by what they can do: numpy's, pandas' and their like; then the application's turn."""
        kind = type(value)
        if hasattr(kind, "tolist") and hasattr(kind, "dtype"):
            sort = getattr(value.dtype, "kind", "")
            if value.shape:
                return self._array(value, sort, depth)
            # In nanoseconds a moment would be an int. So would a span, which is left to the application.
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
        if 2 * count > self._left:  # before there is a list of them: one value may stand for all of a large array
            raise _TooLarge(self._max_bytes)
        return self._plain(value.tolist(), depth)


class _TooLarge(Unencodable):
    """Of no single value: it has no path."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"its size is over the {max_bytes:,} that max_batch_bytes leaves")

    def within(self, step: str) -> Unencodable:
        return self


def _refused(value: object) -> Unencodable:
    return Unencodable(f"{shown(value)} is not JSON")


def _key(key: Any) -> str:
    """As `json.dumps` writes keys."""
    if isinstance(key, str):
        return str.__str__(key)
    if key is None:
        return "null"
    if isinstance(key, bool):
        return "true" if key else "false"
    if isinstance(key, int):
        return int.__repr__(key)
    if isinstance(key, float):
        if not _is_finite(key):
            raise Unencodable(f"the key {float.__repr__(key)} is not JSON")
        return float.__repr__(key)
    raise Unencodable(f"{shown(key)} is no key of JSON")


def _in_order(values: list[Any]) -> list[Any]:
    try:
        return sorted(values)  # so that the same set is the same text in each process
    except TypeError:
        return values


# What the C encoder refuses.


def _fault_of(copy: Any, name: str, error: Exception) -> Unencodable:
    """The report of the value in ``copy`` for which ``error`` was raised."""
    fault = _find_fault(copy)
    if fault is not None:
        return fault.within(name)
    if isinstance(error, UnicodeEncodeError):
        return _surrogate(error)  # in another argument
    return Unencodable(f"could not be read: {said(error)}", name)


def _find_fault(value: Any) -> Unencodable | None:
    if type(value) is dict:
        for key, item in value.items():
            fault = _fault_in(key)
            if fault is not None:
                return fault
            fault = _find_fault(item)
            if fault is not None:
                return fault.within(f".{_key(key)}")
    elif type(value) is list:
        for index, item in enumerate(value):
            fault = _find_fault(item)
            if fault is not None:
                return fault.within(f"[{index}]")
    return _fault_in(value)


def _fault_in(value: Any) -> Unencodable | None:
    try:
        if isinstance(value, str):
            str.encode(value)
        elif isinstance(value, int):
            int.__repr__(value)
        elif isinstance(value, float) and not _is_finite(value):
            return Unencodable(f"{float.__repr__(value)} is not JSON")
    except UnicodeEncodeError as error:
        return _surrogate(error)
    except ValueError as error:  # CPython's limit on digits
        reraise_signal_error(error)
        return Unencodable(str(error))
    return None


def _is_finite(number: float) -> bool:
    return float.__sub__(number, number) == 0.0


def _surrogate(error: UnicodeEncodeError) -> Unencodable:
    around = error.object[max(0, error.start - 20) : error.start + 10]
    return Unencodable(f"a lone surrogate is not text: {around!r}")
