"""Events that are sent to a relay: no kill or fork loses any, and the results of flush and close.

Who starts a relay is in `test_relay_start`, the command in `test_relay_command`, a relay that stands still, is full or
gone in `test_relay_unavailable`, losses in `test_relay_reports`, who is not served in `test_relay_refusals` and
`test_relay_input`, other users and a host that is short of something in `test_relay_users` and `test_relay_host`.
The protocol and the process's side of a connection have unit tests.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
from pathlib import Path
from typing import Any, Callable

import pytest
from harness import DEADLINE, run, whose
from programs import relay_trouble, relays
from relayed import Runtime, balanced, held_request, own_runtime, patient_clients, track  # noqa: F401  (fixtures)

from letterapp import Letter, LetterError
from letterapp.testing import Hold, status

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Unix"),
    pytest.mark.usefixtures("patient"),
]

FORKS = pytest.mark.parametrize("hooks", ["called", "not called"], ids=["os.fork", "without Python's hooks"])


# Handing over.


def test_a_process_with_a_relay_runs_no_thread(runtime: Runtime, letter_api: Any, tmp_path: Path) -> None:
    finished = run(relays.have_no_threads, letter_api.url, tmp_path)
    assert finished.code == 0, finished
    assert whose(letter_api) == {"program": list(range(200))}


def test_sigkill_of_a_worker_after_the_call_loses_nothing(runtime: Runtime, letter_api: Any, tmp_path: Path) -> None:
    finished = run(relays.killed_children, letter_api.url, tmp_path)
    assert finished.code == 0, finished
    assert runtime.left_behind() == []
    assert whose(letter_api) == {f"round {count}": list(range(count)) for count in range(1, 41)}


@pytest.mark.slow
def test_sigkill_of_the_only_process_after_the_call_loses_nothing(
    runtime: Runtime, letter_api: Any, tmp_path: Path
) -> None:
    for turn in range(5):
        assert run(relays.track_and_be_killed, letter_api.url, tmp_path, 50, "", f"turn {turn}").code == -signal.SIGKILL
        assert runtime.left_behind() == []  # it has drained
    assert whose(letter_api) == {f"turn {turn}": list(range(50)) for turn in range(5)}


def test_many_threads(make: Callable[..., Letter], letter_api: Any, errors: list[LetterError]) -> None:
    letter = make(relay=True)
    threads = [threading.Thread(target=track, args=(letter, 400, f"thread {number}")) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        balanced(letter.stats())
        thread.join(DEADLINE)
    assert letter.flush(DEADLINE)
    assert balanced(letter.stats())["lost"] == {}
    came = {who: sorted(serials) for who, serials in whose(letter_api).items()}
    assert came == {f"thread {number}": list(range(400)) for number in range(8)}


@pytest.mark.slow
@FORKS
def test_forks_while_threads_send_events_to_the_relay(
    hooks: str, runtime: Runtime, letter_api: Any, tmp_path: Path
) -> None:
    finished = run(relays.fork_while_threads_track, letter_api.url, tmp_path, hooks)
    assert finished.code == 0, finished
    assert runtime.left_behind() == []
    came = {who: sorted(serials) for who, serials in whose(letter_api).items()}
    expected = {"parent": list(range(20))}
    expected.update({f"child {number}": list(range(20)) for number in range(25)})
    expected.update(
        # Its last line: if the relay was held up before, the client has said that it takes no more for now.
        {f"thread {number}": list(range(n)) for number, n in enumerate(json.loads(finished.output.splitlines()[-1]))}
    )
    assert came == {who: serials for who, serials in expected.items() if serials}


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 9), reason="CPython 3.8 may leave a `with` without releasing its lock")
def test_exceptions_of_a_signal_handler_in_the_middle_of_calls_leave_balanced_counters(
    letter_api: Any, tmp_path: Path
) -> None:
    finished = run(relay_trouble.interrupted_calls, letter_api.url, tmp_path)
    # What the client says meanwhile may be cut short by a handler too.
    assert finished.code == 0 and "Traceback" not in finished.output, finished.output[-2000:]
    (returned,) = re.findall(r"^returned (.*)$", finished.output, re.M)
    came = {event["properties"]["serial"] for event in letter_api.events}
    assert came >= set(map(int, returned.split()))


# What flush and close mean.


def test_flush_returns_true_when_the_api_has_the_events_and_false_at_the_deadline(
    make: Callable[..., Letter], letter_api: Any, hold: Hold, errors: list[LetterError]
) -> None:
    letter = make(relay=True)
    track(letter, 5)
    assert hold.arrived.wait(DEADLINE)
    assert not letter.flush(0.2)
    assert balanced(letter.stats())["waiting"] == 5
    hold.release()
    assert letter.flush(DEADLINE) and letter_api.distinct == 5
    assert balanced(letter.stats())["delivered"] == 5 and errors == []


@pytest.mark.slow
def test_flush_sends_at_once_and_waits_for_retries(make: Callable[..., Letter], letter_api: Any) -> None:
    letter = make(relay=True, flush_at=10_000, flush_interval=600)
    letter_api.plan(status(503), status(503))
    track(letter, 5)
    assert letter.flush(DEADLINE)
    assert letter_api.distinct == 5 and len(letter_api.requests) == 3
    assert letter.stats()["mode"] == "relay"


def test_close_returns_true_when_all_is_settled_and_false_if_the_relay_still_has_events(
    make: Callable[..., Letter], runtime: Runtime, letter_api: Any, errors: list[LetterError]
) -> None:
    hold = Hold()
    letter_api.plan(hold)
    first, second = make(relay=True), make(relay=True)
    track(first, 5, "first")
    assert hold.arrived.wait(DEADLINE)
    track(second, 5, "second")
    assert not first.close(0.2)
    hold.release()
    assert second.close(DEADLINE) and letter_api.distinct == 10
    assert balanced(second.stats())["delivered"] == 5
    balanced(first.stats())
    (error,) = errors
    assert (error.cause, error.lost, [event["userId"] for event in error.events]) == ("degraded", 0, ["first"] * 5)


def test_events_that_the_relay_settles_in_time_are_not_reported(
    make: Any, letter_api: Any, errors: list[LetterError]
) -> None:
    letter = make(relay=True)
    track(letter, 40)
    assert letter.close(DEADLINE) and letter.close() and errors == []


@pytest.mark.parametrize("how", ["a thread", "no thread"])
def test_a_garbage_collected_client_without_its_relay_still_sends_its_events(
    how: str, runtime: Runtime, letter_api: Any, tmp_path: Path
) -> None:
    finished = run(relays.drop_the_client, letter_api.url, tmp_path, tmp_path / "away" / "r.sock", how)
    assert finished.code == 0 and "Traceback" not in finished.output, finished
    assert whose(letter_api) == {"program": [0, 1, 2, 3, 4]}, finished


def test_the_end_of_a_process_causes_no_warning_about_an_open_socket(letter_api: Any, tmp_path: Path) -> None:
    assert run(relay_trouble.end_with_warnings, letter_api.url, tmp_path, PYTHONDEVMODE="1").output == ""
