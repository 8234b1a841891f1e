"""Relays with few descriptors, and one that retries without a limit."""

from __future__ import annotations

import contextlib
import socket
import sys
from typing import Any

import pytest
from harness import DEADLINE, FEW_DESCRIPTORS, eventually
from relayed import Runtime, greet, own_runtime  # noqa: F401  # the fixture
from responses import serials

from letterapp import LetterError
from letterapp._relay import protocol
from letterapp.testing import IngestionServer, status


def greeted(path: str, key: str, url: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(DEADLINE)
    sock.connect(path)
    with contextlib.suppress(protocol.Refused, OSError):  # the relay has no descriptor left for another client
        greet(sock, key, url)
    return sock


@pytest.fixture
def limited(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Runtime:
    """Relays of the test have 64 descriptors."""
    real = runtime.command_line
    monkeypatch.setattr(
        runtime,
        "command_line",
        lambda *options: [sys.executable, "-c", FEW_DESCRIPTORS, *real(*options)],
        raising=False,
    )
    return runtime


def test_a_relay_keeps_descriptors_in_reserve_for_sending(letter_api: IngestionServer, limited: Runtime) -> None:
    with limited.keep() as relay:
        clients = [greeted(limited.socket, "test-key", letter_api.url) for _ in range(100)]
        assert eventually(lambda: relay.output, lambda text: "descriptors" in text), relay.output
        clients[0].sendall(
            b'{"type":"track","userId":"u","messageId":"m","timestamp":"t","event":"E","properties":{"serial":7}}\n'
        )
        assert clients[0].recv(100) == b"[1]\n", relay.output
        assert serials(letter_api) == [7]
        for client in clients:
            client.close()


@pytest.mark.slow
def test_a_relay_with_64_descriptors_loses_nothing_of_100_clients(
    letter_api: IngestionServer, limited: Runtime, make: Any, errors: list[LetterError]
) -> None:
    with limited.keep() as relay:
        letters = [make(relay=limited.socket) for _ in range(100)]
        for serial, letter in enumerate(letters):
            letter.track("u", "E", {"serial": serial})
        assert all(letter.flush(DEADLINE) for letter in letters), relay.output
        assert sorted(set(serials(letter_api))) == list(range(100))
        assert [error for error in errors if error.lost] == []
        for letter in letters:
            letter.close(DEADLINE)


@pytest.mark.slow
def test_a_started_relay_gets_max_retries_none(
    letter_api: IngestionServer, make: Any, errors: list[LetterError], runtime: Runtime
) -> None:
    letter_api.plan(*[status(429, headers={"Retry-After": "0"})] * 4)
    letter = make(relay=True, max_retries=None)
    letter.track("u", "E")
    assert letter.flush(DEADLINE) and letter_api.distinct == 1 and errors == []
    assert len(letter_api.requests) == 5 and letter.stats()["relayed"] == 1
    assert letter.close(DEADLINE)
