"""A Redis server and relays that read its only stream, for one measurement or one run of a scenario.

Responsible for: starting and ending them, what the stream and the server's memory contain. Standard library only,
because the harness's own environment has no redis-py. Not responsible for: what is measured.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack
from typing import IO, Callable, Mapping

from .ports import free_port
from .programs import Failure

KEY = "key"  # of every client
STARTING = 20.0  # seconds
DRAINING = 20.0
IDLE = 10.0  # after 5 s the server makes the buffers of a connection smaller


class RedisService:
    """Ended when the ``with`` block is left. Keeps nothing on disk, unless ``append_only``."""

    def __init__(self, append_only: bool = False) -> None:
        """Start the server. Raises `Failure` if none is installed."""
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        if program is None:
            raise Failure("no redis-server or valkey-server is installed")
        self._folder = tempfile.mkdtemp(prefix="stress-redis-")
        self._command = [program, "--bind", "127.0.0.1", "--save", "", "--dir", self._folder]
        self._command += ["--appendonly", "yes" if append_only else "no"]
        self.port = free_port()
        self._relays: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []
        self._server: subprocess.Popen[bytes] | None = None
        self.start_server()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0?max_length=1000000"

    def start_server(self) -> None:
        self._server = subprocess.Popen(
            [*self._command, "--port", str(self.port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _wait_until(lambda: self._ask("PING") == "+PONG", STARTING, "redis-server does not answer")

    def kill_server(self) -> None:
        assert self._server is not None
        self._server.kill()
        self._server.wait()

    def start_relay(self, python: str, env: Mapping[str, str], api_url: str, *options: str) -> subprocess.Popen[bytes]:
        """Start a relay of this checkout; it reads when this returns."""
        output = tempfile.TemporaryFile()  # noqa: SIM115  # read after the relay has ended
        command = [python, "-m", "letterapp", "relay", "--from", self.url, "--base-url", api_url, *options]
        relay = subprocess.Popen(
            command, env={**env, "LETTER_API_KEY": KEY}, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        self._relays.append((relay, output))
        _wait_until(lambda: b"reading" in _text(output) or relay.poll() is not None, STARTING, "a relay does not start")
        if relay.poll() is not None:
            raise Failure(_text(output).decode(errors="replace").strip()[-200:])
        return relay

    def drain(self, seconds: float = DRAINING) -> bool:
        """Wait until the stream is empty; False if it is not after ``seconds``."""
        try:
            _wait_until(lambda: self.entries() == 0, seconds, "")
        except Failure:
            return False
        return True

    def entries(self) -> int:
        script = "local n = 0 for _, k in ipairs(redis.call('KEYS', '*')) do n = n + redis.call('XLEN', k) end return n"
        return int(self._ask("EVAL", script, "0")[1:])

    def memory(self) -> int:
        """Bytes that the server uses for its data."""
        return int(self._info("memory")["used_memory_dataset"])

    def cpu(self) -> float:
        """Seconds of CPU that the server has used."""
        found = self._info("cpu")
        return float(found["used_cpu_user"]) + float(found["used_cpu_sys"])

    def connection_memory(self, count: int, size: int) -> tuple[float, float]:
        """Bytes that the server uses for a connection that has just sent ``size`` bytes, and after `IDLE` seconds."""
        empty = int(self._info("memory")["used_memory"])
        with ExitStack() as opened:
            sockets = [
                opened.enter_context(socket.create_connection(("127.0.0.1", self.port), 10)) for _ in range(count)
            ]
            _wait_until(
                lambda: int(self._info("clients")["connected_clients"]) > count,
                STARTING,
                "connections are not accepted",
            )
            for sock in sockets:
                sock.sendall(_request("SET", "k", "x" * size))
            for sock in sockets:
                if sock.recv(100) != b"+OK\r\n":
                    raise Failure("redis-server does not take a request")
            used = int(self._info("memory")["used_memory"])
            time.sleep(IDLE)
            idle = int(self._info("memory")["used_memory"])
        return (used - empty) / count, (idle - empty) / count

    def _info(self, section: str) -> dict[str, str]:
        return dict(line.partition(":")[::2] for line in self._ask("INFO", section).splitlines())

    def logs(self) -> str:
        return "".join(_text(output).decode(errors="replace") for _, output in self._relays)

    def end_relays(self) -> None:
        """SIGTERM to all relays; each gives back what it has not delivered."""
        for relay, _ in self._relays:
            relay.terminate()
        for relay, _ in self._relays:
            try:
                relay.wait(STARTING)
            except subprocess.TimeoutExpired:
                relay.kill()
                relay.wait()

    def close(self) -> None:
        self.end_relays()
        if self._server is not None:
            self.kill_server()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> RedisService:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, *command: str) -> str:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 10) as sock:
                sock.sendall(_request(*command))
                stream = sock.makefile("rb")
                line = stream.readline().decode().rstrip()
                return stream.read(int(line[1:])).decode() if line.startswith("$") else line
        except OSError:
            return ""


def _request(*command: str) -> bytes:
    parts = [f"*{len(command)}\r\n", *(f"${len(part)}\r\n{part}\r\n" for part in command)]
    return "".join(parts).encode()


def _text(output: IO[bytes]) -> bytes:
    return os.pread(output.fileno(), 10_000_000, 0)


def _wait_until(condition: Callable[[], bool], seconds: float, failure: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Failure(failure)
        time.sleep(0.01)
