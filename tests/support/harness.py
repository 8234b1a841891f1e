"""Running real programs and real servers against the ingestion server.

Responsible for: starting, waiting with a deadline, signalling by process id, and leaving nothing behind.
Not responsible for: any knowledge of what is right.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Sequence, TypeVar
from urllib.parse import urlsplit

import psutil
import pytest
from _pytest.mark import ParameterSet

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "tests" / "programs"
DEADLINE = 60.0  # seconds: far above what anything here takes, so that a busy machine does not turn a test red

# From 3.12 on `os.fork` warns wherever a thread lives, and the tests fork with living threads on purpose.
QUIET = {"PYTHONWARNINGS": "ignore::DeprecationWarning"}


def thread_states(pid: int) -> set[str]:
    """The states of a process's threads, as Linux abbreviates them; elsewhere none."""
    found = set()
    for path in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            found.add(path.read_text().rpartition(")")[2].split()[0])
        except OSError:
            pass  # this thread has ended since
    return found


def suspend(pid: int) -> None:
    """Stop a process, and return when all its threads have stopped: one of them has to run to take the signal."""
    os.kill(pid, signal.SIGSTOP)
    assert eventually(lambda: thread_states(pid), lambda found: found <= {"T"}) <= {"T"}


def needs(package: str) -> pytest.MarkDecorator:
    """Skip a test where a package is not installed."""
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


def environment(api_url: str, **more: str) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("LETTER_", "COV_", "PYTEST"))}
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        env.pop(name, None)
    path = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "tests"), env.get("PYTHONPATH", "")]))
    return {**env, "PYTHONPATH": path, **QUIET, "PYTHONUNBUFFERED": "1", "TEST_API": api_url, **more}


def first_is_quick(name: str, values: Iterable[Any], ids: Iterable[str] | None = None) -> pytest.MarkDecorator:
    """Parametrize a test. ``-m "not slow"`` runs it with the first of ``values`` only."""
    params = [value if isinstance(value, ParameterSet) else pytest.param(value) for value in values]
    if ids is not None:
        params = [param._replace(id=each) for param, each in zip(params, ids)]
    params[1:] = [param._replace(marks=(*param.marks, pytest.mark.slow)) for param in params[1:]]
    return pytest.mark.parametrize(name, params)


# ``python -c FEW_DESCRIPTORS COMMAND...``: the command, in a process that may have 64 files open.
FEW_DESCRIPTORS = (
    "import os, sys; from resource import *; setrlimit(RLIMIT_NOFILE, (64, 64)); os.execv(sys.argv[1], sys.argv[1:])"
)


Running = TypeVar("Running", bound="Program")
Seen = TypeVar("Seen")


class Finished:
    def __init__(self, code: int, output: str, seconds: float) -> None:
        self.code = code
        self.output = output  # stdout and stderr as they came
        self.seconds = seconds

    def __repr__(self) -> str:
        return f"<exit {self.code} after {self.seconds:.1f} s>\n{self.output}"


