"""Real Redis and Valkey servers for the tests.

Responsible for: finding the programs, starting one on a free port with a directory of its own, killing and restarting
it, ending it after the test. Not responsible for: what the client does with it.

The programs are those in PATH, and those that the environment variable TEST_REDIS_SERVERS names, separated like PATH.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from harness import DEADLINE, eventually

from stress.ports import free_port

TEST_NAMES = ("redis-server", "valkey-server")


def programs() -> list[str]:
    named = [path for path in os.environ.get("TEST_REDIS_SERVERS", "").split(os.pathsep) if path]
    found = [path for path in map(shutil.which, TEST_NAMES) if path]
    return [*named, *found]  # most tests use the first


def has_redis() -> bool:
    try:
        import redis  # noqa: F401
    except ImportError:
        return False
    return bool(programs())


needs_redis = pytest.mark.skipif(not has_redis(), reason="no redis-server or valkey-server, or redis-py is missing")


class RedisServer:
    """One server. Its data is kept in its directory over a restart if it was started with ``--appendonly yes``."""

    def __init__(self, *options: str, program: str = "") -> None:
        self.program = program or programs()[0]
        self.options = options
        self.directory = tempfile.mkdtemp(prefix="lr-", dir="/tmp")
        self.process: subprocess.Popen[bytes] | None = None
        for _ in range(20):
            self.port = free_port()
            if self._starts():
                return
            # Another process was quicker, at this port or at the one that a node of a cluster has as well.
        raise AssertionError(f"{self.program} does not start: {self.log()}")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it at its port, where its clients look for it."""
        assert self._starts(), f"{self.program} does not start: {self.log()}"

    def _starts(self) -> bool:
        self.process = subprocess.Popen(self._command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if eventually(self._answers_or_ended, bool) == "answers":
            return True
        self.kill()
        return False

    def _command(self) -> list[str]:
        own = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", self.directory, "--save", ""]
        return [self.program, *own, "--logfile", os.path.join(self.directory, "log"), *self.options]

    def _answers_or_ended(self) -> str:
        assert self.process is not None
        if self.process.poll() is not None:
            return "ended"
        try:
            with socket.create_connection(("127.0.0.1", self.port), 5) as sock:
                sock.sendall(b"PING\r\n")
                reply = sock.recv(100)
        except OSError:
            return ""
        return "answers" if reply.startswith((b"+PONG", b"-NOAUTH")) else ""

    def log(self) -> str:
        path = Path(self.directory, "log")
        return path.read_text() if path.exists() else ""

    def client(self, **options: Any) -> Any:
        """A redis-py client, for the test itself."""
        import redis

        return redis.Redis(port=self.port, socket_timeout=DEADLINE, **options)

    def signal(self, number: int) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self) -> None:
        """End it in order, so that it writes what it has to its disk."""
        assert self.process is not None
        self.process.terminate()
        self.process.wait(DEADLINE)
        self.process = None

    def restart(self) -> None:
        self.kill()
        self.start()

    def close(self) -> None:
        if self.process is not None:
            try:
                self.signal(signal.SIGCONT)
            except ProcessLookupError:
                pass
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


class Sentinel(RedisServer):
    """A sentinel that watches one master, and decides alone that it has gone."""

    def __init__(self, master: RedisServer, service: str) -> None:
        self._rules = (
            f"sentinel monitor {service} 127.0.0.1 {master.port} 1\n"
            f"sentinel down-after-milliseconds {service} 1000\n"
            f"sentinel failover-timeout {service} 3000\n"
        )
        super().__init__(program=master.program)

    def _command(self) -> list[str]:
        config = Path(self.directory, "sentinel.conf")
        config.write_text(self._rules)
        own = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", self.directory]
        return [self.program, str(config), "--sentinel", *own, "--logfile", os.path.join(self.directory, "log")]


@pytest.fixture(name="redis_server")
def started_redis() -> Iterator[Callable[..., RedisServer]]:
    """Starts servers, and ends them after the test."""
    started: list[RedisServer] = []

    def start(*options: str, **more: Any) -> RedisServer:
        started.append(RedisServer(*options, **more))
        return started[-1]

    yield start
    for server in started:
        server.close()
