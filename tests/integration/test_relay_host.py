"""A host that lacks something that a relay needs, or has an obstacle in the relay's path."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import Any, Callable

import pytest
from harness import DEADLINE, environment, eventually, run, start
from programs import relay_trouble
from relayed import KEY, STRANGER, Runtime, needs_root, own_runtime  # noqa: F401  (a fixture)

from letterapp import Letter, LetterError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Unix")


@pytest.mark.parametrize("lay", ["squatted", "a file", "missing", "open"])
def test_without_a_directory_for_the_socket_the_process_sends_its_events_itself(
    lay: str,
    make: Callable[..., Letter],
    runtime: Runtime,
    letter_api: Any,
    errors: list[LetterError],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = runtime.path / "letterapp"
    if lay == "squatted":
        if os.geteuid() != 0:
            pytest.skip("becomes another user")
        own.mkdir(mode=0o700)
        os.chown(own, STRANGER, -1)
    elif lay == "a file":
        own.write_text("")
    elif lay == "open":
        own.mkdir()
        own.chmod(0o777)
    else:
        monkeypatch.setenv("XDG_RUNTIME_DIR", "")
        monkeypatch.setattr("tempfile.tempdir", str(runtime.path / "missing"))
    letter = make(relay=True)
    letter.track("u", "E")
    assert letter.flush(DEADLINE) and letter.stats()["relayed"] == 0 and letter_api.distinct == 1
    assert [error.cause for error in errors] == ["degraded"] and "the socket's directory cannot be used" in str(
        errors[0]
    )


def test_without_a_descriptor_for_a_relay_the_process_sends_its_events_itself_and_reports_that(
    runtime: Runtime, letter_api: Any, tmp_path: Path
) -> None:
    finished = run(relay_trouble.no_descriptor_for_a_relay, letter_api.url, tmp_path)
    assert finished.code == 0 and "Too many open files" in finished.output, finished
    assert letter_api.distinct == 1
    runtime.stop_all()  # one that was started when there was a descriptor again would wait 20 s for its first client


def test_without_a_descriptor_to_load_modules_the_error_is_a_letter_error(letter_api: Any, tmp_path: Path) -> None:
    finished = run(relay_trouble.no_descriptor_for_modules, letter_api.url, tmp_path)
    assert finished.code == 0, finished
    assert "base_url cannot be checked: Too many open files" in finished.output
    assert "its modules cannot be imported: Too many open files" in finished.output and letter_api.distinct == 1


@needs_root
@pytest.mark.skipif(not os.path.exists("/usr/bin/python3"), reason="needs a Python that others may run")
def test_without_a_process_for_a_relay_the_process_sends_its_events_itself_and_reports_that(
    runtime: Runtime, letter_api: Any, tmp_path: Path
) -> None:
    runtime.path.chmod(0o755)
    his = runtime.path / "his"
    his.mkdir(mode=0o700)
    os.chown(his, 4_000_000, -1)
    python = "/usr/bin/python3"  # which the other user may run
    with start(relay_trouble.no_process_for_a_relay, letter_api.url, tmp_path, his, python=python) as program:
        finished = program.finish()
    assert "continues 0 1" in finished.output and "Resource temporarily unavailable" in finished.output, finished
    assert letter_api.distinct == 1


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="needs /dev/fd")
def test_a_relay_whose_stderr_is_not_read_keeps_running(
    runtime: Runtime, make: Callable[..., Letter], letter_api: Any
) -> None:
    ends = os.pipe()
    env = environment(letter_api.url, LETTER_API_KEY=KEY)
    relay = subprocess.Popen(runtime.command_line("--socket", runtime.socket), env=env, stderr=ends[1])
    try:
        assert b"serving at" in eventually(lambda: os.read(ends[0], 10_000), lambda said: b"serving" in said)
        assert os.get_blocking(ends[1])  # a flag that all who have the pipe share
        os.set_blocking(ends[1], False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(ends[1], b"x" * 4096)
        for _ in range(20):
            relay.send_signal(signal.SIGUSR1)  # has it say something
            runtime.own_status()
        letter = make(relay=runtime.socket)
        letter.track("u", "E")
        assert letter.flush(DEADLINE) and letter.stats()["relayed"] == 1
    finally:
        relay.send_signal(signal.SIGTERM)
        relay.wait(DEADLINE)
        os.close(ends[0])
        os.close(ends[1])
