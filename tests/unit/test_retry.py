"""What an answer means: the rules alone, without a socket, a clock or a wait."""

from __future__ import annotations

import json
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from letterapp import LetterError
from letterapp._delivery.in_flight import MOST_SPLITS, SPLITS_IN_VAIN, InFlight
from letterapp._delivery.retry import (
    BACKOFF,
    DEFAULT_RETRY_AFTER,
    JITTER,
    LONGEST_BACKOFF,
    LONGEST_RETRY_AFTER,
    Again,
    Delivered,
    GiveUp,
    Split,
    Surprise,
    backoff,
    judge,
    retry_after,
)
from letterapp._http.transport import Answer, Unreachable

same = examples()

NOW = 1_700_000_000.0  # 14 November 2023, 22:13:20 UTC
FIRST: Any = {"attempt": 0, "max_retries": 0, "now": NOW, "jitter": 0.0}  # the only try


def sending() -> InFlight:
    in_flight = InFlight()
    in_flight.begin(1)
    return in_flight


def verdict_on(outcome: Any, attempt: int = 0, max_retries: float = 3, items: int = 1, jitter: float = 0.0) -> Any:
    return judge(outcome, attempt=attempt, max_retries=max_retries, items=items, now=NOW, jitter=jitter)


@pytest.mark.parametrize("body", ["", "{}", "not JSON", "[1, 2", '{"error": {"code": "x"}}'])
@pytest.mark.parametrize("status", [200, 201, 202, 204, 206, 299])
def test_any_2xx_is_success_whatever_its_body(status: int, body: str) -> None:
    assert isinstance(verdict_on(Answer(status, body), attempt=3), Delivered)


@pytest.mark.parametrize(
    "outcome, attempt, seconds",
    [
        (Answer(500), 0, 0.25),
        (Answer(502), 1, 0.5),
        (Answer(503), 2, 1.0),
        (Answer(599), 2, 1.0),
        (Unreachable("reset"), 0, 0.25),
        (Unreachable("reset"), 2, 1.0),
        (Answer(503, retry_after="77"), 0, 0.25),  # the API names a time for 429 alone
        (Answer(429, retry_after="7"), 0, 7.0),
        (Answer(429, retry_after="7"), 2, 7.0),  # what was asked for, however often
        (Answer(429), 0, 1.0),
        (Answer(429), 3, 2.0),  # never sooner than the back-off
        (Answer(429, retry_after="0"), 0, 0.25),
        (Answer(429, retry_after="-5"), 1, 0.5),
        (Answer(429, retry_after=formatdate(NOW - 5, usegmt=True)), 2, 1.0),
        (Answer(429, retry_after="0"), 9, LONGEST_BACKOFF),
        (Answer(408), 1, 0.5),
        (Surprise(MemoryError()), 1, 0.5),
    ],
)
def test_temporary_failures_are_tried_again_after(outcome: Any, attempt: int, seconds: float) -> None:
    verdict = verdict_on(outcome, attempt, max_retries=10)
    assert isinstance(verdict, Again)
    assert verdict.seconds == pytest.approx(seconds)
    assert verdict_on(outcome, attempt, max_retries=10, jitter=1.0).seconds == pytest.approx(seconds * (1 + JITTER))


@pytest.mark.parametrize(
    "outcome", [Answer(500), Answer(429, retry_after="1"), Answer(408), Unreachable("reset"), Surprise(OSError())]
)
@pytest.mark.parametrize("max_retries", [0, 1, 3])
def test_the_last_try_is_the_one_after_max_retries(outcome: Any, max_retries: int) -> None:
    for attempt in range(max_retries):
        assert isinstance(verdict_on(outcome, attempt, max_retries), Again)
    last = verdict_on(outcome, max_retries, max_retries)
    assert isinstance(last, GiveUp) and last.cause == "undeliverable"
    assert last.error.status == getattr(outcome, "status", None)


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 405, 406, 407, 409, 410, 415, 422, 451, 499])
def test_another_4xx_is_not_tried_again(status: int) -> None:
    body = json.dumps({"error": {"code": "bad_key", "message": "No such key.", "reason": "revoked"}})
    verdict = verdict_on(Answer(status, body))
    assert isinstance(verdict, GiveUp) and verdict.cause == "rejected"
    error = verdict.error
    assert (error.status, error.body, error.code, error.reason) == (status, body, "bad_key", "revoked")
    assert str(error) == f"the API answered {status}: No such key."


@pytest.mark.parametrize("items", [2, 3, 100])
def test_413_for_several_events_is_split_even_without_tries_left(items: int) -> None:
    assert isinstance(verdict_on(Answer(413), attempt=0, max_retries=0, items=items), Split)


