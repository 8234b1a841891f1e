"""Relays of the tests that read a stream in Redis, and what is in the stream.

Responsible for: starting them, waiting until they read, ending them after the test; a connection that can be cut. Not
responsible for: what is right.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from harness import Program, environment, eventually
from redis_server import RedisServer

KEY = "test-key"


class Relays:
    """Starts relays that read one server's stream for one API."""

    def __init__(self, api: Any, folder: Path) -> None:
        self._api = api
        self._folder = folder
        self.started: list[Program] = []

    def command(self, url: str, *options: str) -> list[str]:
        return [
            *(sys.executable, "-m", "letterapp", "relay", "--from", url, "--base-url", self._api.url),
            *options,
        ]

    def start(self, url: str, *options: str, key: str = KEY) -> Program:
        """A relay that reads when this returns."""
        relay = self.launch(url, *options, key=key)
        output = eventually(lambda: relay.output, lambda text: "reading" in text or relay.process.poll() is not None)
        assert "reading" in output, output
        return relay

    def launch(self, url: str, *options: str, key: str = KEY) -> Program:
        # Without the warnings of packages that redis-py imports: on Python 3.8 cryptography prints one.
        env = environment("", LETTER_API_KEY=key, PYTHONWARNINGS="ignore::UserWarning")
        self.started.append(Program(self.command(url, *options), env, self._folder))
        return self.started[-1]


@pytest.fixture(name="relays")
def started_relays(letter_api: Any, tmp_path: Path) -> Iterator[Relays]:
    relays = Relays(letter_api, tmp_path)
    yield relays
    letter_api.closing.set()
    letter_api.release()
    for relay in relays.started:
        relay.__exit__()


def stream_of(client: Any) -> str:
    """The name of the only stream; empty if there is none."""
    found = client.keys("{letterapp:*}:events")
    assert len(found) <= 1
    return found[0].decode() if found else ""


def length(server: RedisServer) -> int:
    with server.client() as client:
        return int(client.xlen(stream_of(client)))


def pending(server: RedisServer) -> dict[str, tuple[str, int]]:
    """The relay and the number of deliveries of each entry that is with a relay."""
    with server.client() as client:
        rows = client.xpending_range(stream_of(client), "letterapp", "-", "+", 10_000)
    return {row["message_id"].decode(): (row["consumer"].decode(), row["times_delivered"]) for row in rows}


def idle(server: RedisServer, name: str) -> float:
    """Seconds since the relay ``name`` has made a request; -1 if there is no such relay."""
    with server.client() as client:
        rows = client.xinfo_consumers(stream_of(client), "letterapp")
    return next((row["idle"] / 1000 for row in rows if row["name"].decode() == name), -1.0)


def says(relay: Program, text: str, times: int = 1) -> bool:
    """Wait until the relay has logged ``text`` so many times; True if it has, and not more often."""
    return eventually(lambda: relay.output.count(text), lambda count: count >= times) == times


def name_of(relay: Program) -> str:
    return relay.output.partition(" as ")[2].split()[0]


class Stream:
    """A Redis server with two relays; stands for the directory of relays that `services` looks at."""

    def __init__(self, server: RedisServer, relays: Relays) -> None:
        self.server = server
        self.relays = [relays.start(server.url, "--claim-after", "2") for _ in range(2)]

    def kill_a_relay(self) -> None:
        self.relays[0].signal(signal.SIGKILL)
        self.relays[0].process.wait()

    def left_behind(self) -> list[Any]:
        return []

    def settle(self) -> None:
        """Wait until all that was appended has been delivered."""
        empty = eventually(lambda: (length(self.server), pending(self.server)), lambda found: found == (0, {}))
        assert empty == (0, {})
        for relay in self.relays:
            assert "lost:" not in relay.output and "given up" not in relay.output, relay.output

    @property
    def client(self) -> dict[str, str]:
        return {"TEST_CLIENT": json.dumps({"relay": self.server.url})}


class Cable:
    """A TCP connection to a server that can be cut, and that then neither answers nor refuses."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._is_whole = threading.Event()
        self._is_whole.set()
        self._sockets: list[socket.socket] = [self._listener]
        self._threads: list[threading.Thread] = []
        self._run(self._accept)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"

    def cut(self) -> None:
        """Carry nothing any more, in both directions."""
        self._is_whole.clear()

    def mend(self) -> None:
        self._is_whole.set()

    def close(self) -> None:
        self._is_whole.set()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(10)

    def _run(self, act: Callable[..., None], *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=act, args=arguments, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                ours, _ = self._listener.accept()
                self._sockets.append(ours)
                try:
                    its = socket.create_connection(("127.0.0.1", self._port))
                except OSError:
                    ours.close()
                    continue
                self._sockets.append(its)
                self._run(self._carry, ours, its)
                self._run(self._carry, its, ours)

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                data = source.recv(65536)
                self._is_whole.wait()
                if not data:
                    break
                target.sendall(data)
        for sock in (source, target):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


@pytest.fixture(name="cable")
def cable_to_servers() -> Iterator[Callable[[RedisServer], Cable]]:
    laid: list[Cable] = []

    def lay(server: RedisServer) -> Cable:
        laid.append(Cable(server.port))
        return laid[-1]

    yield lay
    for cable in laid:
        cable.close()
