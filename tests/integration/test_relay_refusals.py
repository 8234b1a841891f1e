"""Which clients a relay refuses, what it responds to them, and that it continues to serve all others."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any, Callable

import pytest
from harness import DEADLINE, eventually, first_is_quick, start, whose
from programs import relays
from relayed import (
    KEY,
    NOWHERE,
    Runtime,
    caller,
    greet,
    kept_relay,  # noqa: F401  (a fixture)
    line_from,
    own_runtime,  # noqa: F401  (a fixture)
    patient_clients,  # noqa: F401  (a fixture)
    read_to_end,
    track,
)

from letterapp import Letter, LetterError
from letterapp._relay import protocol

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Unix"),
    pytest.mark.usefixtures("patient"),
]


def hello(key: str, url: str, wants: str = protocol.EVENTS) -> bytes:
    return caller(key, url, wants).hello


def after_the_greeting(api: Any, then: bytes) -> Callable[[socket.socket], object]:
    return lambda sock: greet(sock, KEY, api.url).sendall(then)


def without_the_key(sock: socket.socket, api: Any) -> None:
    sock.sendall(hello("another-key", api.url))
    line_from(sock)
    sock.sendall(protocol.line_of({"proof": "0" * 64}))


WRONG: dict[str, Callable[[Any], Any]] = {
    "it has another API key": lambda api: lambda sock: without_the_key(sock, api),
    "another API than": lambda api: hello(KEY, NOWHERE),
    "it asks for something that this relay does not offer": lambda api: hello(KEY, api.url, "everything"),
    "it uses another version of the protocol": lambda api: (
        b'{"letterapp": 1, "proof": "ab", "api": "", "wants": "events"}\n'
    ),
    "it does not use this protocol": lambda api: b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "it sent something that is not an event": lambda api: after_the_greeting(api, b"no event\n"),
    "it sent a line that is too long": lambda api: after_the_greeting(api, b"{" * 4_300_000),
}


def say(path: str, data: bytes | Callable[[socket.socket], object]) -> bytes:
    """Send ``data`` to the relay, or call it with the socket, and return all that the relay answers."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(DEADLINE)
        sock.connect(path)
        try:
            sock.sendall(data) if isinstance(data, bytes) else data(sock)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has closed the connection in the middle
        return read_to_end(sock)


@first_is_quick("reason", [*WRONG, "greeting without an end"])
def test_an_invalid_line_is_refused_and_each_reason_logged_once(
    reason: str, make: Callable[..., Letter], runtime: Runtime, letter_api: Any, kept: Any
) -> None:
    letter = make(relay=runtime.socket)
    track(letter, 1)
    said = WRONG[reason](letter_api) if reason in WRONG else b"x" * 5000
    reason = reason if reason in WRONG else "it does not use this protocol"
    for _ in range(3):
        answer = say(runtime.socket, said)
        assert not answer or reason in json.loads(answer)["refused"], answer
    assert runtime.own_status()["refused"] == 3
    assert kept.output.count(reason) == 1, kept.output
    track(letter, 1, start=1)
    assert letter.flush(DEADLINE) and letter.stats()["relayed"] == 2 and letter_api.distinct == 2


def test_a_refused_client_reports_why_without_the_key(runtime: Runtime, letter_api: Any, kept: Any) -> None:
    with pytest.raises(LetterError, match="refuses this client: it has another API key") as raised:
        Letter("another-key", letter_api.url, relay=runtime.socket)
    assert "another-key" not in str(raised.value)
    with pytest.raises(LetterError, match="refuses this client: it sends to another API"):
        Letter(KEY, NOWHERE, relay=runtime.socket)
    assert KEY not in kept.output and "another-key" not in kept.output
    assert "it disconnected before it proved that it has the API key" in eventually(
        lambda: kept.output, lambda text: "disconnected" in text
    )


@pytest.mark.slow
def test_a_thousand_silent_connections_affect_no_client(
    runtime: Runtime, letter_api: Any, tmp_path: Path, make: Callable[..., Letter], kept: Any
) -> None:
    def refused() -> int:
        try:
            return int(runtime.own_status()["refused"])
        except BlockingIOError:
            return 0  # so many connections wait to be accepted that the system refuses another one

    letter = make(relay=runtime.socket)
    with start(relays.silent_connections, letter_api.url, tmp_path, runtime.socket) as silent:
        assert "connected" in eventually(lambda: silent.output, lambda text: "connected" in text)
        assert eventually(refused, lambda count: count >= 900) >= 900  # all have been accepted, and most refused
        track(letter, 100)
        assert letter.flush(DEADLINE) and letter.stats()["relayed"] == 100
        late = make(relay=runtime.socket)
        track(late, 100, "late")
        assert late.flush(DEADLINE) and late.stats()["relayed"] == 100
        all_refused = eventually(runtime.own_status, lambda status: status["refused"] == 1000)
        assert all_refused["refused"] == 1000  # those that were few enough too, after a while
        assert (
            kept.output.count("did not authenticate in time")
            == 1
            == kept.output.count("too many unauthenticated connections")
        )
        assert kept.output.count("connection was refused") == 2, "each reason once"
    assert len(whose(letter_api)["late"]) == 100
