"""Answers that no relay should give to a process (`letterapp._relay.client`): the connection ends, no event is lost."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Any

import pytest
from harness import DEADLINE
from relayed import FakeRelay, counts_of, fake_relay, own_runtime, relay_client, take_back  # noqa: F401  (fixtures)

from letterapp import LetterError
from letterapp._relay import protocol

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets")


INVALID: list[dict[str, Any]] = [  # fields of a report
    {"lost": 10**30},
    {"lost": 3},
    {"lost": 0},
    {"lost": -1},
    {"lost": True},
    {"lost": 1.5},
    {"lost": "1"},
    {"message": 7},
    {"body": []},
    {"status": "200"},
    {"cause": ["x"]},
    {"events": ["{}", "{}"]},
    {"events": [7]},
    {"events": "{}"},
]


@pytest.fixture
def relay(client: Any, fake: FakeRelay) -> socket.socket:
    """The relay's end of the client's connection, over which one event was delivered."""
    assert client.send_event(b"{}")
    sock = fake.accept()
    sock.sendall(b"[1]\n")
    while counts_of(client) != (1, 0, 1):
        pass
    return sock


@pytest.mark.parametrize(
    "answer", [b"[many]\n", b"[\n", b"[1.5]\n", b'{"lost": 3}\n', b'{"lost": "all", "message": 1}\n', b"[\xff]\n"]
)
def test_an_invalid_answer_ends_the_connection_and_loses_nothing(answer: bytes, client: Any, fake: FakeRelay) -> None:
    events = [b'{"number":%d}' % number for number in range(3)]
    for event in events:
        assert client.send_event(event)
    fake.accept().sendall(b"[1]\n" + answer)
    assert counts_of(client) == (3, 2, 1)
    assert "sent an invalid response" in client.trouble and not client.is_connected()
    assert take_back(client) == events[1:]


@pytest.mark.parametrize(
    "answer",
    [
        b"[4]\n",
        b"[%s]\n" % (b"9" * 5000),
        b"[99999999999999999]\n",
        b"[-1]\n[" + b"1" * 30 + b"]\n[4]\n",
        *(protocol.line_of({**protocol.parse(protocol.lost(LetterError("x"), 1, [])), **change}) for change in INVALID),
        2 * protocol.lost(LetterError("x"), 1, []) + protocol.lost(LetterError("x"), 1, []),
    ],
)
def test_a_wrong_number_or_report_ends_the_connection_and_loses_nothing(
    answer: bytes, client: Any, relay: socket.socket
) -> None:
    assert client.send_event(b"{}") and client.send_event(b"{}")
    relay.sendall(answer)
    delivered = counts_of(client)[2]
    assert not client.is_connected() and "an invalid response" in client.trouble
    assert 0 <= delivered <= 1 and sum(client.counts().lost.values()) <= 2


@pytest.mark.slow
def test_a_flood_of_answers_does_not_block_a_call(client: Any, relay: socket.socket) -> None:
    stop = threading.Event()

    def flood() -> None:
        with contextlib.suppress(OSError):
            while not stop.is_set():
                relay.sendall(b"{}\n" * 100_000)

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        for _ in range(10):
            client.read_acks()  # it returns though there is always more
    finally:
        stop.set()
        client.close()
        thread.join(DEADLINE)


def test_a_line_without_an_end_ends_the_connection(client: Any, relay: socket.socket) -> None:
    relay.setblocking(False)
    sent = 0
    while client.is_connected() and sent < 4_000_000:
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            sent += relay.send(b"x" * 65_536)
        client.read_acks()
    assert 1_000_000 < sent < 2_000_000 and "an invalid response" in client.trouble
