"""Events that a relay loses, gives up or the API refuses are reported once, to the process that tracked them."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any, Callable

import pytest
from harness import DEADLINE, eventually, run, start, whose
from programs import relays
from relayed import Runtime, balanced, held_request, own_runtime, patient_clients, track  # noqa: F401  (fixtures)

from letterapp import Letter, LetterError
from letterapp.testing import Hold, IngestionServer, status

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Unix"),
    pytest.mark.usefixtures("patient"),
]


def test_an_error_reaches_the_client_whose_event_failed_and_no_other(
    make: Callable[..., Letter], letter_api: Any
) -> None:
    bad = status(403, b'{"error": {"code": "bad", "message": "no", "reason": "so"}}')
    letter_api.rule = lambda request: bad if b"evil" in request.body else None
    heard: dict[str, list[LetterError]] = {"good": [], "evil": []}
    letters = {who: make(relay=True, on_error=heard[who].append, flush_interval=600) for who in heard}
    for who, letter in letters.items():
        track(letter, 3, who)
        assert letter.flush(DEADLINE)
    assert heard["good"] == []
    (error,) = heard["evil"]
    assert (error.status, error.code, error.reason, error.cause, error.lost) == (403, "bad", "so", "rejected", 3)
    assert len(error.events) == 3 and "reported by the relay" in str(error)
    assert balanced(letters["evil"].stats())["lost"] == {"rejected": 3}
    assert balanced(letters["good"].stats())["delivered"] == 3


def test_an_error_of_a_process_that_has_ended_is_in_the_relays_log(
    runtime: Runtime, letter_api: Any, tmp_path: Path
) -> None:
    hold = Hold(then=status(400, b"no"))
    letter_api.plan(hold)
    letter_api.rule = lambda request: status(400, b"no")  # should the three come in two batches
    with runtime.keep() as relay:
        assert run(relays.track_and_be_killed, letter_api.url, tmp_path, 3, runtime.socket).code == -signal.SIGKILL
        assert hold.arrived.wait(DEADLINE)
        assert eventually(runtime.own_status, lambda status: status["processes"] == 0)["processes"] == 0
        hold.release()

        def reported() -> int:
            lines = re.findall(r"(\d+) lost from ended processes: .* answered 400", relay.output)
            return sum(map(int, lines))

        assert eventually(reported, lambda count: count >= 3) == 3, relay.output
        assert runtime.own_status()["lost"] == {"rejected": 3}


def test_what_the_relay_drops_is_reported_to_its_owner(
    make: Callable[..., Letter], runtime: Runtime, letter_api: Any, hold: Hold
) -> None:
    def takes(count: int) -> None:
        """Wait until the relay has read as many."""
        assert eventually(runtime.status, lambda status: status["accepted"] == count)["accepted"] == count

    heard: dict[str, list[LetterError]] = {"first": [], "second": []}
    options: dict[str, Any] = {"relay": True, "max_queue_events": 100, "overflow": "drop_oldest", "flush_at": 10}
    first = make(on_error=heard["first"].append, **options)
    second = make(on_error=heard["second"].append, **options)
    track(first, 10, "first")
    assert hold.arrived.wait(DEADLINE)
    track(first, 60, "first", start=10)
    takes(70)
    track(second, 60, "second")
    takes(130)
    hold.release()
    assert first.flush(DEADLINE) and second.flush(DEADLINE)
    assert balanced(first.stats())["lost"] == {"overflow": 30} and balanced(second.stats())["lost"] == {}
    assert sum(error.lost for error in heard["first"]) == 30 and heard["second"] == []
    assert whose(letter_api)["second"] == list(range(60))


@pytest.mark.slow
def test_reports_that_are_not_read_for_long_keep_only_the_number_of_events(
    make: Callable[..., Letter], runtime: Runtime, letter_api: IngestionServer, errors: list[LetterError]
) -> None:
    letter_api.rule = lambda request: status(400, b"no")
    letter = make(relay=True)
    for serial in range(2500):
        letter.track("test", "Worked", {"serial": serial, "much": "x" * 900})
    # A relay that is held up leaves some to the process. (`stats` would read the reports.)
    relayed = letter._delivery._client.sent_count  # type: ignore[attr-defined]
    lost = eventually(lambda: runtime.status()["lost"], lambda lost: lost == {"rejected": relayed})
    assert lost == {"rejected": relayed} and letter.flush(DEADLINE)
    stats = balanced(letter.stats())
    assert (stats["delivered"], stats["lost"]) == (0, {"rejected": 2500}), stats
    assert sum(error.lost for error in errors) == 2500 and letter_api.distinct == 0


@pytest.mark.slow
def test_events_dropped_behind_the_batch_in_flight_do_not_count_as_its_own(
    make: Callable[..., Letter], runtime: Runtime, letter_api: IngestionServer, errors: list[LetterError]
) -> None:
    letter_api.rule = lambda request: status(503)
    options: dict[str, Any] = {"relay": True, "overflow": "drop_oldest", "max_queue_events": 300, "max_retries": 50}
    letter = make(**options)
    track(letter, 100, "in flight")
    assert letter_api.wait_until(lambda: len(letter_api.requests) > 0)
    track(letter, 150, "dropped", start=100)
    other = make(**options, on_error=lambda error: None)
    track(other, 280, "flood", start=250)
    assert eventually(lambda: runtime.status()["lost"].get("overflow", 0), bool)
    runtime.relay().kill()
    letter_api.rule = None
    assert letter.flush(DEADLINE) and other.flush(DEADLINE)
    assert sum(event["userId"] == "in flight" for event in letter_api.events) >= 100
    assert {event["properties"]["serial"] for event in letter_api.events} >= set(range(100))
    assert letter.close(DEADLINE) and other.close(DEADLINE)  # which waits for a relay that is just being started


def test_on_error_that_tracks_and_flushes_is_not_called_recursively(
    make: Callable[..., Letter], letter_api: IngestionServer
) -> None:
    letter_api.rule = lambda request: status(403, b"no") if b"first" in request.body else None
    depth: list[int] = []
    seen: list[tuple[int, bool]] = []

    def on_error(error: LetterError) -> None:
        depth.append(1)
        track(letter, 1, "again")
        seen.append((len(depth), letter.flush(0)))
        depth.pop()

    letter = make(relay=True, on_error=on_error, flush_interval=600)
    track(letter, 3, "first")
    assert letter.flush(DEADLINE)
    assert letter.flush(DEADLINE)
    assert seen == [(1, False)] and letter_api.distinct == 1


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["close", "exit"])
def test_unsettled_events_are_reported_at_the_end_and_logged_if_the_relay_gives_them_up(
    ends: str, hold: Hold, letter_api: Any, runtime: Runtime, tmp_path: Path
) -> None:
    with start(relays.end_with_unsettled_events, letter_api.url, tmp_path, ends) as program:
        assert program.finish().code == 0, program.output
        assert runtime.left_behind() == []
        report, logged = program.output.splitlines()
    hold.release()
    time = "the 0.3 s timeout of close()" if ends == "close" else "exit_timeout (0.3 s) at the end of the process"
    assert report.startswith(f"degraded 0 True 40 events were sent to the relay and are not settled after {time}")
    assert re.fullmatch(r"letterapp relay \[\d+\]: 40 lost from ended processes: 40 events given up: .+", logged)
