"""How a relay handles the lines that processes send: events in any pieces, from many connections."""

from __future__ import annotations

import contextlib
import socket
from typing import Any, Callable, Iterator

import pytest
from harness import eventually
from relayed import KEY, Runtime, greeted, own_runtime, raw_event  # noqa: F401  (a fixture)

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets")


@pytest.fixture
def connect(runtime: Runtime, letter_api: Any) -> Iterator[Callable[[], socket.socket]]:
    """Connections to a real relay, authenticated."""
    with runtime.keep(), contextlib.ExitStack() as made:
        yield lambda: made.enter_context(greeted(runtime.socket, KEY, letter_api.url))


def count(sock: socket.socket, target: int) -> list[int]:
    """The counts that come until one is ``target``."""
    heard = b""
    while not heard.endswith(b"[%d]\n" % target):
        more = sock.recv(65_536)
        assert more, heard
        heard += more
    return [int(line[1:-1]) for line in heard.splitlines()]


def test_events_may_arrive_in_any_pieces(connect: Any, letter_api: Any) -> None:
    sock = connect()
    said = b"".join(raw_event(number) for number in range(30)) + b"!\n"
    for place in range(0, len(said), 61):
        sock.sendall(said[place : place + 61])
    counts = count(sock, 30)
    assert counts == sorted(set(counts)) and letter_api.distinct == 30


def test_each_connection_gets_acknowledgements_of_its_own_events(connect: Any, letter_api: Any) -> None:
    first, second = connect(), connect()
    for number in range(30):
        (first if number % 3 else second).sendall(raw_event(number))
    assert count(first, 20)[-1] == 20 and count(second, 10)[-1] == 10
    assert letter_api.distinct == 30


def test_the_same_event_over_two_connections_counts_for_both(connect: Any, letter_api: Any) -> None:
    first, second = connect(), connect()
    for sock in (first, second):
        sock.sendall(raw_event(0) + raw_event(0))
    count(first, 2)
    count(second, 2)
    assert letter_api.distinct == 1


def test_events_received_before_a_connection_ended_are_sent(connect: Any, letter_api: Any, runtime: Runtime) -> None:
    sock = connect()
    sock.sendall(b"".join(raw_event(number) for number in range(200)) + b'{"half')
    sock.close()
    assert letter_api.wait_for(200) and letter_api.distinct == 200
    status = eventually(runtime.own_status, lambda status: status["processes"] == 0)
    assert (status["processes"], status["accepted"], status["refused"]) == (0, 200, 0)


def test_a_process_that_never_reads_its_answers_affects_no_other(connect: Any, letter_api: Any) -> None:
    deaf, other = connect(), connect()
    for number in range(2000):
        deaf.sendall(raw_event(number))
        if not number % 100:
            other.sendall(raw_event(10_000 + number))
    count(other, 20)
    assert letter_api.wait_for(2020)
    assert count(deaf, 2000)[-1] == 2000
