"""`InFlight`: its transitions, and calls that change nothing."""

from __future__ import annotations

from typing import Callable

import pytest

from letterapp._delivery.in_flight import InFlight, InFlightState

IDLE, SENDING, WAITING = InFlightState


def in_state(state: InFlightState) -> InFlight:
    in_flight = InFlight()
    if state is not IDLE:
        in_flight.begin(1)
    if state is WAITING:
        in_flight.wait(until=10.0, now=5.0, failed=True)
    assert in_flight.state is state
    return in_flight


METHODS: dict[str, Callable[[InFlight], object]] = {
    "begin": lambda in_flight: in_flight.begin(1),
    "wait": lambda in_flight: in_flight.wait(until=20.0, now=5.0, failed=True),
    "split": lambda in_flight: in_flight.split(in_search=True),
    "end": lambda in_flight: in_flight.end(accepted=True),
    "give_up": lambda in_flight: in_flight.give_up(),
    "expedite": lambda in_flight: in_flight.expedite(now=5.0),
    "pause": lambda in_flight: in_flight.pause(until=30.0),
}
TRANSITIONS = {
    **{(state, "begin"): SENDING for state in InFlightState},
    **{(state, "give_up"): IDLE for state in InFlightState},
    (SENDING, "wait"): WAITING,
    (SENDING, "end"): IDLE,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("state", InFlightState)
def test_the_table_of_transitions(state: InFlightState, method: str) -> None:
    in_flight = in_state(state)
    METHODS[method](in_flight)
    assert in_flight.state is TRANSITIONS.get((state, method), state)


@pytest.mark.parametrize("method", ["wait", "split", "end"])
@pytest.mark.parametrize("state", [IDLE, WAITING])
def test_calls_that_are_not_in_the_table_change_nothing(state: InFlightState, method: str) -> None:
    in_flight = in_state(state)
    before = vars(in_flight).copy()
    METHODS[method](in_flight)
    assert vars(in_flight) == before


def test_tries_belong_to_their_batch() -> None:
    in_flight = in_state(WAITING)
    assert (in_flight.attempt, in_flight.not_before) == (1, 10.0)
    in_flight.begin(1)
    assert (in_flight.attempt, in_flight.not_before) == (1, 0.0)
    in_flight.begin(2)
    assert in_flight.attempt == 0


def test_a_wait_that_is_cut_short_does_not_count_its_failed_try() -> None:
    in_flight = in_state(WAITING)
    in_flight.expedite(now=5.0)
    assert (in_flight.attempt, in_flight.not_before) == (0, 0.0)


def test_nor_does_a_wait_after_a_request_that_was_expedited() -> None:
    in_flight = in_state(SENDING)
    in_flight.expedite(now=5.0)
    in_flight.wait(until=10.0, now=6.0, failed=True)
    assert (in_flight.attempt, in_flight.not_before) == (0, 0.0)
    in_flight.begin(1)  # and the next failure waits again
    in_flight.wait(until=20.0, now=7.0, failed=True)
    assert (in_flight.attempt, in_flight.not_before) == (1, 20.0)


def test_a_wait_without_a_failure_keeps_the_number_of_tries() -> None:
    in_flight = in_state(WAITING)
    in_flight.begin(1)
    in_flight.wait(until=20.0, now=5.0, failed=False)
    in_flight.expedite(now=5.0)
    assert (in_flight.attempt, in_flight.not_before) == (1, 0.0)


def test_a_wait_that_is_over_is_not_cut_short() -> None:
    in_flight = in_state(WAITING)
    in_flight.expedite(now=11.0)
    assert in_flight.attempt == 1
