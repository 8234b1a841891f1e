"""`python -X dev` warns of nothing, however a program with a client ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Callable

import pytest
from harness import DEADLINE, Program, environment, eventually, first_is_quick
from managed import Directory
from programs import quiet_ends
from relayed import Runtime
from senders import clear

from letterapp.testing import Hold, IngestionServer

ENDS: dict[str, Callable[[], None]] = {
    "its end": quiet_ends.end,
    "its end, with a connection": quiet_ends.end_with_a_connection,
    "close": quiet_ends.close,
    "async with": quiet_ends.async_with,
    "a client that nobody keeps": quiet_ends.dropped,
    "a client of a function": quiet_ends.of_a_function,
    "an exception": quiet_ends.exception,
    "a child that does not use it": quiet_ends.unused_in_a_child,
    "a child that uses it": quiet_ends.used_in_a_child,
    "a child that throws it away": quiet_ends.dropped_in_a_child,
    "a child that calls os._exit": quiet_ends.os_exit_in_a_child,
    "multiprocessing": quiet_ends.process,
    "send": quiet_ends.send,
}


def program(ends: Callable[..., None], api_url: str, tmp_path: Path, *arguments: str, **env: str) -> Program:
    # Warnings of forks beside threads are another matter. Python 3.8's own forks do not bear its development mode.
    mode = ["-X", "dev"] if sys.version_info >= (3, 9) else []
    flags = [*mode, "-W", "error::ResourceWarning", "-W", "ignore::DeprecationWarning"]
    command = [sys.executable, *flags, "-m", ends.__module__, ends.__name__, *arguments]
    return Program(command, environment(api_url, **env), tmp_path)


def ends_without_a_word(running: Program) -> None:
    finished = running.finish()
    assert (finished.code, finished.output) == (0, ""), finished


@first_is_quick("end", ENDS.values(), ids=ENDS.keys())
def test_no_socket_is_left_open_by(end: Callable[[], None], letter_api: Any, tmp_path: Path) -> None:
    with program(end, letter_api.url, tmp_path) as running:
        ends_without_a_word(running)


@first_is_quick("end", ENDS.values(), ids=ENDS.keys())
def test_no_socket_is_left_open_with_tls(
    end: Callable[[], None], tls_api: IngestionServer, ca_file: str, tmp_path: Path
) -> None:
    with program(end, tls_api.url, tmp_path, SSL_CERT_FILE=ca_file) as running:
        ends_without_a_word(running)


@first_is_quick("end", ["its end, with a connection", "close", "a client that nobody keeps"])
@pytest.mark.parametrize("way", ["relay", "manager", "spool"])
def test_no_socket_is_left_open_with_other_transports(way: str, end: str, letter_api: Any, tmp_path: Path) -> None:
    name = ENDS[end].__name__
    here = Directory(letter_api) if way == "manager" else Runtime(letter_api)
    try:
        with program(quiet_ends.by, letter_api.url, tmp_path, way, name, XDG_RUNTIME_DIR=str(here.path)) as running:
            ends_without_a_word(running)
    finally:
        assert clear(here) == []


@pytest.mark.parametrize("last", ["end", "close"])
def test_no_socket_is_left_open_when_the_api_is_down(last: str, tmp_path: Path) -> None:
    with program(quiet_ends.unreachable, "http://127.0.0.1:1", tmp_path, last) as running:
        ends_without_a_word(running)


@pytest.mark.parametrize("last", ["end", "close at once"])
def test_no_socket_is_left_open_when_the_api_does_not_answer(last: str, letter_api: Any, tmp_path: Path) -> None:
    hold = Hold()
    letter_api.rule = lambda request: hold
    with program(quiet_ends.unreachable, letter_api.url, tmp_path, last, "arrives") as running:
        assert hold.arrived.wait(DEADLINE)
        (tmp_path / "arrived").touch()
        ends_without_a_word(running)
    hold.release()


def test_no_socket_is_left_open_when_the_answer_comes_after_close(letter_api: Any, tmp_path: Path) -> None:
    hold = Hold()
    letter_api.rule = lambda request: hold
    with program(quiet_ends.late_answer, letter_api.url, tmp_path) as running:
        assert hold.arrived.wait(DEADLINE)
        (tmp_path / "arrived").touch()
        assert eventually(lambda: os.path.exists(tmp_path / "given up"), bool)
        hold.release()
        ends_without_a_word(running)
