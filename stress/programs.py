"""Child processes that speak JSON, one object a line, on stdout, and are told to go on by a line on stdin.

Lives here: starting, hearing, ending them, and what their failure is called. Never here: what they measure.
"""

from __future__ import annotations

import contextlib
import json
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
        script: Path,
        *arguments: object,
        env: Mapping[str, str] | None = None,
        patience: float = 120.0,
    ) -> None:
        self._name = script.stem
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # read after the child's end
        self._process = subprocess.Popen(
            [python, str(script), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=env,
            text=True,
            bufsize=1,
        )
        self._patience = patience
        self._hung = False
        self._watchdog = threading.Timer(patience, self._kill)
        self._watchdog.daemon = True
        self._watchdog.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def hear(self) -> dict[str, Any]:
        """Wait for the next object."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Failure(self._last_words())
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
            raise Failure(self._last_words()) from None

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

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watchdog.cancel()
        if self._process.poll() is None and kind is not None:
            self._process.kill()
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _kill(self) -> None:
        self._hung = True
        self._process.kill()

    def _last_words(self) -> str:
        status = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        if self._hung:
            return f"no answer within {self._patience:g} s"
        return lines[-1][:200] if lines else f"{self._name} ended with status {status}"
