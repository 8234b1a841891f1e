"""The API's protocol as the server sees it: what a request has to look like, and how it is refused.

Responsible for: the checks of a request, the JSON of an error. Pure functions. Not responsible for: connections
(`connections`), what happens to an accepted request (`ingestion`).
"""

from __future__ import annotations

import json
import zlib
from typing import Any, Dict, NamedTuple, NoReturn

MAX_ITEMS = 100  # in one batch
MAX_BODY = 5_000_000  # bytes, before and after decompression; ten times what the Python client sends in one request
_MAX_DIGITS = 4300  # of an integer, as in Python: converting more takes quadratic time

Item = Dict[str, Any]

_REQUIRED: dict[str, dict[str, type]] = {
    "identify": {"traits": dict},
    "group": {"accountId": str, "traits": dict},
    "track": {"event": str, "properties": dict},
}
_OPTIONAL = {"identify": ("email", "timezone"), "group": ("name",), "track": ()}
_KINDS: dict[type, str] = {str: "a string that is not empty", dict: "an object"}
_MAIL_TEXTS = ("html", "text", "from", "fromName", "replyTo", "tag", "idempotencyKey")


class Refused(Exception):
    """A request is refused: the status and the fields of the error."""

    def __init__(self, status: int, code: str, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.reason = reason
        self.message = message

    def body(self) -> bytes:
        return error_body(self.code, self.reason, self.message)


class Mail(NamedTuple):
    """A checked body of ``/v1/send``."""

    fields: Item
    to: str
    key: str | None  # the idempotency key


def error_body(code: str, reason: str, message: str) -> bytes:
    """``{"error": {"code", "message", "reason"}}``, as the API answers."""
    return json.dumps({"error": {"code": code, "message": message, "reason": reason}}).encode()


def check_key(authorization: str) -> None:
    """Refuse a request without an API key. Any key is accepted."""
    scheme, _, key = authorization.partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise Refused(401, "unauthorized", "missing_key", "send the API key as: Authorization: Bearer <key>")


def decoded(body: bytes, encoding: str) -> bytes:
    """``body`` without its Content-Encoding. Refuses one that decompresses to more than `MAX_BODY`."""
    if encoding in ("", "identity"):
        return body
    if encoding != "gzip":
        raise Refused(415, "unsupported", "encoding", f"Content-Encoding {encoding[:40]!r} is not supported")
    unpacker = zlib.decompressobj(wbits=31)
    try:
        plain = unpacker.decompress(body, MAX_BODY + 1)
    except zlib.error as problem:
        raise Refused(400, "bad_request", "not_gzip", f"the body is not gzip: {problem}")
    if len(plain) > MAX_BODY:
        raise too_large()
    if not unpacker.eof:
        raise Refused(400, "bad_request", "not_gzip", "the body's gzip data is incomplete")
    return plain


def too_large() -> Refused:
    return Refused(413, "too_large", "body", f"the body has more than {MAX_BODY:,} bytes")


def batch(body: bytes) -> list[Item]:
    """The items of a body of ``/v1/batch``."""
    parsed = _parsed(body)
    if not isinstance(parsed, dict) or not isinstance(parsed.get("batch"), list):
        raise _invalid("batch", 'the body must be {"batch": [item, ...]}')
    items: list[Item] = parsed["batch"]
    unknown = sorted(set(parsed) - {"batch"})
    if unknown:
        raise _invalid("unknown_field", f"{unknown[0][:100]!r}: the body may only have the field 'batch'")
    if not 1 <= len(items) <= MAX_ITEMS:
        raise _invalid("batch_size", f"batch: {len(items)} items; it must have 1 to {MAX_ITEMS}")
    for number, item in enumerate(items):
        _check_item(f"batch[{number}]", item)
    return items


def mail(body: bytes) -> Mail:
    """The email of a body of ``/v1/send``."""
    fields = _parsed(body)
    if not isinstance(fields, dict):
        raise _invalid("body", "the body must be an object")
    to = fields.get("to")
    addresses: list[Any] = to if isinstance(to, list) else [to]
    if not addresses or not all(isinstance(each, str) and each for each in addresses):
        raise _invalid("missing_field", "to: required, an address or a list of addresses")
    if not isinstance(fields.get("subject"), str) or not fields["subject"]:
        raise _invalid("missing_field", "subject: required, a string that is not empty")
    if not (fields.get("html") or fields.get("text")):
        raise _invalid("missing_field", "html or text: one of them is required")
    for name in _MAIL_TEXTS:
        if name in fields and not isinstance(fields[name], str):
            raise _invalid("wrong_type", f"{name}: must be a string")
    for name in ("headers", "metadata"):
        if name in fields and not isinstance(fields[name], dict):
            raise _invalid("wrong_type", f"{name}: must be an object")
    return Mail(fields, ", ".join(addresses), fields.get("idempotencyKey"))


def _check_item(where: str, item: Any) -> None:
    if not isinstance(item, dict):
        raise _invalid("wrong_type", f"{where}: must be an object")
    kind = item.get("type")
    if not isinstance(kind, str) or kind not in _REQUIRED:
        raise _invalid("type", f"{where}.type: must be 'identify', 'group' or 'track'")
    for name, expected in {"userId": str, "messageId": str, "timestamp": str, **_REQUIRED[kind]}.items():
        value = item.get(name)
        if not isinstance(value, expected) or value == "":
            reason = "wrong_type" if name in item else "missing_field"
            raise _invalid(reason, f"{where}.{name}: a {kind} needs it, as {_KINDS[expected]}")
    for name in _OPTIONAL[kind]:
        if name in item and not isinstance(item[name], str):
            raise _invalid("wrong_type", f"{where}.{name}: must be a string")


def _parsed(body: bytes) -> Any:
    try:
        parsed = json.loads(body, parse_constant=_no_constant, parse_int=_integer, parse_float=_number)
    except RecursionError:
        raise Refused(400, "bad_request", "not_json", "the body is nested too deeply")
    except ValueError as problem:
        raise Refused(400, "bad_request", "not_json", f"the body is not JSON: {problem}")
    return parsed


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _number(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{digits[:40]} is out of range")
    return value


def _invalid(reason: str, message: str) -> Refused:
    return Refused(422, "invalid", reason, message)
