"""Fixtures of the whole suite."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from certificates import ca, ca_file, tls_api, trusting  # noqa: F401  (fixtures)
from driven import Driven
from harness import ROOT
from spool_dir import SpoolDir
from threadless_uwsgi import threadless  # noqa: F401  (a fixture)

import letterapp
from letterapp import Letter, LetterError
from letterapp.testing import IngestionServer

sys.path.append(str(ROOT))  # `stress` is no part of the wheel

HANGS = 300.0  # seconds that no test may take: then its process ends, and says where each thread stood


_stderr = 2


def pytest_configure() -> None:
    global _stderr
    _stderr = os.dup(2)  # during a test pytest has 2, and what it has caught goes with the process
    # Else each worker compiles all test modules again, and each of the many processes the programs that it runs.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    # A shell has what it starts in the background ignore SIGINT, and so would all programs that the tests start.
    for name in ("SIGINT", "SIGQUIT", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has one of them
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    # Tests wait for two thirds of their time: for servers to start, for a second that a relay lets pass, for processes
    # to end.
    return 3 * (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import WorkStealingScheduling  # type: ignore[import-untyped]

    return WorkStealingScheduling(config, log)  # else one worker is left with a chunk of the slow ones


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    faulthandler.dump_traceback_later(HANGS, exit=True, file=_stderr)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("LETTER_") or name.lower() in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def letter_api(letter_api: IngestionServer) -> Iterator[IngestionServer]:
    """The plugin's, which is closed at once and not at the next turn of its loop: most tests have one."""
    yield letter_api
    with contextlib.suppress(OSError):  # only Linux wakes whoever waits for a connection
        letter_api._server.socket.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def without_collection() -> Iterator[None]:
    """For tests of JSON that is too deep: where it is given up, a finalizer that a collection runs can only fail."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def errors() -> list[LetterError]:
    """What `make` clients report."""
    return []


@pytest.fixture
def make(letter_api: Any, errors: list[LetterError]) -> Iterator[Any]:
    """Makes clients of the test's server, and closes them after the test."""
    made: list[Letter] = []

    def new(**options: Any) -> Letter:
        options.setdefault("api_key", "test-key")
        options.setdefault("base_url", letter_api.url)
        options.setdefault("on_error", errors.append)
        letter = letterapp.Letter(**options)
        made.append(letter)
        return letter

    yield new
    for letter in made:
        letter.close(1)


@pytest.fixture
def driven(letter_api: Any, errors: list[LetterError]) -> Iterator[Callable[..., Driven]]:
    made: list[Driven] = []

    def new(base_url: str = letter_api.url, **options: Any) -> Driven:
        made.append(Driven(base_url, errors, **options))
        return made[-1]

    yield new
    for one in made:
        one.stop()


@pytest.fixture
def spool_dir(tmp_path: Path) -> SpoolDir:
    return SpoolDir(tmp_path / "spool")
