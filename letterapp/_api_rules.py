"""What the API requires of a request: the key, the JSON, the fields of events and emails.

Responsible for: the rules by which the inbox and the ingestion server for tests refuse a request. Pure functions.
Not responsible for: HTTP, what a refusal looks like (`_inbox.wire`, `_testing.server`). The client does not use this
module, so that a wrong rule cannot pass unnoticed on both sides.
"""

from __future__ import annotations

import json
from typing import Any, Dict, NamedTuple, NoReturn, Type

Kinds = Dict[str, Type[object]]

MAX_ITEMS = 100  # in one batch
_MAX_DIGITS = 4300  # of an integer, as in Python: converting more takes quadratic time

_COMMON: Kinds = {"userId": str, "messageId": str, "timestamp": str}
_REQUIRED: dict[str, Kinds] = {  # of each type of item
    "identify": {**_COMMON, "traits": dict},
    "group": {**_COMMON, "accountId": str, "traits": dict},
    "track": {**_COMMON, "event": str, "properties": dict},
}
_OPTIONAL: dict[str, Kinds] = {"identify": {"email": str, "timezone": str}, "group": {"name": str}, "track": {}}
_OF_MAIL: Kinds = {
    **dict.fromkeys(("html", "text", "from", "fromName", "replyTo", "tag", "idempotencyKey"), str),
    **dict.fromkeys(("headers", "metadata"), dict),
}
_KINDS: dict[type, str] = {str: "a string", dict: "an object"}


class Problem(NamedTuple):
    """Why the API refuses a body: a word for programs, and a text."""

    reason: str
    message: str


def key_of(authorization: str) -> str:
    """The API key in the value of an ``Authorization`` header; empty if there is none."""
    scheme, _, key = authorization.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def parsed(body: bytes) -> Any:
    """``body`` as a value. Raises `ValueError` if it is not JSON, or a number in it is too large."""
    try:
        return json.loads(body, parse_constant=_no_constant, parse_int=_integer, parse_float=_number)
    except RecursionError:
        raise ValueError("it is nested too deeply")


def batch_problem(body: Any) -> Problem | None:
    """Why the API refuses ``body`` at ``/v1/batch``; None if it does not."""
    if not isinstance(body, dict) or not isinstance(body.get("batch"), list):
        return Problem("batch", 'the body must be {"batch": [item, ...]}')
    unknown = sorted(set(body) - {"batch"})
    if unknown:
        return Problem("unknown_field", f"{unknown[0][:100]!r}: the body may only have the field 'batch'")
    items: list[Any] = body["batch"]
    if not 1 <= len(items) <= MAX_ITEMS:
        return Problem("batch_size", f"batch: {len(items)} items; it must have 1 to {MAX_ITEMS}")
    problems = (_item_problem(f"batch[{number}]", item) for number, item in enumerate(items))
    return next(filter(None, problems), None)


def mail_problem(body: Any) -> Problem | None:
    """Why the API refuses ``body`` at ``/v1/send``; None if it does not."""
    if not isinstance(body, dict):
        return Problem("body", "the body must be an object")
    addresses = addresses_of(body)
    if not addresses or not all(isinstance(each, str) and each for each in addresses):
        return Problem("missing_field", "to: required, an address or a list of addresses")
    if not (body.get("html") or body.get("text")):
        return Problem("missing_field", "html or text: one of them is required")
    return _field_problem("", body, {"subject": str}, _OF_MAIL)


def addresses_of(mail: dict[str, Any]) -> list[Any]:
    """Whom ``mail`` is to."""
    to = mail.get("to")
    return to if isinstance(to, list) else [to]


def _item_problem(where: str, item: Any) -> Problem | None:
    if not isinstance(item, dict):
        return Problem("wrong_type", f"{where}: must be an object")
    kind = item.get("type")
    if not isinstance(kind, str) or kind not in _REQUIRED:
        return Problem("type", f"{where}.type: must be 'identify', 'group' or 'track'")
    return _field_problem(f"{where}.", item, _REQUIRED[kind], _OPTIONAL[kind])


def _field_problem(where: str, body: dict[str, Any], required: Kinds, optional: Kinds) -> Problem | None:
    for name, kind in required.items():
        value = body.get(name)
        if not isinstance(value, kind) or value == "":
            empty = " that is not empty" if kind is str else ""
            return Problem(
                "wrong_type" if name in body else "missing_field", f"{where}{name}: required, {_KINDS[kind]}{empty}"
            )
    for name, kind in optional.items():
        if name in body and not isinstance(body[name], kind):
            return Problem("wrong_type", f"{where}{name}: must be {_KINDS[kind]}")
    return None


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
