"""A manager's process: how it is started, who keeps it alive, when it ends, and its command line."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness import DEADLINE, Program, environment, eventually, run, start, whose
from managed import (
    KEY,
    SECRET,
    Directory,
    command_of,
    own_directory,  # noqa: F401  (a fixture for all tests)
    work,
)
from programs import managers

from letterapp import Letter, LetterError
from letterapp._relay_server.manager_program import address_of, spawn_process
from letterapp.relay import SENDING, SenderManager
from letterapp.testing import status
from stress.ports import free_port

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Unix")


def test_its_process_is_detached_and_ends_with_its_starter(
    letter_api: Any, tmp_path: Path, directory: Directory
) -> None:
    with start(managers.stays, letter_api.url, tmp_path) as program:
        pid = int(eventually(lambda: program.output, lambda text: text.endswith("\n")))
        assert pid not in [child.pid for child in program.descendants()]
        assert psutil.Process(pid).ppid() != program.pid
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(pid, number)
        assert [process.pid for process in directory.processes()] == [pid]
        program.signal(signal.SIGKILL)
        program.finish()
        assert not directory.left_behind()
    assert not [name for name in os.listdir(directory.path / "letterapp") if name.endswith(".sock")]
    assert whose(letter_api) == {"program": list(range(5))}


def test_a_manager_whose_starter_was_killed_serves_its_forked_children(
    letter_api: Any, tmp_path: Path, directory: Directory
) -> None:
    with start(managers.killed_before_its_child_sends, letter_api.url, tmp_path) as program:
        program.finish()
        assert eventually(lambda: program.output, lambda text: "done" in text) == "done\n"
        assert not directory.left_behind()
    assert whose(letter_api) == {"orphan": list(range(5))}


def test_a_garbage_collected_manager_ends_without_a_shutdown(letter_api: Any, directory: Directory) -> None:
    one = SenderManager(KEY, letter_api.url)
    one.start()
    queue = one.queue
    del one
    gc.collect()
    assert len(directory.processes()) == 1  # a reference to its queue is enough
    del queue

    def left() -> list[psutil.Process]:
        gc.collect()  # each time: it does nothing while another thread is in a collection
        return directory.processes()

    assert not eventually(left, lambda found: not found)


def test_shutdown_in_a_forked_child_does_not_end_the_parent_s_manager(letter_api: Any, tmp_path: Path) -> None:
    finished = run(managers.child_calls_shutdown, letter_api.url, tmp_path)
    assert finished.output == "this manager has already been started or connected; create another one\n", finished


def test_a_manager_is_spawned_where_there_is_no_fork(letter_api: Any, tmp_path: Path) -> None:
    options = {
        name: getattr(SenderManager(KEY, letter_api.url)._settings, name) for name in (*SENDING, "api_key", "base_url")
    }
    process, address = spawn_process(options, str(tmp_path / "m.sock"), SECRET)
    tmp_path.chmod(0o700)
    one = SenderManager(KEY, letter_api.url, address=address, authkey=SECRET)
    one.connect()
    letter = Letter(relay=one.queue)
    work(letter, 5)
    assert letter.flush(DEADLINE) and one.status()["delivered"] == 5
    assert letter.close()
    process.stop(DEADLINE)
    assert process._process.exitcode == 0
    with pytest.raises(LetterError, match="not a socket: remove it, or choose another path"):
        (tmp_path / "file").touch()
        spawn_process(options, str(tmp_path / "file"), SECRET)


def test_get_server_serves_in_the_calling_process(letter_api: Any, tmp_path: Path) -> None:
    address = str(tmp_path / "m.sock")
    with start(managers.server, letter_api.url, tmp_path, address) as program:
        assert eventually(lambda: "serving" in program.output and os.path.exists(address), bool), program.output
        one = SenderManager(KEY, letter_api.url, address=address, authkey=b"secret")
        eventually(lambda: _connects(one), bool)
        letter = Letter(relay=one.queue)
        work(letter, 5)
        assert letter.close(DEADLINE) and letter.stats()["relayed"] == 5
        program.signal(signal.SIGTERM)
        assert program.finish().code == 0


def _connects(one: SenderManager) -> bool:
    try:
        one.connect()
    except LetterError:
        return False
    return True


def test_a_manager_does_not_keep_the_output_of_its_starter_open(
    directory: Directory, letter_api: Any, tmp_path: Path
) -> None:
    ends = os.pipe()
    try:
        done = subprocess.run(
            command_of(managers.leaves_its_manager_to_a_silent_child),
            stdin=ends[0],
            capture_output=True,
            env=environment(letter_api.url),
            timeout=DEADLINE,
        )
        (manager,) = directory.processes()
        assert (done.stdout, done.stderr) == (b"%d\n" % manager.pid, b"")
        assert (directory.path / "letterapp" / "relay.log").read_bytes() == b""
    finally:
        os.close(ends[1])
        os.close(ends[0])


# The command line.


def test_addresses_on_the_command_line() -> None:
    assert address_of("localhost:80") == ("localhost", 80)
    assert address_of("[::1]:80") == ("::1", 80)
    assert address_of("/run/m.sock") == "/run/m.sock"
    assert address_of("./a:80") == os.path.abspath("a:80")
    assert address_of("\\\\.\\pipe\\m") == "\\\\.\\pipe\\m"


def test_a_manager_over_tcp(directory: Directory, letter_api: Any) -> None:
    port = free_port()
    address = f"127.0.0.1:{port}"
    with directory.keep(address=address) as kept:
        one = SenderManager(KEY, letter_api.url, address=("127.0.0.1", port), authkey=SECRET)
        one.connect()
        letter = Letter(relay=one.queue)
        work(letter, 250)
        assert letter.close(DEADLINE)
        assert directory.status(address)["delivered"] == 250
        kept.signal(signal.SIGINT)
        assert kept.finish().code == 0
    assert whose(letter_api) == {"program": list(range(250))}


@pytest.mark.slow
def test_only_one_of_several_managers_serves_at_an_address(directory: Directory, letter_api: Any) -> None:
    with directory.keep() as kept:
        kept.signal(signal.SIGKILL)
        kept.finish()
    starting = [
        Program(
            directory.command_line("--manager", directory.socket),
            environment(letter_api.url, LETTER_API_KEY=KEY),
            directory.path,
        )
        for _ in range(4)
    ]
    try:
        outputs = eventually(
            lambda: [program.output for program in starting], lambda outputs: all("serv" in text for text in outputs)
        )
        assert ["serving at" in text for text in outputs].count(True) == 1, outputs
        assert directory.status()["accepted"] == 0
    finally:
        for program in starting:
            program.__exit__()


@pytest.mark.slow
def test_a_manager_with_a_spool_ends_within_its_time(directory: Directory, letter_api: Any, tmp_path: Path) -> None:
    letter_api.rule = lambda request: status(503)
    with directory.keep("--spool", str(tmp_path / "spool")) as kept:
        one = SenderManager(KEY, letter_api.url, address=directory.socket, authkey=SECRET)
        one.connect()
        letter = Letter(relay=one.queue, on_error=lambda error: None, flush_interval=0)
        work(letter, 5)
        assert eventually(lambda: one.status()["waiting"], lambda waiting: waiting == 5) == 5
        began = time.monotonic()
        kept.signal(signal.SIGTERM)
        assert kept.finish().code == 0
        assert time.monotonic() - began < 9  # `exit_timeout` is 5, and a busy machine takes its time
    letter_api.rule = None
    assert letter.close(DEADLINE)


@pytest.mark.slow
def test_invalid_arguments_on_the_command_line(directory: Directory) -> None:
    def says(*options: str) -> str:
        done = directory.command(*options)
        assert done.returncode in (1, 2)
        assert "Traceback" not in done.stderr
        return str(done.stderr)

    assert "cannot be used" in says("--manager", directory.socket, "--status")
    with directory.keep():
        assert "another process serves at" in says("--manager", directory.socket)
    plain = directory.path / "plain"
    plain.touch()
    assert "not a socket: remove it, or choose another path" in says("--manager", str(plain))
    directory.authkey_file.write_bytes(b" \n")
    assert "is empty" in says("--manager", directory.socket)
    directory.authkey_file.unlink()
    assert "authkey: No such file" in says("--manager", directory.socket)
    assert "--manager cannot be combined with" in says("--manager", directory.socket, "--socket", "x")
    directory.path.chmod(0o777)
    (directory.path / "open").mkdir(mode=0o777)
    (directory.path / "open").chmod(0o777)
    directory.authkey_file.write_bytes(SECRET)
    assert "its permissions are too open" in says("--manager", str(directory.path / "open" / "m.sock"))
