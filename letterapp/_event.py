"""A call becomes one event: checked, stamped, encoded to the bytes that travel.

Lives here: the wire's items, the rules that turn Python values into JSON, the path of a value that cannot be turned.
Pure: no lock, no I/O, nothing per process, so any thread may call it and a fork cannot hurt it. Never here: queues,
batches, what is done with an event that was refused.

Encoding happens once, in the call (docs/design.md, rule 5). Flat properties, the usual case, go straight to the C
encoder. Anything nested or unusual is first copied to plain values by `_plain`, which knows where it is and can say so.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping as _Mapping

from ._handlers import pass_on
from ._random import random_bytes
from .errors import LetterError

try:
    # CPython's own encoder, held directly: `json.dumps` costs half as much again, and importing `json` costs more
    # than this whole package.
    from _json import encode_basestring as _quote
    from _json import make_encoder
except ImportError:  # PyPy
    from json.encoder import JSONEncoder
    from json.encoder import encode_basestring as _quote

    _encode = JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")).encode
else:
    # By position, because the C type takes no keywords alike in every version: markers (no look-out for cycles: nesting
    # is bounded before), default, text encoder, indent, separators, sort_keys, skipkeys, allow_nan.
    _pieces = make_encoder(None, repr, _quote, None, ":", ",", False, False, False)

    def _encode(o: Any) -> str:
        return "".join(_pieces(o, 0))


TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import date, datetime
    from typing import Any, Callable, Mapping, Optional, Union
    from uuid import UUID

    Properties = Optional[Mapping[str, Any]]
    Timestamp = Union[datetime, date, str, None]
    MessageId = Union[str, UUID, None]

MAX_DEPTH = 100  # levels of nesting; far above any event, far below the interpreter's own limit at any call depth
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
    argument and `Unencodable` for a value that JSON cannot carry.
    """

    def __init__(
        self, max_batch_bytes: int, before_send: Callable[[dict[str, Any]], dict[str, Any] | None] | None
    ) -> None:
        self._max_bytes = max_batch_bytes - _FRAME
        self._before_send = before_send

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
            _wrong_text("account_id", account_id)
        text = f'{{"type":"group","accountId":{_quote(account_id)},{_optional("name", name)}"traits":'
        return self._finish(text, "traits", traits, user_id, timestamp, message_id)

    def track(
        self, user_id: str, event: str, properties: Properties, timestamp: Timestamp, message_id: MessageId
    ) -> bytes | None:
        if type(event) is not str or not event:
            _wrong_text("event", event)
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
            _wrong_text("user_id", user_id)
        stamp = _now() if timestamp is None else _quote(_wire_time(timestamp))
        identity = _new_id() if message_id is None else _quote(_wire_id(message_id))
        try:
            text = (
                f'{head}{_object(name, properties)},"userId":{_quote(user_id)},'
                f'"timestamp":{stamp},"messageId":{identity}}}'
            )
            return self._as_bytes(text)
        except Unencodable as problem:
            problem.timestamp = stamp[1:-1] if timestamp is None else _wire_time(timestamp)
            problem.message_id = identity[1:-1] if message_id is None else _wire_id(message_id)
            raise

    def _as_bytes(self, text: str) -> bytes | None:
        try:
            data = text.encode()
        except UnicodeEncodeError as error:  # in another argument: the properties have been looked at
            raise _surrogate(error) from None
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

    @staticmethod
    def _change(before_send: Callable[[dict[str, Any]], dict[str, Any] | None], data: bytes) -> bytes | None:
        # The function gets what would travel, decoded again: a copy, so that nothing of the caller's can change.
        from json import loads  # imported already, by the client's constructor

        try:
            item = before_send(loads(data))
        except Exception as error:  # the function is the application's; its failure costs this event alone
            pass_on(error)
            raise Unencodable(f"before_send raised {error!r}") from error
        if item is None:
            return None
        if not isinstance(item, dict) or not all(
            isinstance(item.get(key), str) for key in ("type", "userId", "messageId")
        ):
            raise Unencodable("before_send must return an event with its type, userId and messageId, or None")
        try:
            return _encode(_plain(item, MAX_DEPTH)).encode()
        except Unencodable as error:
            error.path = error.path.lstrip(".")
            raise


def to_json(name: str, fields: dict[str, Any]) -> bytes:
    """Encode a request that is no event; `LetterError` with the path of what cannot be written."""
    try:
        return _encode(_plain(fields, MAX_DEPTH)).encode()
    except Unencodable as problem:
        raise LetterError(f"{name}: {str(problem).lstrip('.')}") from None


def _wrong_text(name: str, value: object) -> None:
    if isinstance(value, str) and value:
        return  # a subclass of str: the C encoder takes it
    if value is None or value == "":
        raise LetterError(f"{name} is required")
    raise LetterError(f"{name} must be a string, not {type(value).__name__}: {_short(value)}")


def _optional(name: str, value: str | None) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise LetterError(f"{name} must be a string or None, not {type(value).__name__}: {_short(value)}")
    return f'"{name}":{_quote(value)},'


def _short(value: object) -> str:
    try:
        text = repr(value)
    except Exception as error:  # a foreign __repr__ must not hide what is wrong
        pass_on(error)
        return "(its repr failed)"
    return text if len(text) <= 80 else f"{text[:77]}..."


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


def _wire_time(timestamp: Timestamp) -> str:
    """A datetime in UTC (a naive one is local time), a date as a date, text as it is."""
    if isinstance(timestamp, str):
        return timestamp
    try:
        text = _from_date(timestamp)
    except Unencodable as error:
        raise LetterError(f"timestamp: {error.problem}") from None
    if text is None:
        raise LetterError(f"timestamp must be a datetime, a date or a string, not {_short(timestamp)}")
    return text


