"""A plain program: each of its events arrives once, however it ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from harness import DEADLINE, eventually, first_is_quick, run, start, whose
from programs import single

from letterapp.testing import Hold, stall, status

ENDS = ["comes to its end", "closes", "flushes", "calls sys.exit", "raises", "leaves a with"]


@first_is_quick("end", ENDS)
def test_every_event_of_a_script_arrives_once_when_it(end: str, letter_api: Any, tmp_path: Path) -> None:
    finished = run(single.script, letter_api.url, tmp_path, end)
    assert finished.code == (1 if end == "raises" else 0), finished
    assert whose(letter_api) == {"program": list(range(777))}, finished
    assert letter_api.repeated() == {}


def test_ctrl_c_loses_nothing(letter_api: Any, tmp_path: Path) -> None:
    with start(single.interrupted, letter_api.url, tmp_path) as program:
        assert eventually(lambda: program.output, lambda text: "tracked" in text)
        program.signal(signal.SIGINT)
        finished = program.finish()
    assert "KeyboardInterrupt" in finished.output
    assert whose(letter_api) == {"program": list(range(500))}


@pytest.mark.parametrize("registered", ["before", "after"])
def test_an_event_tracked_by_an_exit_callback_arrives_on_whichever_side_of_ours_it_runs(
    registered: str, letter_api: Any, tmp_path: Path
) -> None:
    finished = run(single.exit_callback, letter_api.url, tmp_path, registered)
    assert finished.code == 0 and finished.output == "", finished
    assert whose(letter_api) == {"program": list(range(30))}
    assert letter_api.repeated() == {}


def test_a_client_first_used_in_an_exit_callback_delivers(letter_api: Any, tmp_path: Path) -> None:
    finished = run(single.first_use_in_an_exit_callback, letter_api.url, tmp_path)
    assert finished.output == "", finished
    assert sorted(whose(letter_api)["program"]) == list(range(6))


def test_events_of_a_thread_that_runs_while_the_interpreter_ends_arrive(letter_api: Any, tmp_path: Path) -> None:
    finished = run(single.thread_at_the_end, letter_api.url, tmp_path)
    assert finished.output == "", finished
    assert whose(letter_api) == {"program": list(range(300))}


def test_a_discarded_client_still_delivers(letter_api: Any, tmp_path: Path) -> None:
    run(single.thrown_away, letter_api.url, tmp_path)
    assert whose(letter_api) == {"program": list(range(40))}


def test_one_request_per_call_as_in_a_lambda_function(letter_api: Any, make: Any) -> None:
    letter = make(flush_at=1)
    for invocation in range(5):
        letter.track("user", "Invoked", {"serial": invocation})
        assert letter.flush() is True
        assert letter_api.distinct == invocation + 1
    assert len(letter_api.requests) == 5
    assert len({request.connection for request in letter_api.requests}) == 1


@pytest.mark.slow
def test_many_clients_settle_at_the_same_time_at_an_end(letter_api: Any, tmp_path: Path) -> None:
    letter_api.rule = lambda request: stall(1)
    finished = run(single.many_clients, letter_api.url, tmp_path, 1000, 18)
    assert finished.output == "", finished  # one after the other would take 20 s
    assert whose(letter_api) == {f"client {number}": list(range(5)) for number in range(20)}


def test_a_call_during_the_end_returns_when_its_event_is_settled(make: Any, letter_api: Any) -> None:
    letter = make()
    letter._delivery.end(time.monotonic() + 60, final=True)
    hold = Hold()
    letter_api.plan(hold)
    calls = [threading.Thread(target=letter.track, args=("u", f"{number}")) for number in range(3)]
    calls[0].start()
    assert hold.arrived.wait(60)
    for number, call in enumerate(calls[1:], 2):  # the first of them finds an empty queue, the second does not
        call.start()
        assert eventually(lambda: letter.stats()["waiting"], lambda waiting: waiting == number) == number  # noqa: B023
    calls[2].join(0.3)
    assert all(call.is_alive() for call in calls)
    hold.release()
    for call in calls:
        call.join(60)
    assert letter.stats()["delivered"] == 3


@pytest.mark.parametrize("end", ["close", "end of the process"])
def test_an_end_returns_at_once_if_the_thread_settles_the_last_event_and_stops_while_it_is_asked(
    end: str, make: Any, letter_api: Any
) -> None:
    letter = make()
    queue = letter._delivery._queue
    hold = Hold()
    letter_api.plan(hold)
    letter.track("u", "e")
    assert hold.arrived.wait(DEADLINE)
    has_settled = queue.has_settled
    asked: list[bool] = []

    def answer_late(target: int) -> bool:
        """The queue's answer, which is out of date when the caller, who is about to wait, gets it."""
        answer: bool = has_settled(target)
        asked.append(answer)
        if asked == [False, False]:  # the second time is the check before the wait
            letter._delivery._worker.stop_when_idle()  # as every `close` does, and a `flush` of another thread
            hold.release()
            assert not eventually(lambda: queue.has_worker, lambda is_there: not is_there)
        return answer

    queue.has_settled = answer_late
    began = time.monotonic()
    if end == "close":
        assert letter.close(20) is True
    else:
        letter._delivery.end(began + 20, final=True)
    assert time.monotonic() - began < 15 and asked[:3] == [False, False, True]
    assert letter.stats()["delivered"] == 1


