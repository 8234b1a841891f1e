"""Who starts a relay and who joins one, and what a relay inherits of the process that starts it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import socket
import ssl
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import psutil
import pytest
from harness import DEADLINE, environment, eventually, first_is_quick, run, start, whose
from programs import relay_family, relays
from relayed import KEY, Runtime, kept_relay, own_runtime, patient_clients, track  # noqa: F401  (fixtures)

from letterapp import Letter, LetterError

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Unix"),
    pytest.mark.usefixtures("patient"),
]

METHODS = multiprocessing.get_all_start_methods()
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def test_the_first_client_starts_a_relay_and_all_others_join_it(
    make: Callable[..., Letter], runtime: Runtime, letter_api: Any, tmp_path: Path
) -> None:
    first = make(relay=True)
    relay = runtime.relay()
    track(make(relay=True), 5, "second client")
    track(first, 5, "first client")
    assert run(relays.join_and_track, letter_api.url, tmp_path).code == 0
    assert first.flush(30)
    assert runtime.relays() == [relay] and letter_api.wait_for(15)
    assert runtime.status()["accepted"] == 15
    assert whose(letter_api) == {who: list(range(5)) for who in ("first client", "second client", "program")}


def test_the_relay_is_a_detached_process_and_ends_after_its_last_client(
    make: Callable[..., Letter], runtime: Runtime
) -> None:
    first, second = make(relay=True), make(relay=True)
    relay = runtime.relay()
    assert relay.pid not in [child.pid for child in psutil.Process().children(recursive=True)]
    assert os.getsid(relay.pid) == relay.pid != os.getsid(0)
    first.close(30)
    track(second, 1)
    assert second.flush(30) and runtime.relay() == relay
    second.close(30)
    assert runtime.left_behind() == []
    assert [path.suffix for path in runtime.path.glob("letterapp/*.sock")] == []


def test_a_relay_that_was_started_for_clients_survives_sigint_and_sighup(
    make: Callable[..., Letter], runtime: Runtime, letter_api: Any
) -> None:
    letter = make(relay=True)
    track(letter, 1)
    relay = runtime.relay()
    for number in (signal.SIGINT, signal.SIGHUP):
        relay.send_signal(number)
        track(letter, 1, "after the signal")
        assert letter.flush(30) and letter.stats()["relayed"] == letter.stats()["accepted"]
    letter.close(30)
    assert runtime.left_behind() == [] and letter_api.distinct == 3


def family(program: Callable[[str], None], method: str, runtime: Runtime, api: Any, tmp_path: Path) -> None:
    finished = run(program, api.url, tmp_path, method)
    assert finished.code == 0 and "Traceback" not in finished.output, finished
    assert "Exception ignored" not in finished.output, finished
    assert runtime.left_behind() == []


@first_is_quick("method", METHODS)
def test_children_join_their_parents_relay(method: str, runtime: Runtime, letter_api: Any, tmp_path: Path) -> None:
    family(relay_family.processes, method, runtime, letter_api, tmp_path)
    assert sorted(whose(letter_api)["job"]) == [0, 1, 2]


@pytest.mark.slow
@first_is_quick("method", METHODS)
def test_daemonic_workers_and_their_children_join_it(
    method: str, runtime: Runtime, letter_api: Any, tmp_path: Path
) -> None:
    family(relay_family.pool, method, runtime, letter_api, tmp_path)
    assert sorted(whose(letter_api)["job"]) == [0, 1, 2, 100, 101, 102]


@pytest.mark.slow
@first_is_quick("method", METHODS)
def test_a_daemonic_worker_starts_a_relay_if_there_is_none(
    method: str, runtime: Runtime, letter_api: Any, tmp_path: Path
) -> None:
    finished = run(relays.pool_without_a_relay, letter_api.url, tmp_path, method)
    assert finished.code == 0, finished
    assert runtime.left_behind() == []
    assert whose(letter_api) == {f"job {number}": list(range(5)) for number in range(2)}


@pytest.mark.slow
def test_processes_that_start_together_share_one_relay(runtime: Runtime, letter_api: Any, tmp_path: Path) -> None:
    finished = run(relays.start_together, letter_api.url, tmp_path)
    assert finished.code == 0, finished
    assert runtime.left_behind() == [] and len(letter_api.events) == 6


def test_a_program_that_calls_exec_releases_its_lease(runtime: Runtime, letter_api: Any, tmp_path: Path) -> None:
    # As uWSGI's master at a reload: the same process, and no code of ours in it that could close the connection.
    with start(relays.replace_itself, letter_api.url, tmp_path) as program:
        assert "ready" in eventually(lambda: program.output, lambda text: "ready" in text)
        assert runtime.left_behind() == [] and program.process.poll() is None
    assert whose(letter_api) == {"program": list(range(5))}


def test_the_key_is_not_visible_and_only_this_user_may_use_the_socket(
    make: Callable[..., Letter], runtime: Runtime
) -> None:
    key = "a-key-that-nobody-may-see"
    letter = make(api_key=key, relay=True)
    relay = runtime.relay()
    for name in ("cmdline", "environ"):
        assert key.encode() not in Path(f"/proc/{relay.pid}/{name}").read_bytes(), name
    (path,) = runtime.path.glob("letterapp/*.sock")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    letter.close(30)


def test_two_keys_have_two_relays(make: Callable[..., Letter], runtime: Runtime, letter_api: Any) -> None:
    letters = {key: make(api_key=key, relay=True) for key in ("key-1", "key-2")}
    assert len(runtime.relays()) == 2
    for key, letter in letters.items():
        track(letter, 3, key)
        assert letter.flush(30)
        assert runtime.status(key=key)["accepted"] == 3
    for request in letter_api.requests:
        (who,) = {item["userId"] for item in request.json["batch"]}
        assert request.headers["authorization"] == f"Bearer {who}"


@pytest.mark.slow
def test_the_interpreter_of_a_virtual_environment_is_used(runtime: Runtime, letter_api: Any, tmp_path: Path) -> None:
    where = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(where)], check=True, timeout=DEADLINE)
    python = str(where / "bin" / "python")
    for executable in (python, "/usr/sbin/uwsgi", ""):
        with start(
            relays.start_with_interpreter, letter_api.url, tmp_path, executable, python, python=python
        ) as program:
            finished = program.finish()
            assert finished.code == 0, finished
        assert runtime.left_behind() == []


# What it inherits.


def test_reading_all_output_of_a_program_does_not_wait_for_the_relay_that_it_started(
    runtime: Runtime, make: Any, letter_api: Any
) -> None:
    command = [sys.executable, "-m", "programs.relays", "start_a_relay"]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(letter_api.url),
        encoding="utf-8",
    ) as program:
        assert program.stdout is not None and program.stdout.readline() == "started\n"
        relay = runtime.relay()
        make(relay=True)  # which keeps it going
        assert program.communicate(timeout=DEADLINE) == ("", "")
    assert runtime.relays() == [relay] and relay.is_running()
    # Its messages go to a file now, which is truncated when it is large.
    log = runtime.path / "letterapp" / "relay.log"
    assert log.stat().st_mode & 0o777 == 0o600 and log.read_bytes() == b""
    place = next(runtime.path.glob("letterapp/*.sock"))
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(place))
        stranger.sendall(b"hello\n")
        assert b"refused" in stranger.recv(1000)
    said = eventually(log.read_text, bool)
    assert re.fullmatch(r"[\d-]{10} [\d:]{8} letterapp relay \[\d+\]: a connection was refused: .+\n", said), said
    log.write_bytes(b"x" * 1_048_577)
    relay.send_signal(signal.SIGUSR1)
    said = eventually(log.read_text, lambda text: text.endswith("\n"))
    assert '"delivered"' in said and len(said) < 2000


def open_files(pid: int) -> set[int]:
    """The inodes of what a process has open."""
    found = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # it was closed since
            found.add(os.stat(f"/proc/{pid}/fd/{name}").st_ino)
    return found


@linux
def test_a_relay_inherits_no_open_file_but_stderr(runtime: Runtime, make: Any, letter_api: Any, tmp_path: Path) -> None:
    with start(relays.start_a_relay_with_files_open, letter_api.url, tmp_path, tmp_path / "kept") as program:
        assert eventually(lambda: program.output, lambda text: "started" in text)
        relay = runtime.relay()
        theirs = open_files(program.pid)
        output = os.fstat(program._output.fileno()).st_ino  # a file, for which nothing waits
        null = os.stat(os.devnull).st_ino
        mine = open_files(relay.pid)
        assert mine & theirs <= {output, null} and output in mine
        assert not (runtime.path / "letterapp" / "relay.log").exists()


@linux
def test_a_relay_started_without_stderr_writes_to_none_of_its_sockets(
    runtime: Runtime, letter_api: Any, tmp_path: Path
) -> None:
    with start(relays.start_a_relay_without_stderr, letter_api.url, tmp_path) as program:
        assert eventually(lambda: program.output, lambda text: "started" in text)
        assert os.readlink(f"/proc/{runtime.relay().pid}/fd/2") == os.devnull


@linux
def test_a_relay_inherits_only_the_environment_variables_that_it_needs(
    runtime: Runtime, make: Callable[..., Letter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgres://user:secret@db")
    monkeypatch.setenv("LETTER_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    letter = make(relay=True)
    letter.track("u", "E")
    assert letter.flush(DEADLINE)
    environ = Path(f"/proc/{runtime.relay().pid}/environ").read_bytes()
    assert b"secret" not in environ and KEY.encode() not in environ
    assert b"NO_PROXY=127.0.0.1\0" in environ and b"XDG_RUNTIME_DIR=" in environ


@linux
def test_a_relay_cannot_be_traced_and_leaves_no_core(runtime: Runtime, make: Callable[..., Letter]) -> None:
    make(relay=True)
    pid = runtime.relay().pid
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert re.search(r"Max core file size +0 +0 ", limits)
    if os.geteuid() == 0:
        assert os.stat(f"/proc/{pid}/environ").st_uid == 0
    else:
        with pytest.raises(PermissionError):
            Path(f"/proc/{pid}/environ").read_bytes()


def test_a_relay_that_is_started_by_a_thread_which_blocks_signals_can_be_stopped(
    runtime: Runtime, letter_api: Any, tmp_path: Path
) -> None:
    with start(relays.start_a_relay_with_signals_blocked, letter_api.url, tmp_path) as program:
        relay = int(eventually(lambda: program.output, lambda text: text.endswith("\n")))
        assert [process.pid for process in runtime.relays()] == [relay]
        runtime.stop_all()


# What cannot be started.


@pytest.mark.parametrize(
    "options, why",
    [
        ({"relay": "/" + "x" * 103}, "too long for a socket's path"),
        ({"relay": True, "spool": "spool", "spool_sync": True}, "spool_sync cannot be combined with relay"),
        ({"relay": True, "ssl_context": ssl.create_default_context()}, "which cannot use this ssl_context"),
        ({"relay": 7}, "relay must be True, the path of a socket or a queue"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_options_that_cannot_work_are_refused(
    options: dict[str, Any],
    why: str,
    make: Callable[..., Letter],
    runtime: Runtime,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LetterError, match=why):
        make(**options)
    assert runtime.relays() == []


def test_a_frozen_program_must_run_a_relay_as_a_service(
    make: Callable[..., Letter], runtime: Runtime, letter_api: Any, kept: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(LetterError, match="this program is frozen: run a relay yourself"):
        make(relay=True)
    letter = make(relay=runtime.socket)
    track(letter, 1)
    assert letter.flush(DEADLINE) and letter.stats()["relayed"] == 1


def test_a_runtime_directory_that_is_too_long_is_a_clear_error(
    make: Callable[..., Letter], runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = runtime.path / ("x" * 100)
    long.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    with pytest.raises(LetterError, match="set XDG_RUNTIME_DIR to a shorter path"):
        make(relay=True)
