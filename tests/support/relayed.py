"""Relays of the tests: a runtime directory for each test, the processes that serve there; none may be left.

Responsible for: where the relays of one test are, starting one, asking for its status, a fake one, and what tests of
relays count alike. Not responsible for: what is right.

A relay that was started for clients is in its own process group. It is found by its command line, which holds the path
of its socket, and so the directory of its test.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any, Iterator

import psutil
import pytest
from harness import DEADLINE, Program, environment, eventually, processes_with
from senders import lent, run_to_end, serving

from letterapp import Letter
from letterapp._relay import protocol
from letterapp._text import Secret
from letterapp.testing import Hold

KEY = "test-key"  # what `make` and the programs' clients have
STRANGER = 65534  # nobody
needs_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="becomes another user")

NOWHERE = "http://127.0.0.1:9"  # an API where nothing listens


def caller(key: str, url: str, wants: str = protocol.EVENTS) -> protocol.Caller:
    """The process's side of the authentication."""
    return protocol.Caller(Secret(key), url, wants)


def callee(key: str, url: str) -> protocol.Callee:
    """The relay's side of it."""
    return protocol.Callee(Secret(key), url)


def greet(sock: socket.socket, key: str, url: str, wants: str = protocol.EVENTS) -> socket.socket:
    """Authenticate to a relay, as a process does; `protocol.Refused` if it refuses."""
    process = caller(key, url, wants)
    sock.sendall(process.hello)
    with sock.makefile("rb") as lines:  # while it is open, closing the socket does not close the connection
        challenge = lines.readline()
    sock.sendall(process.answer(challenge))
    return sock


def greeted(path: str, key: str, url: str, wants: str = protocol.EVENTS) -> socket.socket:
    """A new connection to the relay at ``path``, authenticated."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(DEADLINE)
    sock.connect(path)
    return greet(sock, key, url, wants)


def raw_event(message_id: object) -> bytes:
    """The line of one event as a client writes it. The API recognises repeated ones by ``message_id``."""
    fields = '"type":"track","userId":"raw","event":"E","properties":{},"messageId":"%s","timestamp":"2026-01-01"'
    return b"{%s}\n" % (fields % message_id).encode()


def line_from(sock: socket.socket) -> bytes:
    """The next line, and nothing of what follows it."""
    line = b""
    while not line.endswith(protocol.END):
        more = sock.recv(1)
        assert more, line
        line += more
    return line


def read_exactly(sock: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = sock.recv(length - len(data))
        assert more, data
        data += more
    return data


def read_to_end(sock: socket.socket) -> bytes:
    """All that comes until the peer closes the connection or resets it."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while True:
            more = sock.recv(65_536)
            if not more:
                break
            data += more
    return data


class FakeRelay:
    """A relay's socket in the hands of a test. Each process that connects is challenged at once, as it waits for that.

    What the process says after that, its proof first, is left in its connection.
    """

    def __init__(self, path: str, key: str, url: str) -> None:
        self._key = key
        self._url = url
        self._changed = threading.Condition()
        self._challenged: list[tuple[socket.socket, protocol.Callee]] = []  # the latest comes last
        self._all: list[socket.socket] = []
        self._taken = 0
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(8)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                sock = self.listener.accept()[0]
            except OSError:
                return  # it is closed
            self._all.append(sock)
            relay = callee(self._key, self._url)
            hello = b""
            while not hello.endswith(protocol.END):
                try:
                    more = sock.recv(1)
                except OSError:
                    more = b""
                if not more:
                    break
                hello += more
            else:
                with self._changed:
                    self._challenged.append((sock, relay))
                    self._changed.notify_all()
                    try:
                        sock.sendall(relay.hear(hello)[0])
                    except OSError:
                        pass  # it has gone

    def accept(self, timeout: float = DEADLINE) -> socket.socket:
        """The next process that was challenged and has proved that it has the key."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._challenged) > self._taken, timeout)
            sock, relay = self._challenged[self._taken]
            self._taken += 1
        sock.settimeout(DEADLINE)
        assert relay.hear(line_from(sock)) == (b"", protocol.EVENTS)
        return sock

    def last(self) -> socket.socket | None:
        """The last process that was challenged. What it said may not have come."""
        with self._changed:
            return self._challenged[-1][0] if self._challenged else None

    def has_another(self) -> bool:
        """True when a process was challenged that is not accepted yet."""
        with self._changed:
            return len(self._challenged) > self._taken

    def hang_up(self) -> None:
        with self._changed:
            for sock in self._all:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)  # the thread may be reading from it
                sock.close()
            self._all.clear()
            self._challenged.clear()
            self._taken = 0

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)  # which wakes the thread
        self.hang_up()
        self._thread.join(DEADLINE)
        self.listener.close()
        self.hang_up()


class Runtime:
    """The directory of one test. Short, because the path of a socket is."""

    def __init__(self, api: Any) -> None:
        self.api = api
        self.path = Path(tempfile.mkdtemp(prefix="la-", dir="/tmp"))
        self.socket = str(self.path / "own" / "r.sock")  # for a relay that a test keeps itself
        self.fake = str(self.path / "fake.sock")  # for a `FakeRelay`

    def relays(self) -> list[psutil.Process]:
        """Who serves here, or is about to."""
        return [
            process
            for process, command in processes_with("relay")
            if any(part.startswith(str(self.path)) for part in command)
        ]

    def relay(self) -> psutil.Process:
        """The one that serves here."""
        found: list[psutil.Process] = eventually(self.relays, lambda found: len(found) == 1)
        assert len(found) == 1, found
        return found[0]

    def left_behind(self, timeout: float = DEADLINE) -> list[psutil.Process]:
        """Who is still here after ``timeout`` seconds."""
        found: list[psutil.Process] = eventually(self.relays, lambda found: not found, timeout)
        return found

    def stop_all(self) -> None:
        """Send SIGTERM to who serves here until nobody does."""

        def stop() -> list[psutil.Process]:
            left = self.relays()
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):  # it has ended since
                    process.terminate()
            return left

        assert eventually(stop, lambda left: not left) == []

    def statuses(self, *options: str, key: str = KEY) -> list[dict[str, Any]]:
        """What ``python -m letterapp relay --status`` prints."""
        said = self.command("--status", *options, key=key)
        return [json.loads(line) for line in said.stdout.splitlines()]

    def status(self, *options: str, key: str = KEY) -> dict[str, Any]:
        (status,) = self.statuses(*options, key=key)
        return status

    def command(self, *options: str, key: str = KEY) -> Any:
        """Run ``python -m letterapp relay`` with ``options`` to its end."""
        return run_to_end(self.command_line(*options), self.api.url, key)

    def command_line(self, *options: str) -> list[str]:
        return [sys.executable, "-m", "letterapp", "relay", "--base-url", self.api.url, *options]

    def own_status(self) -> dict[str, Any]:
        """The status of the relay that the test keeps itself, without starting a process for it."""
        with greeted(self.socket, KEY, self.api.url, protocol.STATUS) as sock:
            status: dict[str, Any] = protocol.parse(line_from(sock))["welcome"]
        return status

    def keep(self, *options: str, socket: str = "", key: str | None = KEY, **env: str) -> Program:
        """A relay of the test's own, which serves at ``socket`` when this returns."""
        if key is not None:
            env["LETTER_API_KEY"] = key
        command = self.command_line("--socket", socket or self.socket, *options)
        return serving(command, environment(self.api.url, **env), self.path)


