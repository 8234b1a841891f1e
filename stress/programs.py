"""Child processes that send JSON on stdout, one object a line, and wait for a line on stdin before they continue.

Responsible for: starting, reading and ending them, and describing how they failed. Not responsible for: what they
measure.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Mapping

TIMEOUT = 120.0  # seconds that a program may run


class Failure(Exception):
    """A measurement or a scenario failed. The message says why, in one line."""


class Program:
    """A running child process. It is killed after ``timeout`` seconds, so a client that hangs costs one result only."""

    def __init__(
        self,
        python: str,
        *arguments: object,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        json_output: bool = True,
        timeout: float = TIMEOUT,
    ) -> None:
        """Start it in a separate session. Without ``json_output`` it may print anything on stdout."""
        self._name = next(Path(str(each)).stem for each in arguments if not str(each).startswith("-"))
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # read after the child has ended
        self._process = subprocess.Popen(
            [python, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if json_output else self._stderr,
            stderr=self._stderr,
            env=env,
            cwd=cwd,
            start_new_session=True,
            text=True,
            bufsize=1,
        )
        self._timeout = timeout
        self.hung = False  # it did not end in time and was killed
        self._is_reading = False
        self._watchdog = threading.Timer(timeout, self._on_timeout)
        self._watchdog.daemon = True
        self._watchdog.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def receive(self) -> dict[str, Any]:
        """Wait for the next object. Raises `Failure` if the program ends first, or prints something else."""
        assert self._process.stdout is not None
        self._is_reading = True
        line = self._process.stdout.readline()
        self._is_reading = False
        if not line:
            raise Failure(self.failure_text())
        try:
            message: dict[str, Any] = json.loads(line)
        except ValueError:
            raise Failure(f"{self._name} printed {line.strip()[:80]!r} instead of JSON") from None
        return message

    def resume(self, line: str = "") -> None:
        """Let a program continue that waits for a line on stdin."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n")
        except OSError:
            raise Failure(self.failure_text()) from None

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def signal_group(self, number: int) -> None:
        os.killpg(self.pid, number)

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def wait(self, seconds: float) -> int | None:
        """Wait until it ends and return its exit status; None if it did not end in time and was killed."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._kill()
            self._process.wait()
            return None

    @property
    def output(self) -> str:
        """What it printed on stderr, and without ``json_output`` on stdout."""
        return os.pread(self._stderr.fileno(), 10_000_000, 0).decode(errors="replace")

    def close_and_receive(self) -> dict[str, Any] | None:
        """Close its stdin, wait until it ends, and return the last object that it sent since, if any."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.close()
        except OSError:
            pass  # it has already ended
        last = None
        for line in self._process.stdout:
            last = line
        self._process.wait()
        return json.loads(last) if last else None

    def close_stdin(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None and kind is not None:
            self._process.kill()
        self.dispose()

    def dispose(self) -> None:
        """Wait until it ends, killing it if necessary, and release its pipes and files."""
        self._watchdog.cancel()
        self.close_stdin()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._stderr.close()

    def _kill(self) -> None:
        self.hung = True
        self._process.kill()

    def _on_timeout(self) -> None:
        """Kill it and its children, which also hold the write end of the pipe that `receive` may be reading."""
        if self._is_reading or self._process.poll() is None:
            self._kill()
            with contextlib.suppress(OSError, AttributeError):  # no such group; no such function on this system
                os.killpg(self.pid, signal.SIGKILL)

    def failure_text(self) -> str:
        """Wait until it ends, and describe its failure in one line."""
        status = self._process.wait()
        lines = self.output.strip().splitlines()
        if self.hung:
            return f"no response within {self._timeout:g} s"
        return lines[-1][:200] if lines else f"{self._name} ended with status {status}"
