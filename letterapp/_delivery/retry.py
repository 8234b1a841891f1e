"""The retry policy: whether the outcome of a request means delivered, try again, split, or give up.

Responsible for: the rules. The functions are pure: the time and the jitter are arguments; no clock, no sleep, no
socket. Not responsible for: counting the tries of a batch (`in_flight`), sending, queues.
"""

from __future__ import annotations

from .._http.transport import REQUEST_TIMEOUT, Answer, Forbidden, Unreachable
from ..errors import LetterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Union

BACKOFF = 0.25  # seconds before the first retry, doubled for each further one
LONGEST_BACKOFF = 30.0  # seconds
DEFAULT_RETRY_AFTER = 1.0  # seconds, for a 429 without Retry-After
LONGEST_RETRY_AFTER = 300.0  # seconds; a longer one is a mistake, or the queue would overflow before that
REFUSES_EVENTS = (400, 422)  # statuses that may be due to a single event of the batch
# Statuses that any request would get: a wrong key, no payment, a wrong address. Redirects count among them.
REFUSES_ALL = (401, 402, 403, 404, 405, 407)
LONGEST_WHILE_REFUSED = 300.0  # seconds between two tries while the API refuses every request
JITTER = 0.25  # as a fraction of the wait, so that the workers of one server do not retry at the same time


class Surprise:
    """An unexpected exception, caused by the machine or by a bug of ours. Treated as a failed try: no event is lost."""

    def __init__(self, problem: Exception) -> None:
        self.problem = problem


class Delivered:
    """The API has accepted it."""


class Again:
    """Send the same again, ``seconds`` from now.

    ``refusal``: given if the API would refuse any request like this, for instance because the key is wrong.
    """

    def __init__(self, seconds: float, refusal: LetterError | None = None) -> None:
        self.seconds = seconds
        self.refusal = refusal


class Split:
    """Send it in two parts: it is too large, or ``in_search`` of a refused event."""

    def __init__(self, in_search: bool) -> None:
        self.in_search = in_search


class GiveUp:
    """Do not try again."""

    def __init__(self, cause: str, error: LetterError) -> None:
        self.cause = cause
        self.error = error


class Settled:
    """The process that got the batch has settled it: all events were delivered, except for those in ``errors``."""

    def __init__(self, errors: list[LetterError]) -> None:
        self.errors = errors


class Pending:
    """That process has not settled the batch, or has no room yet: ask again after ``seconds``. Not a failed try."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


if TYPE_CHECKING:
    RequestOutcome = Union[Answer, Unreachable, Surprise]
    Verdict = Union[Delivered, Again, Split, GiveUp]


def judge(
    outcome: RequestOutcome,
    *,
    attempt: int,
    max_retries: float,
    items: int,
    now: float,
    jitter: float,
    may_search: bool = True,
    durable: bool = False,
) -> Verdict:
    """The verdict on one request.

    Args:
        attempt: number of failed tries before this one.
        max_retries: maximum number of tries after the first; infinity for no limit.
        items: number of events in the request.
        now: seconds since the epoch, for a `Retry-After` that is a date.
        jitter: a random number from 0 to 1.
        may_search: the batch may be split to find the events that the API refuses.
        durable: the batch is in a spool, where it can wait indefinitely.
    """
    wait = backoff(attempt, jitter)
    if isinstance(outcome, Surprise):
        error = LetterError(f"the request could not be sent: {outcome.problem!r}")
        return _retry_or_give_up(error, wait, attempt, max_retries)
    if isinstance(outcome, Forbidden):
        refusal = LetterError(str(outcome))
        return Again(LONGEST_WHILE_REFUSED, refusal) if durable else GiveUp("testing", refusal)
    if isinstance(outcome, Unreachable):
        error = LetterError(f"the API could not be reached: {outcome}")
        return _retry_or_give_up(error, wait, attempt, max_retries)
    status = outcome.status
    if 200 <= status < 300:
        return Delivered()
    error = _error(outcome)
    if status == 429:
        # Never sooner than the back-off: "0", and a date in the past by our clock, mean "not yet" as well.
        wait = max(wait, retry_after(outcome.retry_after, now) * (1 + JITTER * jitter))
        return _retry_or_give_up(error, wait, attempt, max_retries)
    if status >= 500 or status < 200 or status == REQUEST_TIMEOUT:
        return _retry_or_give_up(error, wait, attempt, max_retries)
    if status == 413 and items > 1:
        return Split(in_search=False)
    if status in REFUSES_EVENTS and items > 1 and may_search:
        return Split(in_search=True)
    if durable and is_refusal_of_all(error):
        return Again(backoff(attempt, jitter, LONGEST_WHILE_REFUSED), error)
    return GiveUp("rejected", error)


def is_refusal_of_all(error: LetterError) -> bool:
    """True if the answer does not depend on the events: any request would get it, because of a wrong key or address."""
    return error.status is not None and (300 <= error.status < 400 or error.status in REFUSES_ALL)


def backoff(attempt: int, jitter: float, longest: float = LONGEST_BACKOFF) -> float:
    """Seconds to wait after the failed try number ``attempt``, 0 being the first. At most ``longest``, plus jitter."""
    return min(longest, BACKOFF * 2.0 ** min(attempt, 30)) * (1 + JITTER * jitter)


def retry_after(header: str | None, now: float) -> float:
    """Seconds that a `Retry-After` header requests (RFC 9110, 10.2.3), as a number or a date.

    Between 0 and LONGEST_RETRY_AFTER; DEFAULT_RETRY_AFTER if there is no header, or it is invalid.
    """
    if header is None:
        return DEFAULT_RETRY_AFTER
    try:
        seconds = float(header)
    except ValueError:
        seconds = _seconds_until(header, now)
    if not seconds < LONGEST_RETRY_AFTER:
        return LONGEST_RETRY_AFTER if seconds >= LONGEST_RETRY_AFTER else DEFAULT_RETRY_AFTER  # nan is neither
    return max(0.0, seconds)


def _seconds_until(date: str, now: float) -> float:
    from email.utils import mktime_tz, parsedate_tz

    try:
        parsed = parsedate_tz(date)
        return DEFAULT_RETRY_AFTER if parsed is None else mktime_tz(parsed) - now
    except (IndexError, OverflowError, TypeError, ValueError):  # `email.utils` of older Pythons raises for garbage
        return DEFAULT_RETRY_AFTER


def _retry_or_give_up(error: LetterError, wait: float, attempt: int, max_retries: float) -> Verdict:
    if attempt < max_retries:
        return Again(wait)
    return GiveUp("undeliverable", error)


def _error(answer: Answer) -> LetterError:
    if 300 <= answer.status < 400:
        return LetterError(
            f"the API answered {answer.status}, a redirect to {answer.location or 'nowhere'}: "
            "it is not followed, to protect the API key; set base_url to the final URL",
            answer.status,
            answer.body,
        )
    named = _named(answer.body)
    said = named.get("message") or answer.body.strip()[:200] or "no explanation"
    return LetterError(
        f"the API answered {answer.status}: {said}", answer.status, answer.body, named.get("code"), named.get("reason")
    )


def _named(body: str) -> dict[str, Any]:
    # A gateway may send any body; only strings inside an object are used.
    from json import loads

    try:
        error = loads(body).get("error")
        return {name: error[name] for name in ("code", "message", "reason") if isinstance(error.get(name), str)}
    except (ValueError, AttributeError, TypeError, RecursionError):
        return {}
