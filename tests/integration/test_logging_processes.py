"""What is logged where processes send for others, are killed, or are a server's workers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import psutil
import pytest
from harness import DEADLINE, WebServer, environment, eventually, needs
from logged import (  # noqa: F401  (a fixture)
    Listener,
    fresh_log,
    listening,
)
from managed import Directory, own_directory, own_manager  # noqa: F401  (fixtures)
from relayed import Runtime, kept_relay, own_runtime, track, until_relayed  # noqa: F401  (fixtures)

from letterapp import Letter
from letterapp.relay import SenderManager
from letterapp.testing import IngestionServer, status
from stress.ports import free_port

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Unix")


def modes(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("mode:")]


def test_a_relay_that_goes_and_comes_back_is_two_lines(
    make: Callable[..., Letter], runtime: Runtime, listener: Listener
) -> None:
    with runtime.keep() as relay:
        letter = make(relay=runtime.socket)
        track(letter, 3)
        assert letter.flush(DEADLINE) and modes(listener.texts) == []
        relay.signal(signal.SIGKILL)
        assert relay.finish().code == -signal.SIGKILL
    track(letter, 1, start=3)
    assert letter.flush(DEADLINE)
    assert [line.split(",")[0] for line in modes(listener.texts)] == ["mode: thread"]
    with runtime.keep():
        assert until_relayed(letter, 4)
        assert letter.flush(DEADLINE)
        assert [line.split(",")[0] for line in modes(listener.texts)] == ["mode: thread", "mode: relay"]
        letter.close()


def test_a_manager_that_goes_and_comes_back_is_two_lines(
    make: Callable[..., Letter], directory: Directory, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letterapp._relay.handover.FIRST_WAIT", 0.01)
    with directory.keep() as server:
        authkey = directory.authkey_file.read_bytes().strip()
        manager = SenderManager("test-key", directory.api.url, address=directory.socket, authkey=authkey)
        manager.connect()
        letter = make(relay=manager.queue)
        track(letter, 3)
        assert letter.flush(DEADLINE) and modes(listener.texts) == []
        assert [line for line in listener.texts if "3 events: settled by the queue's process, 0 lost" in line], (
            listener.texts
        )
        server.signal(signal.SIGKILL)
        assert server.finish().code == -signal.SIGKILL
    track(letter, 1, start=3)
    assert letter.flush(DEADLINE)
    assert modes(listener.texts) == ["mode: thread, the queue cannot be used"]
    with directory.keep():

        def relayed() -> str:
            track(letter, 1)
            assert letter.flush(DEADLINE)
            return str(letter.stats()["mode"])

        assert eventually(relayed, lambda mode: mode == "relay") == "relay"
        assert modes(listener.texts)[1:] == ["mode: relay, the queue accepts batches again"]


def test_the_losses_of_a_relay_are_logged_by_the_process_that_tracked(
    make: Callable[..., Letter], runtime: Runtime, letter_api: IngestionServer, kept: Any, listener: Listener
) -> None:
    letter = make(relay=runtime.socket)
    letter_api.plan(status(400))
    track(letter, 1)
    assert letter.flush(DEADLINE)
    assert eventually(lambda: letter.stats()["lost"], bool) == {"rejected": 1}
    assert listener.texts == ["1 event lost (rejected)"]


def test_letter_debug_in_a_relay(make: Callable[..., Letter], runtime: Runtime, letter_api: IngestionServer) -> None:
    with runtime.keep(LETTER_DEBUG="1") as relay:
        letter = make(relay=runtime.socket)
        letter_api.plan(status(400))
        track(letter, 1)
        assert letter.flush(DEADLINE)
        track(letter, 4, start=1)
        assert letter.flush(DEADLINE)
        letter.close()
        relay.signal(signal.SIGTERM)
        output = relay.finish().output
    assert f"letterapp[{relay.pid}] WARNING 1 event lost (rejected)\n" in output
    assert re.search(rf"letterapp\[{relay.pid}\] DEBUG batch \d, 4 events: delivered in", output), output


def test_letter_debug_in_a_relay_that_a_client_starts(runtime: Runtime, letter_api: IngestionServer) -> None:
    """Its starter's stderr is a pipe, so it has a log."""
    done = subprocess.run(
        [sys.executable, "-m", "programs.logs", "relayed"],
        env=environment(letter_api.url, LETTER_DEBUG="1"),
        cwd=str(runtime.path),
        capture_output=True,
        encoding="utf-8",
        timeout=DEADLINE,
    )
    assert done.returncode == 0, done
    log = runtime.path / "letterapp" / "relay.log"
    text = eventually(log.read_text, lambda text: "delivered" in text)
    assert re.search(r"^\S+Z letterapp\[\d+\] DEBUG batch 1, 2 events: delivered in", text, re.M), text
    assert f"letterapp[{done.stdout.strip()}]" not in text


def test_a_relay_s_log_stays_small_with_letter_debug(tmp_path: Path) -> None:
    code = """if True:
        import os, sys
        from letterapp import _log
        from letterapp._relay_server import daemon
        daemon.LARGEST_LOG = 2_000
        daemon.leave_starters_pipe(sys.argv[1])
        for number in range(1_000):
            _log.note("line %d", number)
            _log.emit()
    """
    command = [sys.executable, "-c", code, str(tmp_path)]
    subprocess.run(command, env=environment("", LETTER_DEBUG="1"), capture_output=True, check=True, timeout=DEADLINE)
    text = (tmp_path / "relay.log").read_text()
    assert text.endswith("line 999\n") and len(text) < 2_200


@needs("gunicorn")
def test_the_workers_of_gunicorn(letter_api: IngestionServer, tmp_path: Path) -> None:
    """Each prints what it does itself, and a killed one's events are taken over by another process of the family."""
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "programs.killed_gunicorn:app", "--preload", "-w", "2"]
    command += ["-b", f"127.0.0.1:{port}", "-c", "python:programs.killed_gunicorn_conf"]
    with WebServer(command, environment(letter_api.url, LETTER_DEBUG="1"), tmp_path, port) as server:
        answered = [int(server.get(f"/?{serial}")) for serial in range(10)]
        victim = answered[0]
        server.signal(signal.SIGKILL, victim)
        assert eventually(lambda: psutil.pid_exists(victim), lambda there: not there) is False
        server.signal(signal.SIGTERM)
        finished = server.finish()
    assert finished.code == 0, finished
    found = re.findall(r"letterapp\[(\d+)\] DEBUG (.*)", finished.output)
    taken_over = [(int(pid), text) for pid, text in found if text.startswith("taken over")]
    events = sum(int(text.split()[2]) for _, text in taken_over)
    assert events == answered.count(victim) and victim not in {pid for pid, _ in taken_over}, finished
    delivered = sum(int(re.split(r"[ ,]+", text)[2]) for _, text in found if "delivered" in text)
    assert delivered == letter_api.distinct == 10, finished
    assert str(victim) not in {pid for pid, _ in found}
