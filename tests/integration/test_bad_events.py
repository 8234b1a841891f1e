"""Some events of a batch are refused: only they are lost, in a bounded number of requests."""

from __future__ import annotations

from typing import Any, Callable

import pytest
from responses import lost, serials

from letterapp import LetterError
from letterapp.testing import IngestionServer, status


def refusing(bad: set[int], code: int) -> Callable[[Any], Any]:
    def rule(request: Any) -> Any:
        serials = {item["properties"]["serial"] for item in request.json["batch"]}
        return status(code, b'{"error": {"message": "A bad event."}}') if serials & bad else None

    return rule


@pytest.mark.parametrize("code", [400, 422])
@pytest.mark.parametrize(
    "bad, requests",
    [
        ({0}, 15),
        ({63}, 15),
        ({99}, 15),
        ({0, 99}, 27),
        ({0, 1, 2}, 17),
        ({17, 38, 59, 77, 98}, 63),
    ],
    ids=str,
)
def test_only_the_bad_events_are_lost_in_a_bounded_number_of_requests(
    bad: set[int], requests: int, code: int, letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.rule = refusing(bad, code)
    one = driven(max_retries=0)
    one.track(100)
    assert one.settle() == []
    assert serials(letter_api) == [serial for serial in range(100) if serial not in bad]  # in their order
    assert lost(errors) == sorted(bad)
    assert {(error.cause, error.status) for error in errors} == {("rejected", code)}
    assert one.letter.stats()["lost"] == {"rejected": len(bad)}
    assert len(letter_api.requests) <= requests


@pytest.mark.parametrize("events", [1, 2, 3, 50, 99, 100])
def test_a_batch_that_is_refused_whole_costs_at_most_17_requests(
    events: int, letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.rule = lambda request: status(400)
    one = driven()
    one.track(events)
    assert one.settle() == []
    assert len(letter_api.requests) <= min(17, 2 * events - 1)
    assert lost(errors) == list(range(events))
    assert one.letter.stats()["lost"] == {"rejected": events} and one.letter.stats()["waiting"] == 0


def test_many_bad_events_cost_a_bounded_number_of_requests(
    letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.rule = refusing(set(range(1, 100, 2)), 400)
    one = driven()
    one.track(100)
    assert one.settle() == []
    assert len(letter_api.requests) <= 65
    assert letter_api.distinct + sum(error.lost for error in errors) == 100
    one.track()
    letter_api.rule = None
    assert one.settle() == [] and serials(letter_api)[-1] == 0  # the next batch starts afresh


@pytest.mark.parametrize("code", [401, 402, 403, 404, 405, 409, 410, 415, 451, 302])
def test_a_status_that_concerns_the_whole_request_does_not_split_the_batch(
    code: int, letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.rule = refusing({3}, code)
    one = driven()
    one.track(100)
    assert one.settle() == []
    assert len(letter_api.requests) == 1 and lost(errors) == list(range(100))


def test_each_part_of_a_split_batch_has_all_its_tries(
    letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    busy = [status(503)] * 3
    letter_api.plan(status(422), *busy, status(422), *busy)
    one = driven(max_retries=3)
    one.track(4)
    waits = one.settle()
    assert [round(wait / 1.25, 2) <= bare <= wait for wait, bare in zip(waits, [0.25, 0.5, 1.0] * 2)] == [True] * 6
    assert serials(letter_api) == [0, 1, 2, 3] and errors == []
