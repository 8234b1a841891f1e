"""A host with several addresses, some of which refuse connections or drop packets."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from driven import connections
from harness import run
from programs.addresses import dropping_ports, forks_while_connecting, resolved, under_gevent

from letterapp import LetterError
from letterapp.testing import IngestionServer
from stress.ports import free_port


@pytest.fixture(scope="module")
def dropping() -> Iterator[list[int]]:
    """Ports that drop packets. All tests share them, since making them takes a while."""
    opened: list[socket.socket] = []
    yield dropping_ports(5, opened)
    for sock in opened:
        sock.close()


@pytest.fixture
def resolve_to(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have every name lead to these ports of the loopback address, in this order."""

    def resolve(*ports: int) -> None:
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: resolved(*ports))

    return resolve


@pytest.mark.parametrize("before, timeout", [(1, 2.0), (5, 2.0), (2, 10.0)])
def test_addresses_that_drop_packets_leave_time_for_the_next(
    before: int,
    timeout: float,
    letter_api: IngestionServer,
    driven: Any,
    dropping: list[int],
    resolve_to: Callable[..., None],
    errors: list[LetterError],
) -> None:
    resolve_to(*dropping[:before], letter_api.port)
    one = driven(max_retries=0, timeout=timeout)
    one.track()
    started = time.monotonic()
    assert one.settle() == [] and errors == [] and letter_api.distinct == 1
    assert time.monotonic() - started < timeout


def test_an_address_that_refuses_is_followed_by_the_next_at_once(
    letter_api: IngestionServer,
    driven: Any,
    resolve_to: Callable[..., None],
    errors: list[LetterError],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("letterapp._sockets.connect.DELAY", 3600.0)
    resolve_to(free_port(), free_port(), letter_api.port)
    one = driven(max_retries=0, timeout=7200)
    one.track()
    assert one.settle() == [] and errors == [] and letter_api.distinct == 1


def test_a_slow_first_address_wins_when_it_answers_first(
    letter_api: IngestionServer,
    driven: Any,
    dropping: list[int],
    resolve_to: Callable[..., None],
    errors: list[LetterError],
) -> None:
    resolve_to(letter_api.port, dropping[0])
    one = driven(max_retries=0)
    for _ in range(2):
        one.track()
        assert one.settle() == []
    assert errors == [] and connections(letter_api) == 1


@pytest.mark.parametrize("refusing", [False, True], ids=["all drop packets", "the last refuses"])
def test_a_request_to_addresses_that_all_fail_is_bounded_by_timeout(
    refusing: bool,
    driven: Any,
    dropping: list[int],
    resolve_to: Callable[..., None],
    errors: list[LetterError],
) -> None:
    resolve_to(dropping[0], free_port() if refusing else dropping[1])
    one = driven(max_retries=0, timeout=0.5)
    one.track()
    before = set(os.listdir("/dev/fd"))
    assert one.settle() == []
    (error,) = errors
    assert "no answer within 0.5 s" in str(error)
    assert set(os.listdir("/dev/fd")) <= before  # every socket was closed; those of the test before may have gone too


def test_the_families_of_a_hosts_addresses_alternate() -> None:
    from letterapp._sockets.connect import interleaved

    six, four = socket.AF_INET6, socket.AF_INET
    places = [(six, 1), (six, 2), (six, 3), (four, 4), (four, 5)]
    assert [place[1] for place in interleaved(places)] == [1, 4, 2, 5, 3]
    assert interleaved([(four, 1), (six, 2)]) == [(four, 1), (six, 2)]
    assert interleaved([]) == []


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc to look into")
def test_a_child_forked_while_addresses_are_tried_keeps_none_of_the_sockets(
    letter_api: IngestionServer, tmp_path: Path
) -> None:
    assert run(forks_while_connecting, letter_api.url, tmp_path).output == "3\n0\n3\n"


@pytest.mark.slow
def test_under_gevent_addresses_are_tried_without_blocking_other_greenlets(
    letter_api: IngestionServer, tmp_path: Path
) -> None:
    pytest.importorskip("gevent")
    assert run(under_gevent, letter_api.url, tmp_path).output == "True 1\nTrue\n"
