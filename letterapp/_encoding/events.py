"""Encoding of a call as one event: check the arguments, add timestamp and ID, encode to the bytes that are sent.

Responsible for: the items of the wire format, the arguments of a call, timestamps and message IDs. Not responsible for:
which values JSON can represent (`plain`, `json_text`), queues, batches, reporting a refused event.

An event is encoded once, in the call (docs/architecture.md, rule 6). Properties of plain types and bounded size are
encoded as they are, by C code during which no other thread runs. Anything else is first copied to plain values by
`Copier`, which knows the path of each value for error messages, and stops when the event would be too large. So the C
encoder runs no code of other classes.

No lock, no I/O, no state of the process except a cached timestamp: any thread may call, before or after a fork.
"""

from __future__ import annotations

import time

from .._runtime.random_bytes import random_bytes
from .._runtime.signal_errors import reraise_signal_error
from .._text import described, said, short
from ..errors import LetterError
from .json_text import Unencodable, as_bytes, encode, fault_of, is_plain, quote
from .plain import FLAT, Copier, copied, from_date, is_missing, loaded, within

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import date, datetime
    from typing import Any, Callable, Mapping, Optional, Union
    from uuid import UUID

    Properties = Optional[Mapping[str, Any]]
    Timestamp = Union[datetime, date, str, None]
    MessageId = Union[str, UUID, None]

# By type: the texts that an event must have, those that it may have, and the object.
_FORMS: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "identify": (("userId", "timestamp", "messageId"), ("email", "timezone"), "traits"),
    "group": (("userId", "timestamp", "messageId", "accountId"), ("name",), "traits"),
    "track": (("userId", "timestamp", "messageId", "event"), (), "properties"),
}
_FRAME = len(b'{"batch":[]}')  # bytes that a request adds to a single event
_FEW = 1000  # up to this many entries, only the length of strings needs counting in flat properties
_NUMBERS = FLAT - {str}


class Encoder:
    """Encodes the three kinds of event.

    Each method returns the event's bytes, or None if ``before_send`` dropped it. It raises `LetterError` for a wrong
    argument, and `Unencodable` for a value that JSON cannot represent. ``default`` converts such values, like that of
    `json.dumps`.
    """

    def __init__(
        self,
        max_batch_bytes: int,
        before_send: Callable[[dict[str, Any]], dict[str, Any] | None] | None,
        default: Callable[[Any], Any] | None = None,
        encode_plain: Callable[[Any], str] = encode,
    ) -> None:
        """``encode_plain``: `encode`, or a faster function with the same result."""
        self._encode_plain = encode_plain
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
        text = f'{{"type":"group","accountId":{quote(account_id)},{_optional("name", name)}"traits":'
        return self._finish(text, "traits", traits, user_id, timestamp, message_id)

    def track(
        self, user_id: str, event: str, properties: Properties, timestamp: Timestamp, message_id: MessageId
    ) -> bytes | None:
        if type(event) is not str or not event:
            event = _argument("event", event, _text)
        text = f'{{"type":"track","event":{quote(event)},"properties":'
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
        stamp = _now() if timestamp is None else quote(_argument("timestamp", timestamp, _wire_time))
        identity = _new_id() if message_id is None else quote(_argument("message_id", message_id, _wire_id))
        try:
            text = "{}" if properties is None else self._json(name, properties)
            try:
                data = (f'{head}{text},"userId":{quote(user_id)},"timestamp":{stamp},"messageId":{identity}}}').encode()
            except UnicodeEncodeError as error:
                raise fault_of(self._copy(name, properties), name, error) from None
            if self._before_send is None and len(data) <= self._max_bytes:
                return data
            return self._finish_unusual(data)
        except LetterError:
            raise
        except Exception as error:
            problem = within("", error)
            problem.timestamp = _unquoted(stamp)
            problem.message_id = _unquoted(identity)
            raise problem from error.__cause__

    def _json(self, name: str, properties: Any) -> str:
        if type(properties) is dict:
            try:
                if self._is_plain(properties):
                    return self._encode_plain(properties)
            except Exception as error:  # NaN, a set, a change by another thread: copying it shows which
                reraise_signal_error(error)
        copy = self._copy(name, properties)
        try:
            return encode(copy)
        except ValueError as error:
            reraise_signal_error(error)
            raise fault_of(copy, name, error) from None

    def _is_plain(self, properties: dict[Any, Any]) -> bool:
        """True if ``properties`` can be encoded as they are."""
        if len(properties) > _FEW:
            return False
        size = 0
        for value in properties.values():
            kind = type(value)
            if kind is str:
                size += len(value)
            elif kind in FLAT or (kind is list and len(value) <= _FEW and _NUMBERS.issuperset(map(type, value))):
                continue
            else:
                return is_plain(properties, self._max_bytes)
        return size <= self._max_bytes

    def _copy(self, name: str, properties: Any) -> Any:
        return None if properties is None else copied(name, properties, self._max_bytes, self._default)

    def _finish_unusual(self, data: bytes) -> bytes | None:
        if self._before_send is not None:
            changed = self._change(self._before_send, data)
            if changed is None:
                return None
            data = changed
        if len(data) > self._max_bytes:
            raise Unencodable(
                f"the event has {len(data):,} bytes, over the {self._max_bytes:,} that max_batch_bytes allows"
            )
        return data

    def _change(self, before_send: Callable[[dict[str, Any]], dict[str, Any] | None], data: bytes) -> bytes | None:
        # The function gets the event as it would be sent, decoded again: a copy, so it cannot change the caller's data.
        from json import loads  # already imported by the client's constructor

        try:
            item = before_send(loads(data))
        except Exception as error:  # an application's function; its failure affects only this event
            reraise_signal_error(error)
            raise Unencodable(f"before_send raised {said(error)}") from error
        if item is None:
            return None
        try:
            copy = Copier(self._max_bytes, self._default).copy(item)
            return as_bytes(_completed(copy))
        except Unencodable as error:
            error.path = error.path.lstrip(".")
            raise


