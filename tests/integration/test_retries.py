"""When a request is retried, how often, and which tries count. `driven` runs the sender step by step."""

from __future__ import annotations

import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from driven import connections
from responses import PROPER

from letterapp import Letter, LetterError
from letterapp.testing import IngestionServer, reset, status
from stress.ports import free_port


@pytest.mark.parametrize("header", ["0", "-5", "0.01", "five seconds ago"])
def test_a_429_with_a_time_in_the_past_causes_no_storm_of_requests(
    header: str, letter_api: IngestionServer, driven: Any, tmp_path: Path, errors: list[LetterError]
) -> None:
    if header == "five seconds ago":
        header = formatdate(time.time() - 5, usegmt=True)
    letter_api.rule = lambda request: status(429, headers={"Retry-After": header})
    one = driven(spool=tmp_path / "spool", max_retries=0)
    one.track()
    until = one.now + 60.0
    while one.now < until and len(letter_api.requests) < 50:
        one.now += one.sender._batches.send_once()
    assert len(letter_api.requests) <= 9 and errors == []  # after 0, 1/4, 3/4, ... 31.75, 61.75 s
    assert one.letter.stats()["waiting"] == 1


# 408.


@pytest.mark.parametrize("max_retries", [0, 3])
def test_a_408_on_a_kept_connection_is_the_servers_way_of_closing_it(
    max_retries: int, letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.plan(PROPER, status(408), PROPER, status(408))
    one = driven(max_retries=max_retries)
    for _ in range(3):
        one.track()
        assert one.settle() == []
    assert (len(letter_api.requests), connections(letter_api)) == (5, 3)
    assert errors == [] and one.letter.stats()["retried"] == 0 and letter_api.distinct == 3


def test_a_408_on_a_new_connection_is_tried_again_after_the_backoff_on_another_one(
    letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.plan(status(408), status(408))
    one = driven(max_retries=2)
    one.track()
    waits = one.settle()
    assert len(waits) == 2 and 0.25 <= waits[0] <= 0.3125 and 0.5 <= waits[1] <= 0.625
    assert connections(letter_api) == 3 and errors == [] and letter_api.distinct == 1


def test_a_408_for_every_try_is_reported_with_its_status(
    letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.rule = lambda request: status(408, b"slow")
    one = driven(max_retries=1)
    one.track(2)
    assert len(one.settle()) == 1
    (error,) = errors
    assert (error.status, error.body, error.cause, error.lost) == (408, "slow", "undeliverable", 2)


def test_a_mail_without_an_idempotency_key_is_not_sent_again_after_a_408(
    letter_api: IngestionServer, make: Any
) -> None:
    letter_api.rule = lambda request: status(408)
    with pytest.raises(LetterError) as caught:
        make().send("a@b.example", "S", text="x")
    assert caught.value.status == 408 and len(letter_api.requests) == 1


# `max_retries=None`.


@pytest.mark.parametrize("fault", [status(503), status(429), status(408), reset()], ids=["503", "429", "408", "reset"])
def test_max_retries_none_tries_as_long_as_the_queue_has_room(
    fault: Any, letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.plan(*[fault] * 40)
    one = driven(max_retries=None)
    one.track(3)
    waits = one.settle()
    assert len(waits) == 40 and errors == [] and letter_api.distinct == 3
    assert all(wait <= 30.0 * 1.25 for wait in waits) and waits[-1] >= 30.0


def test_max_retries_none_gives_up_refused_events(
    letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.plan(status(401))
    one = driven(max_retries=None)
    one.track(3)
    assert one.settle() == [] and errors[0].cause == "rejected"


def test_max_retries_none_reports_events_that_do_not_fit_into_the_queue(driven: Any, errors: list[LetterError]) -> None:
    one = driven(f"http://127.0.0.1:{free_port()}", max_retries=None, max_queue_events=10)
    one.track(15)
    for _ in range(20):
        one.now += one.sender._batches.send_once()
    assert sum(error.lost for error in errors) == 5 and {error.cause for error in errors} == {"overflow"}
    assert one.letter.stats()["waiting"] == 10


def test_send_retries_three_times_when_max_retries_is_none(
    letter_api: IngestionServer, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letterapp._delivery.retry.BACKOFF", 0.001)
    letter_api.rule = lambda request: status(503)
    with pytest.raises(LetterError):
        make(max_retries=None).send("a@b.example", "S", text="x", idempotency_key="k")
    assert len(letter_api.requests) == 4


@pytest.mark.parametrize("value", ["3", 1.5, -1, True, float("inf")])
def test_an_invalid_max_retries_is_refused(value: Any) -> None:
    with pytest.raises(LetterError, match="max_retries must be a whole number, 0 or more, or None"):
        Letter("k", max_retries=value)


# Whose tries count.


def test_a_batch_after_an_abandoned_one_has_all_of_its_tries_and_is_sent_at_once(
    letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.plan(*[status(503)] * 3)
    one = driven(max_retries=3)
    one.track()
    for _ in range(3):
        one.now += one.sender._batches.send_once()
        if len(letter_api.requests) < 3:
            one.now += one.sender._batches.send_once()
    assert len(letter_api.requests) == 3
    one.sender._give_up("exit", "the process ends")
    assert len(errors) == 1
    letter_api.plan(*[status(503)] * 3)
    one.track()
    waits = one.settle()
    assert [bare <= wait <= bare * 1.25 for wait, bare in zip(waits, [0.25, 0.5, 1.0])] == [True] * 3
    assert letter_api.distinct == 1 and len(errors) == 1


def test_tries_of_a_batch_that_another_process_recovered_do_not_count_for_the_next(
    letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.plan(*[status(503)] * 6)
    one = driven(max_retries=3)
    one.track()
    while len(letter_api.requests) < 3:
        one.now += one.sender._batches.send_once()
    ring = one.sender._queue._ring
    ring._words[2] += 1  # EPOCH: another process uses the memory now
    one.track()
    assert len(one.settle()) >= 3
    assert letter_api.distinct == 1 and errors == []