# For all tests of a module that imports it: so it is older than their clients, and outlives them.
@pytest.fixture(name="runtime", autouse=True)
def own_runtime(letter_api: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    yield from lent(Runtime(letter_api), monkeypatch)


@pytest.fixture(name="patient")
def patient_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients of this process wait for a relay that a busy machine holds up, and do not send their events themselves.

    For tests that count what a relay gets. None of its relays may be one that never answers.
    """
    monkeypatch.setattr("letterapp._relay.client.GREETING", DEADLINE)


@pytest.fixture(name="kept")
def kept_relay(runtime: Runtime) -> Iterator[Program]:
    """A relay that the test keeps itself, at ``runtime.socket``."""
    with runtime.keep() as relay:
        yield relay


@pytest.fixture(name="hold")
def held_request(letter_api: Any) -> Iterator[Hold]:
    """Holds the next request on the wire."""
    hold = Hold()
    letter_api.plan(hold)
    yield hold
    hold.release()


@pytest.fixture(name="fake")
def fake_relay(runtime: Runtime) -> Iterator[FakeRelay]:
    fake = FakeRelay(runtime.fake, KEY, NOWHERE)
    yield fake
    fake.close()


def client_of(path: str, max_events: int = 10_000) -> Any:
    """A `RelayClient` of the `FakeRelay` at ``path``."""
    from letterapp._relay.client import RelayClient

    return RelayClient(lambda: path, partial(caller, KEY, NOWHERE), max_events, 4_000_000)


def take_back(client: Any) -> list[bytes]:
    """The events that the client got back because its relay went without acknowledging them."""
    taken = []
    while client.next_returned() is not None:
        taken.append(client.next_returned())
        client.confirm_returned()
    return taken


def counts_of(client: Any) -> tuple[int, int, int]:
    """How many events were relayed, are waiting and were delivered, after all answers have been read."""
    client.read_acks()
    counts = client.counts()
    assert counts.relayed == counts.delivered + counts.waiting + sum(counts.lost.values())
    return counts.relayed, counts.waiting, counts.delivered


@pytest.fixture(name="client")
def relay_client(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of the `FakeRelay` at ``runtime.fake``."""
    monkeypatch.setattr("letterapp._relay.client.GREETING", DEADLINE)  # the thread that challenges may be held up
    client = client_of(runtime.fake)
    yield client
    client.close()


def track(letter: Letter, count: int, who: str = "test", start: int = 0) -> None:
    for serial in range(start, start + count):
        letter.track(who, "Worked", {"serial": serial})


def balanced(stats: dict[str, Any]) -> dict[str, Any]:
    """``stats``, of a client or a relay, in which each accepted event is counted once."""
    assert stats["accepted"] == stats["delivered"] + sum(stats["lost"].values()) + stats["waiting"], stats
    return stats


def until_relayed(letter: Letter, start: int) -> int:
    """Track, which starts a relay again if need be, until a relay takes an event; return how many were tracked.

    0 if no relay took one.
    """
    for count in range(1, 100_000):
        track(letter, 1, start=start + count - 1)
        if balanced(letter.stats())["mode"] == "relay":
            return count
        time.sleep(0.01)  # a pace: the attempts are seconds apart
    return 0
