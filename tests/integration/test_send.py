"""`Letter.send`: sends one email at once, and returns the API's response or raises `LetterError`."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest

from letterapp import Letter, LetterError
from letterapp.testing import IngestionServer, cut, raw, reset, stall, status

MAIL: dict[str, Any] = {"to": "ada@example.com", "subject": "Hello", "text": "Hi."}
SENT = {"id": "1", "messageId": "m-1", "status": "sent", "replayed": False}


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    # Their length is proved in test_retry.py; here only that there is another try.
    monkeypatch.setattr("letterapp._delivery.retry.BACKOFF", 0.001)
    monkeypatch.setattr("letterapp._delivery.retry.DEFAULT_RETRY_AFTER", 0.001)


def test_every_field_is_sent_under_its_name(letter_api: IngestionServer, make: Any) -> None:
    answer = make().send(
        "ada@example.com",
        "Hello",
        html="<p>Hi, Ünal</p>",
        text="Hi, Ünal",
        from_email="us@example.com",
        from_name="Us",
        reply_to="help@example.com",
        headers={"X-Campaign": "spring"},
        tag="welcome",
        metadata={"order": 17, "items": [1, None, True]},
        idempotency_key="welcome-17",
    )
    assert letter_api.mails == [
        {
            "to": "ada@example.com",
            "subject": "Hello",
            "html": "<p>Hi, Ünal</p>",
            "text": "Hi, Ünal",
            "from": "us@example.com",
            "fromName": "Us",
            "replyTo": "help@example.com",
            "headers": {"X-Campaign": "spring"},
            "tag": "welcome",
            "metadata": {"order": 17, "items": [1, None, True]},
            "idempotencyKey": "welcome-17",
        }
    ]
    assert answer == SENT


def test_the_arguments_may_be_given_by_position_as_documented(letter_api: IngestionServer, make: Any) -> None:
    make().send("to", "subject", "html", "text", "from", "name", "reply", {"h": "1"}, "tag", {"m": 1}, "key")
    (mail,) = letter_api.mails
    assert list(mail.values()) == [
        "to",
        "subject",
        "html",
        "text",
        "from",
        "name",
        "reply",
        {"h": "1"},
        "tag",
        {"m": 1},
        "key",
    ]


@pytest.mark.parametrize("content", [{"html": "<p>Hi</p>"}, {"text": "Hi"}])
def test_omitted_arguments_are_not_sent(content: dict[str, str], letter_api: IngestionServer, make: Any) -> None:
    make().send("ada@example.com", "Hello", **content)
    assert letter_api.mails == [{"to": "ada@example.com", "subject": "Hello", **content}]


def test_the_request_has_the_path_and_the_headers_of_the_api(letter_api: IngestionServer, make: Any) -> None:
    make(api_key="sk-1").send(**MAIL)
    (request,) = letter_api.requests
    assert (request.method, request.path) == ("POST", "/v1/send")
    assert request.headers["authorization"] == "Bearer sk-1"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"].startswith("letterapp-python/")


@pytest.mark.usefixtures("without_collection")
@pytest.mark.parametrize(
    "body, answer",
    [
        (json.dumps({"id": "7", "replayed": True}).encode(), {"id": "7", "replayed": True}),
        (b"", {}),
        (b"not JSON", {}),
        (b"[1]", {}),
        (b"null", {}),
        (b"[" * 60_000, {}),
        (b"\xff", {}),
    ],
    ids=["an object", "none", "not JSON", "a list", "null", "deep", "not UTF-8"],
)
@pytest.mark.parametrize("code", [200, 202])
def test_any_2xx_is_success_and_its_object_is_returned(
    code: int, body: bytes, answer: dict[str, Any], letter_api: IngestionServer, make: Any
) -> None:
    letter_api.plan(status(code, body))
    assert make().send(**MAIL) == answer
    assert len(letter_api.requests) == 1


@pytest.mark.parametrize(
    "missing, says",
    [
        ({"to": ""}, "to is required"),
        ({"to": None}, "to is required"),
        ({"subject": ""}, "subject is required"),
        ({"subject": None}, "subject is required"),
        ({"text": None}, "html or text is required"),
        ({"text": ""}, "html or text is required"),
    ],
)
def test_a_missing_argument_raises_before_anything_is_sent(
    missing: dict[str, Any], says: str, letter_api: IngestionServer, make: Any, errors: list[LetterError]
) -> None:
    with pytest.raises(LetterError, match=f"^{says}$") as caught:
        make().send(**{**MAIL, **missing})
    assert caught.value.status is None
    assert letter_api.requests == [] and errors == []


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"metadata": {"cart": [{"price": float("nan")}]}}, r"metadata\.cart\[0\]\.price"),
        ({"headers": {"X": object()}}, r"headers\.X"),
        ({"text": "\ud800"}, "text"),
    ],
)
def test_a_value_that_is_not_json_raises_with_its_path(
    wrong: dict[str, Any], says: str, letter_api: IngestionServer, make: Any
) -> None:
    with pytest.raises(LetterError, match=says):
        make().send(**{**MAIL, **wrong})
    assert letter_api.requests == []


PASSING = {
    "503": status(503),
    "429": status(429, headers={"Retry-After": "0"}),
    "429 without a time": status(429),
    "reset": reset(),
    "closed": raw(b""),
    "cut short": cut(),
    "garbage": raw(b"garbage\r\n\r\n"),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING.keys())
def test_a_mail_without_an_idempotency_key_is_never_sent_twice(
    fault: Any, letter_api: IngestionServer, make: Any, errors: list[LetterError]
) -> None:
    letter_api.plan(fault)
    with pytest.raises(LetterError):
        make(max_retries=3).send(**MAIL)
    assert len(letter_api.requests) == 1 and errors == []


def test_a_mail_without_an_idempotency_key_is_not_sent_twice_after_a_timeout(
    letter_api: IngestionServer, make: Any
) -> None:
    letter_api.plan(stall(60))
    with pytest.raises(LetterError, match=r"no answer within 0\.3 s"):
        make(max_retries=3, timeout=0.3).send(**MAIL)
    assert letter_api.wait_until(lambda: len(letter_api.requests) == 1)


def test_mails_use_no_kept_connection_that_could_need_a_second_try(letter_api: IngestionServer, make: Any) -> None:
    letter = make()
    letter.track("u", "E")
    assert letter.flush() is True
    for _ in range(2):
        letter.send(**MAIL)
        letter_api.drop_connections()
    assert len({request.connection for request in letter_api.requests}) == 3
    assert len(letter_api.mails) == 2


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING.keys())
def test_a_mail_with_an_idempotency_key_is_tried_again(fault: Any, letter_api: IngestionServer, make: Any) -> None:
    letter_api.plan(fault, fault)
    assert make(max_retries=2).send(**MAIL, idempotency_key="k") == SENT
    assert len({request.body for request in letter_api.requests}) == 1 and len(letter_api.requests) == 3


@pytest.mark.parametrize("max_retries", [0, 2])
def test_the_last_failure_is_raised_when_no_try_is_left(
    max_retries: int, letter_api: IngestionServer, make: Any
) -> None:
    letter_api.plan(*[status(503, b'{"error": {"message": "Later."}}')] * 5)
    with pytest.raises(LetterError, match=r"^the API answered 503: Later\.$") as caught:
        make(max_retries=max_retries).send(**MAIL, idempotency_key="k")
    assert caught.value.status == 503
    assert len(letter_api.requests) == 1 + max_retries


@pytest.mark.parametrize("code", [400, 401, 403, 404, 409, 413, 422])
def test_another_4xx_is_raised_at_once_with_the_whole_response(
    code: int, letter_api: IngestionServer, make: Any
) -> None:
    body = json.dumps({"error": {"code": "suppressed", "message": "Not to them.", "reason": "bounced"}})
    letter_api.plan(status(code, body.encode()))
    with pytest.raises(LetterError) as caught:
        make().send(**MAIL, idempotency_key="k")
    error = caught.value
    assert str(error) == f"the API answered {code}: Not to them."
    assert (error.status, error.body, error.code, error.reason) == (code, body, "suppressed", "bounced")
    assert error.events == [] and error.cause is None and error.lost == 0
    assert len(letter_api.requests) == 1


def test_the_error_survives_a_pickle(letter_api: IngestionServer, make: Any) -> None:
    letter_api.plan(status(422, b'{"error": {"code": "c", "message": "m", "reason": "r"}}'))
    with pytest.raises(LetterError) as caught:
        make().send(**MAIL)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        copy = pickle.loads(pickle.dumps(caught.value, protocol))
        assert type(copy) is LetterError and str(copy) == str(caught.value) and copy.args == caught.value.args
        assert (copy.status, copy.body, copy.code, copy.reason) == (422, caught.value.body, "c", "r")


def test_an_unreachable_api_raises(make: Any) -> None:
    with pytest.raises(LetterError, match="could not be reached") as caught:
        make(base_url="http://127.0.0.1:1").send(**MAIL)
    assert (caught.value.status, caught.value.body) == (None, None)


def test_it_works_after_close_and_counts_nothing(
    letter_api: IngestionServer, make: Any, errors: list[LetterError]
) -> None:
    letter = make()
    assert letter.close() is True
    assert letter.send(**MAIL) == SENT
    assert letter.stats()["accepted"] == 0 and errors == []


def test_it_sends_nothing_when_not_enabled(letter_api: IngestionServer) -> None:
    assert Letter(base_url=letter_api.url, enabled=False).send("", "") == {}
    assert letter_api.requests == []
