"""The API's protocol as the server sees it: how a request is decoded, and how it is refused.

Responsible for: decoding and checking a request, the JSON of an error. Pure functions. Not responsible for: the API's
rules (`_api_rules`), connections (`connections`), what happens to an accepted request (`ingestion`).
"""

from __future__ import annotations

import json
import zlib
from typing import Any, Callable, Dict, NamedTuple

from .. import _api_rules as rules

MAX_BODY = 5_000_000  # bytes, before and after decompression; ten times what the Python client sends in one request

Item = Dict[str, Any]


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
    if not rules.key_of(authorization):
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
    fields: Item = _checked(body, rules.batch_problem)
    items: list[Item] = fields["batch"]
    return items


def mail(body: bytes) -> Mail:
    """The email of a body of ``/v1/send``."""
    fields: Item = _checked(body, rules.mail_problem)
    return Mail(fields, ", ".join(rules.addresses_of(fields)), fields.get("idempotencyKey"))


def _checked(body: bytes, problem_of: Callable[[Any], rules.Problem | None]) -> Any:
    try:
        parsed = rules.parsed(body)
    except ValueError as error:
        raise Refused(400, "bad_request", "not_json", f"the body is not JSON: {error}")
    problem = problem_of(parsed)
    if problem is not None:
        raise Refused(422, "invalid", problem.reason, problem.message)
    return parsed
