"""A process's connection to a relay (`letterapp._relay.client`): against a socket in the test's hands, byte by byte.

Invalid answers are in `test_relay_client_input`.
"""

from __future__ import annotations

import gc
import socket
import threading
import time
import warnings
from functools import partial
from typing import Any

import pytest
from harness import DEADLINE
from relayed import (
    KEY,
    NOWHERE,
    FakeRelay,
    Runtime,
    caller,
    client_of,
    counts_of,
    fake_relay,  # noqa: F401  (a fixture)
    own_runtime,  # noqa: F401  (a fixture)
    read_exactly,
    relay_client,  # noqa: F401  (a fixture)
    take_back,
)

from letterapp import LetterError
from letterapp._relay import protocol
from letterapp._relay.client import RelayClient

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets")

EVENTS = [b'{"number":%d}' % number for number in range(5)]
LOST = protocol.lost(LetterError("no", 400, "body", "code", "reason", cause="rejected"), 2, EVENTS[:1])


def send(client: Any, count: int) -> None:
    for event in EVENTS[:count]:
        assert client.send_event(event)


def test_events_follow_the_proof_before_the_relay_answers(client: Any, fake: FakeRelay) -> None:
    send(client, 3)
    expected = b"".join(event + b"\n" for event in EVENTS[:3])
    relay = fake.accept()
    assert read_exactly(relay, len(expected)) == expected
    client.request_flush()
    assert read_exactly(relay, 2) == b"!\n" and counts_of(client) == (3, 3, 0)


def test_an_acknowledgement_is_the_number_of_events_settled_since_the_greeting(client: Any, fake: FakeRelay) -> None:
    send(client, 5)
    relay = fake.accept()
    for answer, settled in [(b"[1]\n", 1), (b"[3]\n", 3), (b"[3]\n", 3), (b"[4]\n[5]\n", 5)]:
        relay.sendall(answer)
        assert counts_of(client) == (5, 5 - settled, settled)
    assert client.wait(5, time.monotonic() + DEADLINE, time.monotonic)


def test_a_new_connection_counts_from_zero(client: Any, fake: FakeRelay) -> None:
    send(client, 3)
    first = fake.accept()
    first.sendall(b"[2]\n")
    first.close()
    assert counts_of(client) == (3, 1, 2) and not client.send_event(EVENTS[3])  # the one that came back goes first
    assert take_back(client) == [EVENTS[2]]
    client.retry_soon()
    send(client, 5)
    fake.accept().sendall(b"[4]\n")
    assert counts_of(client) == (7, 1, 6)


def test_answers_may_come_in_any_pieces(client: Any, fake: FakeRelay) -> None:
    send(client, 5)
    relay = fake.accept()
    answers = LOST + b"[2]\n[5]\n"
    for place in range(len(answers)):
        relay.sendall(answers[place : place + 1])
        whole = answers[: place + 1].count(b"\n")
        relayed, waiting, delivered = counts_of(client)
        assert (relayed, waiting) == (5, [5, 3, 3, 0][whole])  # the report counts already
    assert delivered == 3 and client.counts().lost == {"rejected": 2}
    (error,) = client.take_errors()
    assert (error.status, error.lost, error.events) == (400, 2, [{"number": 0}]) and client.take_errors() == []


@pytest.mark.parametrize(("counted", "lost"), [(0, 0), (1, 0), (2, 1), (3, 2)])
def test_a_loss_that_the_relay_reported_and_did_not_acknowledge_counts_where_the_event_is_sent_again(
    counted: int, lost: int, client: Any, fake: FakeRelay
) -> None:
    send(client, 3)
    report = protocol.lost(LetterError("refused", cause="rejected"), 2, [])
    answers = b"[1]\n" if counted == 1 else report + (b"[%d]\n" % (counted - 1) if counted else b"")
    relay = fake.accept()
    relay.sendall(answers)
    client.read_acks()
    relay.close()
    client.read_acks()
    settled = max(counted - 1, counted == 1)
    assert take_back(client) == EVENTS[settled:3]
    counts = client.counts()
    assert (counts.relayed, counts.waiting, counts.lost) == (settled, 0, {"rejected": lost} if lost else {})
    assert counts.delivered == settled - lost