@pytest.mark.parametrize("status", [400, 422])
def test_a_status_that_may_concern_one_event_is_split_a_bounded_number_of_times(status: int) -> None:
    in_flight = sending()
    for accepted, most in ((False, SPLITS_IN_VAIN), (True, MOST_SPLITS - SPLITS_IN_VAIN)):
        if accepted:
            in_flight.end(accepted=True)
            in_flight.begin(1)
        for _ in range(most):
            verdict = judge(Answer(status), **FIRST, items=2, may_search=in_flight.may_search())
            assert isinstance(verdict, Split) and verdict.in_search
            in_flight.split(in_search=True)
            in_flight.end(accepted=False)
            in_flight.begin(1)
        verdict = judge(Answer(status), **FIRST, items=100, may_search=in_flight.may_search())
        assert isinstance(verdict, GiveUp) and verdict.cause == "rejected" and verdict.error.status == status
        too_large = judge(Answer(413), **FIRST, items=100, may_search=in_flight.may_search())
        assert isinstance(too_large, Split) and not too_large.in_search  # that one needs no bound


def search(bad: set[int]) -> tuple[list[int], int]:
    """Play the search in a batch of a hundred: what is given up, and how many requests it took."""
    in_flight, given_up, requests = sending(), [], 0
    parts = [list(range(100))]
    while parts:
        part = parts.pop()
        requests += 1
        answer = Answer(400 if bad & set(part) else 200)
        verdict = judge(answer, **FIRST, items=len(part), may_search=in_flight.may_search())
        if isinstance(verdict, Split):
            in_flight.split(verdict.in_search)
            parts += [part[len(part) // 2 :], part[: len(part) // 2]]
            continue
        in_flight.end(accepted=isinstance(verdict, Delivered))
        in_flight.begin(1)
        if isinstance(verdict, GiveUp):
            given_up += part
    return given_up, requests


@pytest.mark.slow
@examples(500)
@given(st.sets(st.integers(0, 99), max_size=4) | st.integers(0, 96).map(lambda first: set(range(first, first + 4))))
def test_any_four_bad_events_of_a_hundred_are_found(bad: set[int]) -> None:
    given_up, requests = search(bad)
    assert given_up == sorted(bad) and requests <= 1 + 46


@pytest.mark.parametrize("bad", range(100))
def test_one_bad_event_of_a_hundred_is_found_in_14_further_requests(bad: int) -> None:
    given_up, requests = search({bad})
    assert given_up == [bad] and requests <= 1 + 14


@same
@given(st.sets(st.integers(0, 99)))
def test_a_search_is_bounded_and_loses_every_bad_event(bad: set[int]) -> None:
    given_up, requests = search(bad)
    assert bad <= set(given_up) and requests <= 1 + 2 * MOST_SPLITS
    if len(bad) == 100:
        assert requests <= 1 + 2 * SPLITS_IN_VAIN


@pytest.mark.parametrize("status", [401, 402, 403, 404, 405, 409, 410, 415, 429, 500])
def test_a_status_about_the_whole_request_is_not_split(status: int) -> None:
    assert not isinstance(verdict_on(Answer(status), items=100), Split)


def test_splits_of_large_batches_do_not_count() -> None:
    in_flight = sending()
    for _ in range(100):
        in_flight.split(in_search=False)
    assert in_flight.may_search()


def test_413_for_one_event_is_given_up() -> None:
    verdict = verdict_on(Answer(413, "too long"), items=1)
    assert isinstance(verdict, GiveUp) and verdict.cause == "rejected"
    assert verdict.error.status == 413 and "too long" in str(verdict.error)


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
def test_a_redirect_is_given_up_with_the_address_it_named(status: int) -> None:
    verdict = verdict_on(Answer(status, "moved", location="https://elsewhere.example/v1/batch"), items=50)
    assert isinstance(verdict, GiveUp) and verdict.cause == "rejected"
    for part in (str(status), "redirect", "https://elsewhere.example/v1/batch", "base_url"):
        assert part in str(verdict.error)
    assert (verdict.error.status, verdict.error.body) == (status, "moved")
    assert "nowhere" in str(verdict_on(Answer(status)).error)


@pytest.mark.usefixtures("without_collection")
@pytest.mark.parametrize(
    "body",
    [
        "",
        "<html><h1>Bad Gateway</h1></html>",
        "null",
        "17",
        '"text"',
        "[]",
        "[{}]",
        '{"error": null}',
        '{"error": "text"}',
        '{"error": ["code"]}',
        '{"error": {}}',
        '{"error": {"code": 7, "message": ["x"], "reason": {}}}',
        '{"error": {"code": ',
        "[" * 100_000,
        '{"error": ' * 5_000,
    ],
    ids=lambda body: body[:30],
)
@pytest.mark.parametrize("status", [400, 413, 500])
def test_a_body_that_is_not_the_apis_is_ignored(status: int, body: str) -> None:
    verdict = verdict_on(Answer(status, body), attempt=0, max_retries=0)
    assert isinstance(verdict, GiveUp)
    error = verdict.error
    assert (error.status, error.body, error.code, error.reason) == (status, body, None, None)
    assert str(status) in str(error) and len(str(error)) < 300


@pytest.mark.parametrize(
    "header, seconds",
    [
        (None, DEFAULT_RETRY_AFTER),
        ("", DEFAULT_RETRY_AFTER),
        (" ", DEFAULT_RETRY_AFTER),
        ("\x0c", DEFAULT_RETRY_AFTER),
        ("soon", DEFAULT_RETRY_AFTER),
        ("1,2", DEFAULT_RETRY_AFTER),
        ("nan", DEFAULT_RETRY_AFTER),
        ("0", 0.0),
        ("2", 2.0),
        (" 2 ", 2.0),
        ("1.5", 1.5),
        ("300", 300.0),
        ("-1", 0.0),
        ("-inf", 0.0),
        ("inf", LONGEST_RETRY_AFTER),
        ("1000000000000", LONGEST_RETRY_AFTER),
        ("9" * 5000, LONGEST_RETRY_AFTER),
        (formatdate(NOW + 90, usegmt=True), 90.0),
        (formatdate(NOW + 90), 90.0),  # with -0000 in place of GMT
        ("Tuesday, 14-Nov-23 22:14:20 GMT", 60.0),  # RFC 850, which a recipient must still read
        ("Tue Nov 14 22:14:20 2023", 60.0),  # asctime, the same
        (formatdate(NOW - 90, usegmt=True), 0.0),
        (formatdate(NOW + 86_400, usegmt=True), LONGEST_RETRY_AFTER),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", LONGEST_RETRY_AFTER),
        ("Fri, 31 Dec 99999 23:59:59 GMT", DEFAULT_RETRY_AFTER),
        ("Nov Tue, , Tue,", DEFAULT_RETRY_AFTER),  # on which `email.utils` of 3.8 raises IndexError
        ("Fri, 99 Foo 2023 99:99:99 GMT", DEFAULT_RETRY_AFTER),
    ],
)
def test_retry_after_is_read_as(header: str | None, seconds: float) -> None:
    assert retry_after(header, NOW) == seconds


@same
@given(st.none() | st.text(max_size=60) | st.floats().map(str) | st.integers().map(str))
def test_no_retry_after_breaks_the_rules(header: str | None) -> None:
    assert 0.0 <= retry_after(header, NOW) <= LONGEST_RETRY_AFTER


WORDS = st.sampled_from(
    [
        "Tue,",
        "Tue",
        "14",
        "Nov",
        "2023",
        "99999",
        "-1",
        "22:14:20",
        "22.14.20",
        "25:61:61",
        "::",
        "GMT",
        "+0100",
        "+99999",
        "-0000",
        ",",
        "-",
        ":",
        ".",
        "14-Nov-23",
        "0",
        "AM",
        "+",
        "1e9",
    ]
)


@same
@given(st.lists(WORDS, max_size=8).map(" ".join))
def test_no_date_made_of_real_parts_breaks_the_rules(header: str) -> None:
    assert 0.0 <= retry_after(header, NOW) <= LONGEST_RETRY_AFTER


@same
@given(st.integers(0, 10_000), st.floats(0, 1))
def test_the_backoff_grows_to_its_bound_and_jitter_only_adds(attempt: int, jitter: float) -> None:
    bare = backoff(attempt, 0.0)
    assert BACKOFF <= bare <= LONGEST_BACKOFF
    assert bare <= backoff(attempt + 1, 0.0) <= 2 * bare
    assert bare <= backoff(attempt, jitter) <= bare * (1 + JITTER)


ANSWERS = st.builds(
    Answer,
    st.integers(0, 1100),
    st.text(max_size=200)
    | st.recursive(
        st.none() | st.text(max_size=9) | st.integers(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["error", "code", "message", "reason"]), inner, max_size=4)
        ),
    ).map(json.dumps),
    st.none() | st.text(max_size=40),
    st.none() | st.text(max_size=40),
)


@same
@given(ANSWERS, st.integers(0, 10), st.integers(0, 10), st.integers(1, 100), st.floats(0, 1))
def test_every_answer_has_a_verdict(outcome: Answer, attempt: int, max_retries: int, items: int, jitter: float) -> None:
    verdict = judge(outcome, attempt=attempt, max_retries=max_retries, items=items, now=NOW, jitter=jitter)
    assert isinstance(verdict, (Delivered, Again, Split, GiveUp))
    assert isinstance(verdict, Delivered) is (200 <= outcome.status < 300)
    if isinstance(verdict, Again):
        assert attempt < max_retries
        assert backoff(attempt, jitter) <= verdict.seconds <= LONGEST_RETRY_AFTER * (1 + JITTER)
        assert outcome.status in (408, 429) or not 200 <= outcome.status < 500
    if isinstance(verdict, GiveUp):
        assert isinstance(verdict.error, LetterError)
        assert verdict.error.status == outcome.status and verdict.error.body == outcome.body
        for text in (verdict.error.code, verdict.error.reason):
            assert text is None or isinstance(text, str)
