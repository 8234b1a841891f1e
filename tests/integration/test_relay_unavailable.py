"""A relay that is stopped, full, gone or unreachable: processes send their events themselves until it is back."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any, Callable

import pytest
from harness import DEADLINE, eventually, run, start, suspend, whose
from programs import relay_trouble, relays
from relayed import (
    Runtime,
    balanced,
    held_request,  # noqa: F401  (a fixture)
    kept_relay,  # noqa: F401  (a fixture)
    own_runtime,  # noqa: F401  (a fixture)
    track,
    until_relayed,
)

from letterapp import Letter, LetterError
from letterapp.testing import Hold

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Unix")


# It stands still.


def test_the_process_sends_its_events_itself_while_the_relay_is_stopped(
    make: Callable[..., Letter], runtime: Runtime, letter_api: Any, errors: list[LetterError], kept: Any
) -> None:
    letter = make(relay=runtime.socket)
    track(letter, 1)
    assert letter.flush(DEADLINE)
    suspend(kept.pid)
    durations = []
    serial = 1
    while serial < 5000 and (serial < 3000 or letter.stats()["mode"] == "relay"):
        began = time.monotonic()
        track(letter, 1, start=serial)
        durations.append(time.monotonic() - began)
        serial += 1
        if not serial % 250:
            balanced(letter.stats())
    durations.sort()
    # A call waits a millisecond once, and those that follow do not at all. Other processes have the CPU now and then.
    assert durations[len(durations) // 2] < 0.001
    assert sum(duration > 0.1 for duration in durations) < len(durations) // 100, durations[-20:]
    stats = balanced(letter.stats())
    assert stats["mode"] == "thread" and 0 < stats["relayed"] < stats["accepted"] == serial
    assert not letter.flush(0.2)
    (error,) = errors
    assert "accepts no more events" in str(error) and not error.lost
    assert letter_api.wait_for(1 + serial - stats["relayed"])

    kept.signal(signal.SIGCONT)
    assert letter.flush(DEADLINE)
    assert sorted(whose(letter_api)["test"]) == sorted([0, *range(1, serial)])
    track(letter, 1, start=serial)
    stats = balanced(letter.stats())
    assert stats["mode"] == "relay" and len(errors) == 1
    assert letter.flush(DEADLINE) and balanced(letter.stats())["delivered"] == serial + 1


def test_a_constructor_does_not_hang_if_the_relay_is_stopped(
    make: Callable[..., Letter], runtime: Runtime, letter_api: Any, kept: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letterapp._relay.launcher.ANSWERING", 0.3)  # seconds that a constructor waits
    suspend(kept.pid)
    letter = make(relay=runtime.socket)
    track(letter, 3)
    kept.signal(signal.SIGCONT)
    assert letter.flush(DEADLINE) and letter_api.distinct == 3


def test_a_new_client_delivers_even_if_the_backlog_of_a_stopped_relay_is_full(
    make: Callable[..., Letter], runtime: Runtime, letter_api: Any
) -> None:
    first = make(relay=True)
    relay = runtime.relay()
    path = runtime.status()["socket"]
    suspend(relay.pid)
    waiting = []
    try:
        while True:
            sock = socket.socket(socket.AF_UNIX)
            waiting.append(sock)
            sock.setblocking(False)
            sock.connect(path)
    except BlockingIOError:
        pass
    try:
        second = make(relay=True)
        track(second, 3)
        assert second.flush(DEADLINE) and letter_api.distinct == 3
    finally:
        for sock in waiting:
            sock.close()
        os.kill(relay.pid, signal.SIGCONT)
    assert first.flush(DEADLINE)


@pytest.mark.slow
def test_a_relay_reads_the_events_of_all_connected_processes_even_if_many_were_killed(
    runtime: Runtime, letter_api: Any, tmp_path: Path
) -> None:
    with start(relay_trouble.killed_after_the_relay_stopped, letter_api.url, tmp_path) as program:
        finished = program.finish()
        assert finished.code == -signal.SIGKILL, finished
        os.kill(int(finished.output), signal.SIGCONT)
    assert runtime.left_behind() == []
    assert len(letter_api.events) >= 300 == letter_api.distinct


@pytest.mark.slow
def test_a_relay_does_not_wait_for_processes_that_were_killed_before_it_answered(
    runtime: Runtime, letter_api: Any, tmp_path: Path
) -> None:
    with start(relay_trouble.killed_before_the_relay_answered, letter_api.url, tmp_path) as program:
        finished = program.finish()
        assert finished.code == -signal.SIGKILL, finished
        os.kill(int(finished.output), signal.SIGCONT)
    assert runtime.left_behind() == []
    assert letter_api.distinct == 20


@pytest.mark.slow
def test_local_events_are_sent_at_the_end_with_a_stopped_relay_and_no_thread(
    runtime: Runtime, letter_api: Any, tmp_path: Path
) -> None:
    with start(relay_trouble.end_without_threads, letter_api.url, tmp_path) as program:
        finished = program.finish()
        os.kill(int(finished.output.split()[0]), signal.SIGCONT)
        assert finished.code == 0, finished
    assert runtime.left_behind() == []
    assert sum(event["userId"] == "local" for event in letter_api.events) == 20


@pytest.mark.parametrize("piece", [b"", b"x"])
def test_a_peer_that_answers_byte_by_byte_does_not_block_a_constructor(
    piece: bytes, make: Callable[..., Letter], runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letterapp._relay.launcher.ANSWERING", 0.3)  # seconds that a constructor waits
    path = str(runtime.path / "r.sock")
    over = threading.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(8)

        def trickle() -> None:
            sock = listener.accept()[0]
            with contextlib.suppress(OSError):
                while not over.wait(0.02):
                    sock.send(piece)
            sock.close()

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            make(relay=path)
        finally:
            over.set()
            thread.join(DEADLINE)


# It is full.


def test_more_events_than_the_relay_may_hold_are_sent_by_the_process_itself(
    make: Callable[..., Letter], letter_api: Any, hold: Hold, errors: list[LetterError]
) -> None:
    letter = make(relay=True, max_queue_events=100)
    track(letter, 1)
    assert hold.arrived.wait(DEADLINE)
    track(letter, 149, start=1)
    stats = balanced(letter.stats())
    assert stats["relayed"] == 100
    assert letter_api.wait_for(50)
    assert not letter.flush(0.1)
    assert eventually(lambda: balanced(letter.stats())["delivered"], lambda count: count == 50) == 50
    hold.release()
    assert letter.flush(DEADLINE)
    assert sorted(whose(letter_api)["test"]) == list(range(150))
    (error,) = errors
    assert "settles events more slowly" in str(error) and not error.lost


def test_a_full_relay_stops_reading_and_continues_later(
    make: Callable[..., Letter], runtime: Runtime, letter_api: Any, hold: Hold, errors: list[LetterError]
) -> None:
    first, second = make(relay=True, max_queue_events=100), make(relay=True, max_queue_events=100)
    track(first, 80, "first")
    assert hold.arrived.wait(DEADLINE)
    track(second, 80, "second")
    full = eventually(runtime.status, lambda status: status["paused"] == 1)
    assert full["paused"] == 1 and full["accepted"] == 100
    hold.release()
    assert first.flush(DEADLINE) and second.flush(DEADLINE)
    assert whose(letter_api) == {"first": list(range(80)), "second": list(range(80))}
    assert runtime.status()["paused"] == 0 and errors == []


# It has ended, or cannot be reached.


@pytest.mark.slow
def test_a_killed_relays_events_are_sent_again_and_a_new_relay_is_started(
    make: Callable[..., Letter], runtime: Runtime, letter_api: Any, hold: Hold, errors: list[LetterError]
) -> None:
    letter = make(relay=True)
    track(letter, 20)
    assert hold.arrived.wait(DEADLINE)
    first = runtime.relay()
    first.kill()
    first.wait(DEADLINE)
    track(letter, 1, start=20)
    stats = balanced(letter.stats())
    assert (stats["relayed"], stats["accepted"]) == (0, 21)
    (error,) = errors
    assert "this process sends its events itself until the relay is back" in str(error) and not error.lost
    assert letter.flush(DEADLINE) and sorted(whose(letter_api)["test"]) == list(range(21))
    assert until_relayed(letter, 21) and runtime.relay() != first
    assert letter.flush(DEADLINE)
    stats = balanced(letter.stats())
    assert stats["relayed"] and stats["lost"] == {} and len(errors) == 1
    assert letter_api.distinct == stats["accepted"] == stats["delivered"]


@pytest.mark.slow
def test_starting_a_relay_again_is_tried_with_back_off(runtime: Runtime, letter_api: Any, tmp_path: Path) -> None:
    finished = run(relays.relay_that_cannot_be_replaced, letter_api.url, tmp_path)
    assert finished.code == 0, finished
    attempts = finished.output.count("exists and is not a socket")
    assert 1 <= attempts <= 3, finished  # at 0, 0.4 and 1.2 seconds
    assert finished.output.count("until the relay is back") == 1, finished
    assert whose(letter_api) == {"program": list(range(int(finished.output.splitlines()[-1])))}


def test_a_relay_that_starts_later_than_its_client_is_joined(
    make: Callable[..., Letter], runtime: Runtime, letter_api: Any, errors: list[LetterError]
) -> None:
    Path(runtime.socket).parent.mkdir(mode=0o700)
    letter = make(relay=runtime.socket)
    track(letter, 1)
    assert letter.flush(DEADLINE) and balanced(letter.stats())["relayed"] == 0 and len(errors) == 1
    with runtime.keep():
        count = until_relayed(letter, 1)
        assert count and letter.flush(DEADLINE) and sorted(whose(letter_api)["test"]) == list(range(1 + count))


@pytest.mark.slow
def test_a_relay_whose_socket_was_removed_does_not_keep_others_from_starting(
    make: Callable[..., Letter], runtime: Runtime, letter_api: Any
) -> None:
    first = make(relay=True)
    track(first, 1, "first")
    os.unlink(runtime.status()["socket"])
    second = make(relay=True)
    track(second, 1, "second")
    assert first.flush(DEADLINE) and second.flush(DEADLINE)
    assert second.stats()["relayed"] == 1 and len(runtime.relays()) == 2 and letter_api.distinct == 2


def test_a_closed_descriptor_is_noticed_and_nothing_is_written_to_a_file_with_its_number(
    runtime: Runtime, letter_api: Any, tmp_path: Path
) -> None:
    finished = run(relay_trouble.lose_the_descriptor, letter_api.url, tmp_path)
    assert finished.code == 0 and "a stranger got" not in finished.output, finished
    assert letter_api.distinct == 4
    runtime.stop_all()  # the new one would wait 20 s for its first client, which has ended