@pytest.mark.parametrize("fails", ["caller", "peer's name"])
def test_a_connection_that_cannot_be_used_is_closed(
    fails: str, runtime: Runtime, fake: FakeRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unlucky(*_: Any) -> Any:
        raise OSError(24, "Too many open files")

    if fails == "peer's name":
        monkeypatch.setattr("letterapp._relay.connection.Connection.__init__", unlucky)
    make_caller = unlucky if fails == "caller" else partial(caller, KEY, NOWHERE)
    client = RelayClient(lambda: runtime.fake, make_caller, 10, 10_000)
    with warnings.catch_warnings(record=True) as complaints:
        warnings.simplefilter("always")
        assert not client.send_event(EVENTS[0]) and "Too many open files" in client.trouble
        gc.collect()
    assert complaints == []


def test_answers_of_a_later_version_are_ignored(client: Any, fake: FakeRelay) -> None:
    send(client, 1)
    fake.accept().sendall(b'{"weather": "fine"}\nhello\n\n[1]\n')
    assert counts_of(client) == (1, 0, 1) and client.trouble == ""


def test_a_refused_client_does_not_soon_try_again(client: Any, fake: FakeRelay) -> None:
    send(client, 2)
    fake.accept().sendall(protocol.line_of({"refused": "it is Monday"}))
    assert counts_of(client)[1] == 2
    assert client.trouble == "refuses this client: it is Monday" and take_back(client) == EVENTS[:2]
    assert not client.send_event(EVENTS[0]) and not fake.has_another()


def test_a_relay_that_accepts_no_more_events_may_still_acknowledge(client: Any, fake: FakeRelay) -> None:
    send(client, 3)
    relay = fake.accept()
    relay.shutdown(socket.SHUT_RD)
    assert not client.send_event(EVENTS[3]) and counts_of(client) == (3, 3, 0)
    relay.sendall(b"[3]\n")
    relay.close()
    assert counts_of(client) == (3, 0, 3) and take_back(client) == []


def test_a_full_socket_accepts_complete_lines_or_nothing(client: Any, fake: FakeRelay) -> None:
    events = [b'{"number":%d,"filling":"%s"}' % (number, b"x" * (number * 37 % 3000)) for number in range(8000)]
    took = []
    refused = 0
    for event in events:
        if client.send_event(event):
            took.append(event)
        else:
            refused += 1
        if refused == 50:
            break
    assert refused == 50 and client.trouble == "accepts no more events for now" and client.is_connected()
    assert not client.counts().is_up and client.counts().relayed == len(took)
    expected = b"".join(event + b"\n" for event in took)
    relay = fake.accept()
    assert read_exactly(relay, len(expected)) == expected
    send(client, 1)  # there is room again
    assert client.counts().is_up and read_exactly(relay, len(EVENTS[0]) + 1) == EVENTS[0] + b"\n"


def test_lines_of_many_threads_are_not_mixed(client: Any, fake: FakeRelay) -> None:
    took: list[list[bytes]] = [[] for _ in range(4)]

    def hand(number: int) -> None:
        for serial in range(300):
            event = b'{"thread":%d,"serial":%d}' % (number, serial)
            if client.send_event(event):
                took[number].append(event)

    threads = [threading.Thread(target=hand, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    length = sum(len(event) + 1 for each in took for event in each)
    lines = read_exactly(fake.accept(), length).splitlines()
    assert [[line for line in lines if b'"thread":%d,' % number in line] for number in range(4)] == took


def test_an_event_that_is_too_large_for_one_send_is_not_sent_to_the_relay(client: Any, fake: FakeRelay) -> None:
    assert not client.send_event(b"{" + b" " * 60_000 + b"}")
    send(client, 1)
    assert counts_of(client) == (1, 1, 0) and client.trouble == ""


def test_more_events_than_the_client_may_hold_are_not_sent_to_the_relay(
    runtime: Runtime, fake: FakeRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letterapp._relay.client.GREETING", DEADLINE)
    client = client_of(runtime.fake, max_events=2)
    send(client, 2)
    assert (
        not client.send_event(EVENTS[2])
        and client.trouble == "settles events more slowly than this process tracks them"
    )
    fake.accept().sendall(b"[1]\n")
    assert client.send_event(EVENTS[2]) and counts_of(client) == (3, 2, 1)
    client.close()


def test_waiting_ends_at_the_answer_at_the_deadline_and_when_the_relay_ends(client: Any, fake: FakeRelay) -> None:
    send(client, 2)
    relay = fake.accept()
    assert not client.wait(2, time.monotonic() + 0.05, time.monotonic)
    answer = threading.Timer(0.05, relay.sendall, [b"[2]\n"])
    answer.start()
    assert client.wait(2, time.monotonic() + DEADLINE, time.monotonic)
    answer.join()
    send(client, 1)
    leave = threading.Timer(0.05, relay.shutdown, [socket.SHUT_RDWR])
    leave.start()
    assert not client.wait(3, time.monotonic() + DEADLINE, time.monotonic)
    leave.join()
    assert client.trouble == "has ended"


def test_a_process_sends_no_proof_to_a_relay_without_the_key(client: Any, runtime: Runtime) -> None:
    stranger = FakeRelay(runtime.fake, "another-key", NOWHERE)
    try:
        assert not client.send_event(EVENTS[0])
        assert client.trouble == "refuses this client: it has another API key"
        sock = stranger.last()
        assert sock is not None and sock.recv(65_536) == b""
    finally:
        stranger.close()
