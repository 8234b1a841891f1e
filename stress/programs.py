"""Child processes that speak JSON, one object a line, on stdout, and are told to go on by a line on stdin.

Lives here: starting, hearing, ending them, and what their failure is called. Never here: what they measure.
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


class Failure(Exception):
    """A measurement did not come about. The text says why in one line."""


class Program:
    """A running child. Killed after ``patience`` seconds, so that a client that hangs costs a row and not the run."""

    def __init__(
        self,
        python: str,
        *arguments: object,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        talks: bool = True,
        patience: float = 120.0,
    ) -> None:
        """Start it in a session of its own. One that does not talk may print what it likes on stdout."""
        self._name = next(Path(str(each)).stem for each in arguments if not str(each).startswith("-"))
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # read after the child's end
        self._process = subprocess.Popen(
            [python, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if talks else self._errors,
            stderr=self._errors,
            env=env,
            cwd=cwd,
            start_new_session=True,
            text=True,
            bufsize=1,
        )
        self._patience = patience
        self.hung = False  # it had to be killed because it did not end
        self._listening = False
        self._watchdog = threading.Timer(patience, self._lose_patience)
        self._watchdog.daemon = True
        self._watchdog.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def hear(self) -> dict[str, Any]:
        """Wait for the next object."""
        assert self._process.stdout is not None
        self._listening = True
        line = self._process.stdout.readline()
        self._listening = False
        if not line:
            raise Failure(self.last_words())
        try:
            heard: dict[str, Any] = json.loads(line)
        except ValueError:
            raise Failure(f"{self._name} printed {line.strip()[:80]!r}") from None
        return heard

    def go_on(self) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("\n")
        except OSError:
            raise Failure(self.last_words()) from None

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def signal_group(self, number: int) -> None:
        os.killpg(self.pid, number)

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def wait(self, seconds: float) -> int | None:
        """Wait for its end and return its status; None when it has not come, and the program had to be killed."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._kill()
            self._process.wait()
            return None

    @property
    def output(self) -> str:
        """What it printed, for people: stderr, and stdout when it does not talk."""
        return os.pread(self._errors.fileno(), 10_000_000, 0).decode(errors="replace")

    def end(self) -> dict[str, Any] | None:
        """Close its stdin, and return the last object that it says then, if it says one."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.close()
        except OSError:
            pass  # it is gone already
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
        """See it to its end, and let go of all that it held here."""
        self._watchdog.cancel()
        self.close_stdin()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def _kill(self) -> None:
        self.hung = True
        self._process.kill()

    def _lose_patience(self) -> None:
        """End it and its children: they hold the pipe too on which somebody may be listening."""
        if self._listening or self._process.poll() is None:
            self._kill()
            with contextlib.suppress(OSError, AttributeError):  # no such group, no such function
                os.killpg(self.pid, signal.SIGKILL)

    def last_words(self) -> str:
        """Wait for its end, and say in one line what became of it."""
        status = self._process.wait()
        lines = self.output.strip().splitlines()
        if self.hung:
            return f"no answer within {self._patience:g} s"
        return lines[-1][:200] if lines else f"{self._name} ended with status {status}"