def _completed(event: Any) -> dict[str, Any]:
    """What ``before_send`` returned, with empty properties or traits if it has removed them.

    Raises `Unencodable` for what the API would refuse. There it would be refused together with its batch, which would
    have to be sent in parts.
    """
    if type(event) is not dict or type(event.get("type")) is not str or event["type"] not in _FORMS:
        raise Unencodable("before_send must return an event, with its type, or None")
    required, optional, fields = _FORMS[event["type"]]
    for name in required:
        if type(event.get(name)) is not str or not event[name]:
            raise Unencodable(f"before_send must return an event with its {name}, a string that is not empty")
    completed = {name: value for name, value in event.items() if value is not None or name not in optional}
    for name in optional:
        if type(completed.get(name, "")) is not str:
            raise Unencodable(f"before_send must return a string as {name}, or none")
    if completed.get(fields) is None:
        completed[fields] = {}
    elif type(completed[fields]) is not dict:
        raise Unencodable(f"before_send must return a dict as {fields}")
    return completed


# Arguments.


def _argument(name: str, value: Any, read: Callable[[str, Any], str]) -> str:
    """The result of ``read`` for an argument. Raises only `LetterError`, whatever the argument's class raises."""
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
    text = str.__str__(value)  # for a subclass too, what the C encoder would read
    if not text:
        raise LetterError(f"{name} is required")
    return text


def _optional(name: str, value: str | None) -> str:
    if value is None:
        return ""
    if type(value) is not str:
        value = _argument(name, value, _optional_text)
    return f'"{name}":{quote(value)},'


def _optional_text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise LetterError(f"{name} must be a string or None, not {described(value)}")
    return str.__str__(value)


def _unquoted(text: str) -> str:
    if "\\" not in text:
        return text[1:-1]
    from json import loads  # only for a message_id or timestamp given by the caller

    plain: str = loads(text)
    return plain


# Timestamps and message IDs.


def _now() -> str:
    """The current time as a quoted ISO 8601 string in UTC, in microseconds."""
    global _second
    now = str(time.time_ns())
    seconds, text = _second  # one tuple, replaced atomically: threads may race to write it
    if now[:-9] != seconds:
        seconds = now[:-9]
        text = time.strftime('"%Y-%m-%dT%H:%M:%S.', time.gmtime(int(seconds or "0")))
        _second = (seconds, text)
    return f'{text}{now[-9:-3]}Z"'


_second = ("", "")


def _wire_time(name: str, timestamp: Any) -> str:
    """A datetime in UTC (a naive one is local time), a date as a date, a string unchanged."""
    if isinstance(timestamp, str):
        return str.__str__(timestamp)
    try:
        text = None if is_missing(timestamp) else from_date(timestamp)
    except Unencodable as error:
        raise LetterError(f"{name}: {error.problem}") from None
    if text is None:
        raise LetterError(f"{name} must be a datetime, a date or a string, not {short(timestamp)}")
    return text


_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}


def _new_id() -> str:
    """A random UUID, version 4 (RFC 9562, 5.4), quoted.

    From the kernel at each call: a generator in this process would repeat its numbers in forked children and in copies
    of a whole machine, and `uuid.uuid4` takes three times as long.
    """
    digits = random_bytes(16).hex()
    return f'"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{_VARIANT[digits[16]]}{digits[17:20]}-{digits[20:]}"'


def _wire_id(name: str, message_id: Any) -> str:
    if isinstance(message_id, str) and str.__len__(message_id):
        return str.__str__(message_id)
    if isinstance(message_id, loaded("uuid", "UUID")):
        return str.__str__(str(message_id))
    raise LetterError(f"{name} must be a non-empty string or a UUID, not {short(message_id)}")
