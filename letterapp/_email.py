"""One transactional email, posted at once, on the caller's thread.

Responsible for: the request of `Letter.send`, its checks and its retries. Not responsible for: anything queued.
"""

from __future__ import annotations

import time

from ._delivery.retry import Again, Delivered, GiveUp, judge
from ._encoding.json_text import Unencodable, as_bytes
from ._encoding.plain import Copier
from ._http.transport import Transport, Unreachable
from ._runtime.random_bytes import random_bytes
from .errors import LetterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ._config import Settings

RETRIES = 3  # if `max_retries` is None: the caller waits, so retries have to end
_NAMES = {
    "from_email": "from",
    "from_name": "fromName",
    "reply_to": "replyTo",
    "idempotency_key": "idempotencyKey",
}


def post_mail(settings: Settings, **fields: Any) -> dict[str, Any]:
    """Send the email that ``fields`` (arguments of `Letter.send`) describe; return the API's response.

    Only an email with an idempotency key is retried: without one, a retry could send the email twice.
    """
    given = {_NAMES.get(name, name): value for name, value in fields.items() if value is not None}
    mail, body = _encoded(given, settings)
    for name in ("to", "subject"):
        if not mail.get(name):
            raise LetterError(f"{name} is required")
    if not (mail.get("html") or mail.get("text")):
        raise LetterError("html or text is required")
    retries = RETRIES if settings.max_retries is None else settings.max_retries
    transport = Transport(settings)  # not a kept connection: that may need a retry, which is not always allowed
    try:
        return _post(transport, settings.timeout, body, retries if mail.get("idempotencyKey") else 0)
    finally:
        transport.close()


def _encoded(fields: dict[str, Any], settings: Settings) -> tuple[dict[str, Any], bytes]:
    """The ``fields`` of the request as plain values, and as JSON. Raises `LetterError` with the path of a value.

    `max_batch_bytes` limits their total size, not counting strings at the top level.
    """
    texts = sum(len(value) for value in fields.values() if type(value) is str)
    try:
        copy = Copier(settings.max_batch_bytes + texts, settings.default).copy(fields)
        return copy, as_bytes(copy)
    except Unencodable as problem:
        raise LetterError(f"send: {str(problem).lstrip('.')}") from None


def _post(transport: Transport, timeout: float, body: bytes, retries: int) -> dict[str, Any]:
    attempt = 0
    while True:
        try:
            outcome: Any = transport.post("/v1/send", body, timeout)
        except Unreachable as problem:
            outcome = problem
        jitter = int.from_bytes(random_bytes(2), "big") / 65536
        verdict = judge(outcome, attempt=attempt, max_retries=retries, items=1, now=time.time(), jitter=jitter)
        if isinstance(verdict, Delivered):
            return _answer(outcome.body)
        if isinstance(verdict, GiveUp):
            raise verdict.error
        assert isinstance(verdict, Again)
        time.sleep(verdict.seconds)
        attempt += 1


def _answer(body: str) -> dict[str, Any]:
    from json import loads

    try:
        answer = loads(body or "{}")
    except (ValueError, RecursionError):
        answer = {}
    return answer if isinstance(answer, dict) else {}
