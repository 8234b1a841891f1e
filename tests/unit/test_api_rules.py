"""The API's rules (`letterapp._api_rules`), and that the client keeps them by itself."""

from __future__ import annotations

import json
from typing import Any, Callable

import pytest
from harness import DEADLINE
from inboxes import item

from letterapp import _config, testing
from letterapp._api_rules import MAX_ITEMS, batch_problem, key_of, mail_problem, parsed
from letterapp.testing import IngestionServer

MAIL = {"to": "a@b", "subject": "S", "text": "T"}


def changed(body: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """``body`` with other fields; ... stands for one that is left out."""
    return {name: value for name, value in {**body, **fields}.items() if value is not ...}


def items(count: int) -> list[Any]:
    return [item(messageId=str(number)) for number in range(count)]


def test_the_client_has_the_same_limit_though_it_does_not_share_it() -> None:
    assert testing.MAX_ITEMS == MAX_ITEMS == _config.MAX_ITEMS
    assert batch_problem({"batch": items(MAX_ITEMS)}) is None
    problem = batch_problem({"batch": items(MAX_ITEMS + 1)})
    assert problem is not None and problem.reason == "batch_size"


@pytest.mark.parametrize("kind", ["identify", "group", "track"])
def test_each_required_field_has_to_be_there_with_its_type_and_be_more_than_an_empty_text(kind: str) -> None:
    required = {"identify": ("traits",), "group": ("accountId", "traits"), "track": ("event", "properties")}[kind]
    whole = item(kind)
    assert batch_problem({"batch": [whole]}) is None
    for name in ("userId", "messageId", "timestamp", *required):
        for value, reason in ((..., "missing_field"), (None, "wrong_type"), (5, "wrong_type"), ("", "wrong_type")):
            problem = batch_problem({"batch": [whole, changed(whole, **{name: value})]})
            assert problem is not None, (name, value)
            assert problem.reason == reason and f"batch[1].{name}" in problem.message


@pytest.mark.parametrize("name", ["html", "text", "from", "fromName", "replyTo", "tag", "idempotencyKey"])
def test_the_texts_of_an_email_are_strings(name: str) -> None:
    assert mail_problem(changed(MAIL, **{name: "x"})) is None
    problem = mail_problem(changed(MAIL, **{name: 5}))
    assert problem is not None and problem.reason == "wrong_type" and problem.message.startswith(name)


@pytest.mark.parametrize(
    "fields, name",
    [
        ({"to": ...}, "to:"),
        ({"to": ""}, "to:"),
        ({"to": []}, "to:"),
        ({"to": ["a@b", ""]}, "to:"),
        ({"subject": ...}, "subject:"),
        ({"subject": ""}, "subject:"),
        ({"text": ""}, "html or text:"),
    ],
)
def test_an_email_needs_addresses_a_subject_and_a_text(fields: dict[str, Any], name: str) -> None:
    problem = mail_problem(changed(MAIL, **fields))
    assert problem is not None and problem.message.startswith(name)


@pytest.mark.parametrize(
    "body", [b"[NaN]", b"[-Infinity]", b"[1e999]", b"9" * 5000, b"[" * 100_000, b"\xff", b"", b"{"]
)
def test_what_is_not_json_is_a_value_error_on_every_python(body: bytes) -> None:
    with pytest.raises(ValueError):
        parsed(body)


@pytest.mark.parametrize(
    "header, key",
    [("Bearer k", "k"), ("bearer k ", "k"), ("", ""), ("Bearer", ""), ("Bearer  ", ""), ("Basic k", ""), ("k", "")],
)
def test_the_key_of_a_header(header: str, key: str) -> None:
    assert key_of(header) == key


def test_the_server_for_tests_answers_by_these_rules(
    letter_api: IngestionServer, post: Callable[..., tuple[int, Any]]
) -> None:
    letter_api.api_key = "right"
    key = {"Authorization": "Bearer right"}
    answers = [
        post("/v1/batch", b"{}", {}),
        post("/v1/batch", b"{}", {"Authorization": "Bearer wrong"}),
        post("/v1/other", b"{}", key),
        post("/v1/batch", b"[NaN]", key),
        post("/v1/batch", json.dumps({"batch": [item(userId="")]}).encode(), key),
        post("/v1/send", json.dumps({**MAIL, "tag": 5}).encode(), key),
    ]
    assert [(status, body["error"]["reason"]) for status, body in answers] == [
        (401, "missing_key"),
        (401, "wrong_key"),
        (404, "path"),
        (400, "not_json"),
        (422, "wrong_type"),
        (422, "wrong_type"),
    ]
    assert letter_api.events == letter_api.mails == []
    assert post("/v1/batch", json.dumps({"batch": items(1)}).encode(), key)[0] == 200


@pytest.fixture
def post(letter_api: IngestionServer) -> Callable[..., tuple[int, Any]]:
    import http.client

    def send(path: str, body: bytes, headers: dict[str, str]) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", letter_api.port, timeout=DEADLINE)
        try:
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    return send
