"""`message_id`, which derives an event's id from what the event is about.

Responsible for: the ids and the parts that they are derived from. Not responsible for: random ids, and which ids a call
accepts (`_encoding`).

Imported when the function is first used, because `hashlib` takes longer to import than this whole package.
"""

from __future__ import annotations

from functools import partial
from hashlib import sha1 as _any_sha1
from operator import index

from ._encoding.json_text import quote
from ._encoding.plain import loaded
from ._runtime.lazy_module import LazyModule
from ._runtime.signal_errors import reraise_signal_error
from ._text import kind_of, said, short
from .errors import LetterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing
    import uuid
else:
    typing, uuid = map(LazyModule, ("typing", "uuid"))  # as in `_client`

# uuid5(NAMESPACE_URL, "https://letter.app/message_id"). It never changes: jobs that are repeated rely on it.
NAMESPACE = bytes.fromhex("5fc0807d5fe751228e371ba4e34439c1")
_LARGEST = 1 << 1024  # Python can be told to write no integer of more than 640 digits; this has 309

try:
    # Systems that restrict SHA-1 to uses other than security refuse it otherwise.
    _any_sha1(usedforsecurity=False)
    _sha1 = partial(_any_sha1, usedforsecurity=False)
except TypeError:  # Python 3.8
    _sha1 = _any_sha1  # type: ignore[assignment]


def message_id(*parts: typing.Union[str, int, uuid.UUID]) -> str:
    """An id for an event, derived from ``parts``: the same parts always give the same id, and others another one.

    Pass it as ``message_id`` to `Letter.track`, `Letter.identify` or `Letter.group` where the same event may be tracked
    more than once: in a task that is retried, or a job that is run again. The API keeps one event per id.

        letter.track(user, "Order Completed", message_id=message_id("order completed", order_id))

    Take parts that say which event it is, wherever and whenever the code runs: the event's name and the primary keys of
    the rows that it comes from. docs/configuration.md shows which parts are not enough.

    Args:
        parts: One or more strings, integers (numpy's too), booleans or `uuid.UUID`. However they are split, other parts
            give another id: ``("a", "bc")`` and ``("ab", "c")`` differ, as do ``1``, ``"1"`` and ``True``. A `UUID`
            gives the same id as its string.

    Returns:
        A UUID of version 5 (RFC 9562, 5.5), as a string. Its name is ``parts`` as JSON without spaces, encoded as
        UTF-8, and its namespace is ``5fc0807d-5fe7-5122-8e37-1ba4e34439c1``. So it is the same on every Python and
        every system, and programs in other languages can derive it.

    Raises:
        LetterError: There are no parts, or one has another type. ``None`` is refused because a missing key would give
            many events the same id, a ``float`` because ``42.0`` and ``42`` are different parts, a ``datetime``
            because its text depends on its time zone.

    Does not block, and has no state: any thread and any process may call it.
    """
    if not parts:
        raise LetterError("message_id needs one part or more, such as the event's name and the id of its row")
    texts = []
    for part in parts:
        if type(part) is str:
            texts.append(quote(part))
        elif type(part) is int and -_LARGEST < part < _LARGEST:
            texts.append(str(part))
        else:
            texts.append(_unusual(len(texts), part))
    try:
        name = f"[{','.join(texts)}]".encode()
    except UnicodeEncodeError as error:
        raise LetterError(
            f"message_id: a part has a lone surrogate: {error.object[error.start : error.end]!r}"
        ) from None
    digest = _sha1(NAMESPACE + name).digest()
    digits = (digest[:6] + bytes((digest[6] & 0x0F | 0x50, digest[7], digest[8] & 0x3F | 0x80)) + digest[9:16]).hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


_ADVICE = {
    "NoneType": "its value is missing",
    "float": "round it, or pass its text",
    "bytes": "decode it, or pass its hex()",
    "datetime": "pass its isoformat(), in UTC",
    "date": "pass its isoformat()",
    "Decimal": "pass its text",
}


def _unusual(position: int, part: object) -> str:
    """A part as JSON that is not exactly a `str` or a small `int`."""
    try:
        text = _as_json(part)
    except Exception as error:  # a method of a foreign class
        reraise_signal_error(error)
        raise LetterError(f"message_id: part {position + 1} could not be read: {said(error)}") from error
    if text is not None:
        return text
    if isinstance(part, int):
        raise LetterError(f"message_id: part {position + 1} must have at most 308 digits")
    said_of_it = f"{short(part)}: {_ADVICE.get(kind_of(part), 'pass a string that identifies it')}"
    raise LetterError(
        f"message_id: part {position + 1} must be a string, an integer, a boolean or a UUID, not {said_of_it}"
    )


def _as_json(part: object) -> str | None:
    if isinstance(part, bool):
        return "true" if part else "false"
    if isinstance(part, str):
        return quote(str.__str__(part))
    if isinstance(part, loaded("uuid", "UUID")):
        return quote(str(part))
    if hasattr(type(part), "__index__"):  # of numpy too
        number = int.__int__(index(part))  # type: ignore[arg-type]
        return int.__repr__(number) if -_LARGEST < number < _LARGEST else None
    return None
