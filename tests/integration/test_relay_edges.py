"""What was found by trying to break the relay, each with the smallest program that did.

The plain course of things is in `test_relay`.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from typing import Any, Callable

import psutil
import pytest
from harness import DEADLINE, eventually, run, start, suspend
from relayed import STATUSES, Runtime, own_runtime  # noqa: F401  (a fixture that is there for all)
from test_relay import balanced, script, track

from letterapp import Letter, LetterError
from letterapp._relay_server.ownership import OwnedSender, Owner
from letterapp._runtime.condition import Condition
from letterapp.testing import Hold, IngestionServer, status

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Unix")


def test_whoever_had_come_before_the_last_client_left_is_heard_however_many(
    runtime: Runtime, letter_api: Any, tmp_path: Any
) -> None:
    code = """
    from letterapp._relay import client as client_module
    client_module.GREETING = 60  # a machine that is busy may keep the relay from answering
    letter = Letter('test-key', API, relay=True, on_error=lambda error: None)
    relay = statuses()[0]['pid']
    print(relay)
    known, go_on = os.pipe(), os.pipe()
    def job():
        work(letter, 1, str(os.getpid()))
        os.write(known[1], b'.')
        os.close(go_on[1])
        os.read(go_on[0], 1)
        work(letter, 1, str(os.getpid()), start=1)
        os.kill(os.getpid(), signal.SIGKILL)
    children = [child(job) for _ in range(150)]
    for _ in children:
        os.read(known[0], 1)
    suspend(relay)
    os.close(go_on[1])
    for pid in children:
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    os.kill(os.getpid(), signal.SIGKILL)
    """
    with start(script(code), letter_api.url, tmp_path) as program:
        finished = program.finish()
        assert finished.code == -signal.SIGKILL, finished
        os.kill(int(finished.output), signal.SIGCONT)
    assert runtime.left_behind() == []
    assert len(letter_api.events) >= 300 == letter_api.distinct


def test_who_has_not_been_answered_when_all_are_killed_is_not_waited_for(
    runtime: Runtime, letter_api: Any, tmp_path: Any
) -> None:
    code = """
    letter = Letter('test-key', API, relay=True, on_error=lambda error: None)
    relay = statuses()[0]['pid']
    print(relay)
    suspend(relay)
    def job():
        work(letter, 1, str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    for pid in [child(job) for _ in range(20)]:
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    letter.flush(60)  # theirs too, which went the family's own way
    os.kill(os.getpid(), signal.SIGKILL)
    """
    with start(script(code), letter_api.url, tmp_path) as program:
        finished = program.finish()
        assert finished.code == -signal.SIGKILL, finished
        os.kill(int(finished.output), signal.SIGCONT)
    assert runtime.left_behind() == []
    assert letter_api.distinct == 20


def test_what_went_the_own_way_is_sent_at_the_end_though_the_relay_stands_still_and_no_thread_runs(
    runtime: Runtime, letter_api: Any, tmp_path: Any
) -> None:
    code = """
    from letterapp._runtime import servers
    servers.start_thread = lambda *_: False  # as under uWSGI without threads
    letter = Letter('test-key', API, relay=True, flush_interval=1000, flush_at=10_000, exit_timeout=8)
    work(letter, 1)
    relay = statuses()[0]['pid']
    suspend(relay)
    print(relay, flush=True)
    serial = 1
    while letter.stats()['mode'] == 'relay':
        letter.track('filling', 'E', {'serial': serial, 'much': 'x' * 3000})
        serial += 1
    work(letter, 20, 'own way')
    """
    with start(script(code), letter_api.url, tmp_path) as program:
        finished = program.finish()
        os.kill(int(finished.output.split()[0]), signal.SIGCONT)
        assert finished.code == 0, finished
    assert runtime.left_behind() == []
    assert sum(event["userId"] == "own way" for event in letter_api.events) == 20


def test_a_descriptor_that_somebody_closed_is_noticed_and_what_has_its_number_left_alone(
    letter_api: Any, tmp_path: Any
) -> None:
    code = """
    import socket
    letter = Letter('test-key', API, relay=True)
    work(letter, 1)
    os.closerange(3, 256)  # what a daemon library does
    strangers = [socket.socketpair() for _ in range(10)]
    work(letter, 3, start=1)
    for pair in strangers:
        for one in pair:
            one.setblocking(False)
            try:
                print('a stranger got', one.recv(1000))
            except BlockingIOError:
                pass
    assert letter.flush(60), letter.stats()
    """
    finished = run(code, letter_api.url, tmp_path)
    assert finished.code == 0 and "a stranger got" not in finished.output, finished
    assert letter_api.distinct == 4


def test_reports_that_nobody_reads_for_long_lose_their_events_and_not_their_count(
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


def test_what_gives_way_behind_the_batch_in_hand_does_not_count_for_it(
    make: Callable[..., Letter], runtime: Runtime, letter_api: IngestionServer, errors: list[LetterError]
) -> None:
    letter_api.rule = lambda request: status(503)
    options: dict[str, Any] = {"relay": True, "overflow": "drop_oldest", "max_queue_events": 300, "max_retries": 50}
    letter = make(**options)
    track(letter, 100, "in hand")
    assert letter_api.wait_until(lambda: len(letter_api.requests) > 0)
    track(letter, 150, "gives way", start=100)
    other = make(**options, on_error=lambda error: None)
    track(other, 280, "flood", start=250)
    assert eventually(lambda: runtime.status()["lost"].get("overflow", 0), bool)
    runtime.relay().kill()
    letter_api.rule = None
    assert letter.flush(DEADLINE) and other.flush(DEADLINE)
    assert sum(event["userId"] == "in hand" for event in letter_api.events) >= 100
    assert {event["properties"]["serial"] for event in letter_api.events} >= set(range(100))
    assert letter.close(DEADLINE) and other.close(DEADLINE)  # which waits for a relay that is just being started


def test_an_exception_from_a_signal_handler_in_the_middle_leaves_counters_that_balance(
    letter_api: Any, tmp_path: Any
) -> None:
    code = """
    letter = Letter('test-key', API, relay=True, max_queue_events=1_000_000, max_queue_bytes=1 << 30)
    class Now(Exception):
        pass
    inside = False
    def handler(*_):
        if inside:
            raise Now
    signal.signal(signal.SIGALRM, handler)
    returned, interrupted = [], 0
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    serial = 0
    while interrupted < 200:
        try:
            serial += 1
            inside = True
            letter.track('u', 'E', {'serial': serial})
            inside = False
            returned.append(serial)
        except Now:
            inside = False
            interrupted += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    assert letter.flush(30), letter.stats()
    stats = letter.stats()
    assert stats['waiting'] == 0 and stats['lost'] == {} and stats['accepted'] == stats['delivered'], stats
    print("\\nreturned", *returned)
    """
    finished = run(code, letter_api.url, tmp_path)
    # What the client says meanwhile may be cut short by a handler too.
    assert finished.code == 0 and "Traceback" not in finished.output, finished.output[-2000:]
    (returned,) = re.findall(r"^returned (.*)$", finished.output, re.M)
    came = {event["properties"]["serial"] for event in letter_api.events}
    assert came >= set(map(int, returned.split()))


def test_on_error_that_tracks_and_flushes_does_not_nest(
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


def test_a_stopped_relay_with_a_full_backlog_costs_a_new_client_nothing_but_the_shortcut(
    make: Callable[..., Letter], runtime: Runtime, letter_api: Any
) -> None:
    import socket

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


def test_the_end_of_a_process_leaves_no_warning_of_an_open_socket(letter_api: Any, tmp_path: Any) -> None:
    code = """
    import warnings
    warnings.simplefilter('always')
    letter = Letter('test-key', API, relay=True)
    work(letter, 1)
    letter.flush()
    """
    assert (run(code, letter_api.url, tmp_path, PYTHONDEVMODE="1").output) == ""


def test_a_relay_that_is_started_by_a_thread_which_blocks_signals_can_be_stopped(
    runtime: Runtime, letter_api: Any, tmp_path: Any
) -> None:
    code = """
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    letter = Letter('test-key', API, relay=True)
    print(statuses()[0]['pid'], flush=True)
    sys.stdin.read()
    stay()
    """
    with start(script(code), letter_api.url, tmp_path) as program:
        relay = int(eventually(lambda: program.output, lambda text: text.endswith("\n")))

        def ask() -> list[Any]:
            left = runtime.relays()
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):  # it has left since
                    process.terminate()
            return left

        assert [process.pid for process in runtime.relays()] == [relay]
        assert eventually(ask, lambda left: not left) == []


def test_a_held_request_is_kept_before_it_is_answered(letter_api: IngestionServer, make: Callable[..., Letter]) -> None:
    hold = Hold()
    letter_api.plan(hold)
    letter = make()
    track(letter, 1)
    assert hold.arrived.wait(DEADLINE) and letter_api.distinct == 0
    hold.release()
    assert letter.flush(DEADLINE) and letter_api.distinct == 1


def test_a_line_that_fits_into_no_request_is_lost_alone(letter_api: IngestionServer) -> None:
    settings = Letter("k", letter_api.url, enabled=False)._settings
    said: list[str] = []
    owned, owner = OwnedSender(settings, said.append, Condition()), Owner()
    assert owned.admit(b'{"x":"%s"}' % (b"a" * 501_610), owner)
    event = b'{"type":"track","userId":"u","messageId":"1","event":"E","timestamp":"2026-01-01","properties":{}}'
    assert owned.admit(event, owner)
    assert owned.sender.flush(DEADLINE) and letter_api.distinct == 1 and owner.settled == 2
    (report,) = owner.reports
    assert b'"lost": 1' in report and b'"cause": "overflow"' in report
    owned.sender.close(DEADLINE)