@pytest.mark.parametrize("api", ["answers", "is silent"])
def test_a_flush_returns_at_once_if_another_thread_tracks_while_the_worker_stops(
    api: str, make: Any, letter_api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letterapp._delivery.worker.IDLE", 60.0)  # by itself an idle worker would not stop in this test
    letter = make(timeout=60)
    queue = letter._delivery._queue
    try_stop, hold = queue.try_stop_worker, Hold()
    others: list[threading.Thread] = []

    def try_stop_and_start_another() -> bool:
        """The call starts a new worker thread before the old one has told anybody that it stops."""
        stopped: bool = try_stop()
        if stopped and not others:
            if api == "is silent":
                letter_api.plan(hold)
            others.append(threading.Thread(target=letter.track, args=("u", "another")))
            others[0].start()
            others[0].join(DEADLINE)
            assert hold.arrived.wait(DEADLINE) if api == "is silent" else letter_api.wait_for(2)
        return stopped

    queue.try_stop_worker = try_stop_and_start_another
    letter.track("u", "e")
    began = time.monotonic()
    assert letter.flush(20) is True
    assert time.monotonic() - began < 15 and others
    hold.release()


@pytest.mark.filterwarnings("ignore:letterapp")
def test_a_flush_sends_by_itself_if_the_thread_that_another_call_starts_cannot_run(make: Any, letter_api: Any) -> None:
    letter = make(flush_interval=30)
    delivery = letter._delivery
    starts: list[object] = []

    def fail(send: object) -> bool:
        starts.append(send)
        if len(starts) == 1:  # until the flush waits for this thread
            assert eventually(lambda: len(delivery.progress._waiters), lambda count: count > 0)
        return False

    delivery._worker._start = fail
    other = threading.Thread(target=delivery.wake)
    other.start()
    assert eventually(lambda: starts, bool)
    letter.track("u", "e")
    began = time.monotonic()
    assert letter.flush(20) is True
    assert time.monotonic() - began < 15
    other.join()


def test_an_end_takes_one_budget_when_the_api_is_silent(letter_api: Any, tmp_path: Path) -> None:
    letter_api.rule = lambda request: Hold()
    finished = run(single.many_clients, letter_api.url, tmp_path, 0.1, 1)
    letter_api.rule = None
    assert finished.seconds < 15  # twenty clients, one after the other, would take 20 s
    assert finished.output.count("5 events given up") == 20, finished


def test_the_last_losses_are_reported_before_the_process_ends(letter_api: Any, tmp_path: Path) -> None:
    # Settled is not yet reported: `on_error` runs on the sender's thread, which the end of the interpreter stops.
    letter_api.plan(status(401))
    finished = run(single.slow_report, letter_api.url, tmp_path)
    assert (finished.code, finished.output) == (0, "reported 10\n"), finished


@pytest.mark.parametrize("end, cause", [("plain end", "exit"), ("close", "closed")], ids=["plain end", "close"])
def test_drops_are_reported_at_the_end_even_if_a_request_hangs(
    end: str, cause: str, letter_api: Any, tmp_path: Path
) -> None:
    hold = Hold()
    letter_api.rule = lambda request: hold
    finished = run(single.dropped, letter_api.url, tmp_path, end)
    hold.release()
    assert finished.code == 0, finished
    assert sorted(finished.output.splitlines()) == [f"{cause} 10", "overflow 20"], finished


@pytest.mark.parametrize("where", ["script", "multiprocessing child"])
def test_a_system_exit_from_a_signal_handler_does_not_cut_the_end_short(
    where: str, letter_api: Any, tmp_path: Path
) -> None:
    hold = Hold()
    letter_api.plan(hold)
    with start(single.asked_to_exit, letter_api.url, tmp_path, where) as program:
        assert hold.arrived.wait(DEADLINE)
        pid = int(program.output)
        for times in (1, 2):
            program.signal(signal.SIGTERM, pid)
            reported = eventually(lambda: program.output.count("reported"), lambda count: count >= times)  # noqa: B023
            assert reported >= times
        hold.release()
        finished = program.finish()
    assert (finished.code, finished.output) == (0, f"{pid}\nreported\nreported\n"), finished
    assert whose(letter_api) == {"program": list(range(5))}


def test_a_try_that_the_end_brought_forward_does_not_count(letter_api: Any, tmp_path: Path) -> None:
    letter_api.plan(status(429, headers={"Retry-After": "60"}), status(503))
    finished = run(single.retry_brought_forward, letter_api.url, tmp_path)
    assert (finished.code, finished.output) == (0, ""), finished
    assert whose(letter_api) == {"program": list(range(10))}


def test_statistics_balance_at_any_moment(make: Any, letter_api: Any) -> None:
    letter = make(max_queue_events=50)
    calls = 0
    for turn in range(40):
        for _ in range(turn):
            letter.track("u", "e", {"bad": object()} if calls % 7 == 0 else None)
            calls += 1
        stats: dict[str, Any] = letter.stats()
        assert stats["accepted"] == calls == stats["delivered"] + sum(stats["lost"].values()) + stats["waiting"]
    assert letter.flush()
    stats = letter.stats()
    assert stats["waiting"] == stats["waiting_bytes"] == 0 and stats["pid"] == os.getpid() and stats["mode"] == "thread"
    assert stats["accepted"] == calls == letter_api.distinct + sum(stats["lost"].values())