def _class(module: str, name: str) -> Any:
    """A class for `isinstance`, if its module is loaded: where it is not, no value can be of it.

    An import here could be torn by a fork in another thread, and would cost those who never use the class.
    """
    return getattr(sys.modules.get(module), name, ())


def _from_date(value: Any) -> str | None:
    if isinstance(value, _class("datetime", "datetime")):
        try:
            moment = value.astimezone(sys.modules["datetime"].timezone.utc)
        except (OverflowError, ValueError, OSError):
            raise Unencodable(f"{_short(value)} is outside the years 1 to 9999 in UTC") from None
        return f"{moment.replace(tzinfo=None).isoformat()}Z"
    return str(value.isoformat()) if isinstance(value, _class("datetime", "date")) else None


_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}


def _new_id() -> str:
    """A random UUID, version 4 (RFC 9562, 5.4), quoted.

    From the kernel at each call: a generator of one's own would repeat itself in forked children, and `uuid.uuid4`
    costs four times as much.
    """
    digits = random_bytes(16).hex()
    return f'"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{_VARIANT[digits[16]]}{digits[17:20]}-{digits[20:]}"'


def _wire_id(message_id: MessageId) -> str:
    if isinstance(message_id, str) and message_id:
        return message_id
    if isinstance(message_id, _class("uuid", "UUID")):
        return str(message_id)
    raise LetterError(f"message_id must be a string that is not empty, or a UUID, not {_short(message_id)}")


# Values.


_FLAT = frozenset((str, int, float, bool, type(None)))


def _object(name: str, properties: Properties) -> str:
    if properties is None:
        return "{}"
    if type(properties) is dict:
        try:
            for key, value in properties.items():
                if type(key) is not str or type(value) not in _FLAT:
                    break
            else:
                text = _encode(properties)
                text.encode()
                return text
        except (ValueError, RuntimeError) as error:
            # nan, a lone surrogate, a huge int, a dict that another thread changes: the long way says which
            pass_on(error)
    elif not isinstance(properties, _Mapping):
        raise LetterError(f"{name} must be a dict or None, not {type(properties).__name__}: {_short(properties)}")
    try:
        return _encode(_plain(properties, MAX_DEPTH))
    except Unencodable as error:
        raise error.within(name)
    except Exception as error:  # whatever a foreign class does while it is read
        pass_on(error)
        raise Unencodable(f"could not be read: {error!r}", name) from error


def _plain(value: Any, depth: int) -> Any:
    """Copy ``value`` to what JSON knows, by the rules in docs/configuration.md, or raise `Unencodable`."""
    kind = type(value)
    if kind is str:
        return _checked_text(value)
    if kind is int:
        return _checked_int(value)
    if kind is float:
        return _checked_float(value)
    if value is None or kind is bool:
        return value
    if depth == 0:
        raise Unencodable(f"nested deeper than {MAX_DEPTH} levels, or inside itself")
    if kind is dict:
        return {_key(key): _step(f".{key}", item, depth) for key, item in list(value.items())}
    if kind is list or kind is tuple:
        return [_step(f"[{index}]", item, depth) for index, item in enumerate(value)]
    return _unusual(value, depth)


def _step(step: str, value: Any, depth: int) -> Any:
    if type(value) in (bool, type(None)):
        return value
    try:
        return _plain(value, depth - 1)
    except Unencodable as error:
        raise error.within(step)


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise Unencodable(f"the key {_short(key)} is not a string")
    return _checked_text(str.__str__(key))


def _checked_text(text: str) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise _surrogate(error) from None
    return text


def _surrogate(error: UnicodeEncodeError) -> Unencodable:
    around = error.object[max(0, error.start - 20) : error.start + 10]
    return Unencodable(f"a lone surrogate is not text: {around!r}")


def _checked_float(number: float) -> float:
    if number - number != 0.0:  # nan and the infinities
        raise Unencodable(f"{float.__repr__(number)} is not JSON")
    return number


def _checked_int(number: int) -> int:
    try:
        int.__repr__(number)
    except ValueError as error:  # CPython's limit on digits
        raise Unencodable(str(error)) from None
    return number


def _unusual(value: Any, depth: int) -> Any:
    """What is neither JSON's own nor refused: subclasses, dates, ids, decimals, enums, sets, dataclasses, mappings."""
    if isinstance(value, _class("enum", "Enum")):
        return _plain(value.value, depth - 1)
    if isinstance(value, str):
        return _checked_text(str.__str__(value))
    if isinstance(value, int):
        return _checked_int(int.__index__(value))
    if isinstance(value, (float, _class("decimal", "Decimal"))):
        return _checked_float(float(value))
    if isinstance(value, _class("uuid", "UUID")):
        return str(value)
    day = _from_date(value)
    if day is not None:
        return day
    if isinstance(value, (list, tuple)):
        return _plain(list(value), depth)
    if isinstance(value, (set, frozenset)):
        return _plain(_in_order(value), depth)
    if hasattr(type(value), "__dataclass_fields__"):
        # Not all that stands there: class variables do too, and arguments of `__init__` alone, a password perhaps.
        fields = sys.modules["dataclasses"].fields(value)
        return _plain({field.name: getattr(value, field.name) for field in fields}, depth)
    if isinstance(value, _Mapping):
        return _plain(dict(value), depth)
    raise Unencodable(f"{_short(value)} ({type(value).__name__}) is not JSON")


def _in_order(values: Any) -> Any:
    try:
        return sorted(values)  # so that the same set is the same text in each process
    except TypeError:
        return list(values)