class Program:
    """A process group of its own. Ended, reaped and searched for left-behind children when the ``with`` is left."""

    def __init__(self, command: Sequence[str], env: dict[str, str], cwd: Path) -> None:
        self._output = tempfile.TemporaryFile()
        self._started = time.monotonic()
        self.process = subprocess.Popen(
            command,
            env=env,
            cwd=str(cwd),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.pid = self.process.pid

    @property
    def output(self) -> str:
        return os.pread(self._output.fileno(), 10_000_000, 0).decode("utf-8", "replace")

    def descendants(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def signal(self, number: int, pid: int | None = None) -> None:
        os.kill(pid or self.pid, number)

    def signal_group(self, number: int) -> None:
        os.killpg(self.pid, number)

    def finish(self, timeout: float = DEADLINE) -> Finished:
        """Wait for the end. A program that hangs is an error that shows what it printed."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s; it printed:\n{self.output}") from None
        return Finished(code, self.output, time.monotonic() - self._started)

    def left_behind(self, timeout: float = DEADLINE) -> list[str]:
        """Processes of the group that outlive the program by more than ``timeout`` seconds."""
        return eventually(lambda: _group(self.pid), lambda rest: not rest, timeout)

    def __enter__(self: Running) -> Running:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.process.poll() is None or _group(self.pid):
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait(10)
        self._output.close()


def _group(pgid: int) -> list[str]:
    found = []
    for pid in psutil.pids():
        try:
            if os.getpgid(pid) == pgid:
                process = psutil.Process(pid).as_dict(["status", "num_threads", "cmdline"])
                if not has_ended(process):
                    found.append(f"{pid} {process['cmdline']}")
        except (ProcessLookupError, PermissionError, psutil.Error):
            pass
    return found


def processes_with(*words: str) -> Iterator[tuple[psutil.Process, list[str]]]:
    """The processes that have one of ``words`` in their command line, and that line.

    A stopped one counts; one that is dead has no command line any more.
    """
    for pid in psutil.pids():
        try:
            command = _command(pid)
            if any(word in command for word in words):
                yield psutil.Process(pid), command
        except (OSError, psutil.Error):
            pass


def _command(pid: int) -> list[str]:
    if sys.platform != "linux":
        return psutil.Process(pid).cmdline()
    # A tenth of psutil's time, and this is asked of each process of the machine, again and again.
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return os.fsdecode(file.read()).split("\0")


def has_ended(process: dict[str, Any]) -> bool:
    """True when all that is left is the entry in the kernel's table, for the parent to read.

    A process looks like that as soon as its first thread has ended, though the others may still have all files open.
    """
    return bool(process["status"] == psutil.STATUS_ZOMBIE and process["num_threads"] == 1)


def start(
    program: Callable[..., object] | Path,
    api_url: str,
    tmp_path: Path,
    *arguments: object,
    python: str = sys.executable,
    **env: str,
) -> Program:
    """Start a program: a function of a module in ``tests/programs``, or a file."""
    command = [str(program)] if isinstance(program, Path) else ["-m", program.__module__, program.__name__]
    return Program([python, *command, *map(str, arguments)], environment(api_url, **env), tmp_path)


def run(
    program: Callable[..., object] | Path, api_url: str, tmp_path: Path, *arguments: object, **env: str
) -> Finished:
    """Run a program (see `start`) to its end, and see that it left no process behind."""
    with start(program, api_url, tmp_path, *arguments, **env) as running:
        finished = running.finish()
        assert not running.left_behind(), running.left_behind()
        return finished


def eventually(look: Callable[[], Seen], good: Callable[[Seen], object], timeout: float = DEADLINE) -> Seen:
    """Look until it is good, at most ``timeout`` seconds; return the last look. For what gives no signal."""
    deadline = time.monotonic() + timeout
    seen = look()
    while not good(seen) and time.monotonic() < deadline:
        time.sleep(0.02)
        seen = look()
    return seen


def get(url: str, timeout: float = DEADLINE) -> str:
    """GET past any proxy."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.netloc, timeout=timeout)
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", target, headers={"Connection": "close"})
        with connection.getresponse() as answer:
            text = answer.read().decode()
    finally:
        connection.close()
    if answer.status >= 400:
        raise OSError(f"{answer.status} {answer.reason}: {text}")
    return text


class WebServer(Program):
    """A real application server on a free port, listening when the constructor returns."""

    def __init__(self, command: Sequence[str], env: dict[str, str], cwd: Path, port: int) -> None:
        super().__init__(command, env, cwd)
        self.url = f"http://127.0.0.1:{port}"
        if (
            not eventually(lambda: self.process.poll() is not None or _accepts(port), bool)
            or self.process.poll() is not None
        ):
            output = self.output
            self.__exit__()
            raise AssertionError(f"the server did not start:\n{output}")

    def get(self, path: str = "/") -> str:
        return get(self.url + path)


def _accepts(port: int) -> bool:
    with socket.socket() as sock:
        sock.settimeout(1)
        return sock.connect_ex(("127.0.0.1", port)) == 0


def whose(api: Any) -> dict[str, list[int]]:
    """Serials that came, by who tracked them, in the order of arrival; one a messageId, as the API keeps them."""
    came: dict[str, list[int]] = {}
    seen = set()
    for item in api.events:
        if item["messageId"] not in seen:
            seen.add(item["messageId"])
            came.setdefault(item["userId"], []).append(item["properties"]["serial"])
    return came
