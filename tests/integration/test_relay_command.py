"""The command ``python -m letterapp relay``: its options, its signals, its status and its error messages."""

from __future__ import annotations

import grp
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable

import pytest
from harness import DEADLINE, environment, eventually, run, whose
from programs import relays
from relayed import (
    KEY,
    Runtime,
    balanced,
    held_request,  # noqa: F401  (a fixture)
    kept_relay,  # noqa: F401  (a fixture)
    own_runtime,  # noqa: F401  (a fixture)
    patient_clients,  # noqa: F401  (a fixture)
    track,
)

from letterapp import Letter, LetterError
from letterapp.testing import Hold

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Unix"),
    pytest.mark.usefixtures("patient"),
]


# Its options.


def test_the_key_comes_from_a_file_or_the_environment(
    make: Callable[..., Letter], runtime: Runtime, letter_api: Any
) -> None:
    file = runtime.path / "key"
    file.write_text(f"{KEY}\n")
    for options, key in [(["--api-key-file", str(file)], None), ([], KEY)]:
        with runtime.keep(*options, key=key) as relay:
            letter = make(relay=runtime.socket)
            track(letter, 1)
            assert letter.flush(DEADLINE) and letter.stats()["relayed"] == 1
            assert KEY.encode() not in Path(f"/proc/{relay.pid}/cmdline").read_bytes()
            letter.close()
    assert letter_api.distinct == 2
    without = runtime.command("--socket", runtime.socket, key="")
    assert without.returncode == 1 and "LETTER_API_KEY" in without.stderr
    missing = runtime.command("--socket", runtime.socket, "--api-key-file", str(runtime.path / "none"))
    assert missing.returncode == 1 and "No such file" in missing.stderr and "Traceback" not in missing.stderr


def test_a_group_may_be_given_access(make: Callable[..., Letter], runtime: Runtime) -> None:
    for group in (grp.getgrgid(os.getgid()).gr_name, str(os.getgid())):
        with runtime.keep("--group", group):
            path = Path(runtime.socket)
            assert stat.S_IMODE(path.stat().st_mode) == 0o660 and path.stat().st_gid == os.getgid()
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750 and path.parent.stat().st_gid == os.getgid()
            letter = make(relay=runtime.socket)
            track(letter, 1)
            assert letter.flush(DEADLINE) and letter.stats()["relayed"] == 1
            letter.close()
    unknown = runtime.command("--socket", runtime.socket, "--group", "no-such-group")
    assert unknown.returncode == 1 and "no group no-such-group" in unknown.stderr


def test_without_a_group_only_this_user_may_use_the_socket(runtime: Runtime, kept: Any) -> None:
    path = Path(runtime.socket)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_with_a_spool_nothing_is_lost_when_all_are_killed(
    runtime: Runtime, letter_api: Any, hold: Hold, tmp_path: Path
) -> None:
    spool = ["--spool", str(tmp_path / "spool")]
    with runtime.keep(*spool) as relay:
        assert run(relays.track_and_be_killed, letter_api.url, tmp_path, 120, runtime.socket).code == -signal.SIGKILL
        assert hold.arrived.wait(DEADLINE)
        assert eventually(runtime.own_status, lambda status: status["accepted"] == 120)["accepted"] == 120
        relay.signal(signal.SIGKILL)
        assert relay.finish().code == -signal.SIGKILL
    assert letter_api.distinct == 0
    with runtime.keep(*spool):
        assert letter_api.wait_for(120)
        assert eventually(runtime.own_status, lambda status: status["delivered"] == 120)["adopted"] == 120
    hold.release()
    assert sorted(whose(letter_api)["program"]) == list(range(120))


# What it says, and how it ends.


@pytest.mark.slow
def test_status_describes_the_relays(make: Callable[..., Letter], runtime: Runtime, kept: Any) -> None:
    none = runtime.command("--status")
    assert (none.returncode, none.stdout) == (1, "") and "no relay" in none.stderr
    nowhere = runtime.command("--status", "--socket", runtime.socket + "x")
    assert (nowhere.returncode, nowhere.stdout) == (1, "") and "No such file" in nowhere.stderr
    wrong = runtime.command("--status", "--socket", runtime.socket, key="another-key")
    assert (wrong.returncode, wrong.stdout) == (1, "") and "another API key" in wrong.stderr

    own = runtime.status("--socket", runtime.socket)
    assert own["pid"] == kept.pid and own["socket"] == runtime.socket
    letter = make(relay=True)
    track(letter, 3)
    assert letter.flush(DEADLINE)
    started = runtime.status()
    assert started["pid"] != kept.pid and balanced(started)["delivered"] == 3
    assert (started["processes"], started["leases"]) == (1, 1)


def test_sigusr1_logs_the_status(kept: Any, runtime: Runtime) -> None:
    kept.signal(signal.SIGUSR1)
    said = eventually(lambda: kept.output, lambda text: "accepted" in text and text.endswith("\n"))
    line = said.splitlines()[-1]
    assert json.loads(line[line.index("{") :])["pid"] == kept.pid


def test_it_notifies_systemd_when_it_serves_and_when_it_stops(runtime: Runtime) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.settimeout(DEADLINE)
        ear.bind(str(runtime.path / "notify"))
        with runtime.keep(NOTIFY_SOCKET=str(runtime.path / "notify")) as relay:
            assert ear.recv(100) == b"READY=1"
            relay.signal(signal.SIGTERM)
            assert ear.recv(100) == b"STOPPING=1"
            assert relay.finish().code == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_on_a_signal_it_drains_and_exits(
    number: int, make: Callable[..., Letter], runtime: Runtime, letter_api: Any, hold: Hold, kept: Any
) -> None:
    letter = make(relay=runtime.socket)
    track(letter, 120)
    assert hold.arrived.wait(DEADLINE)
    kept.signal(number)
    assert eventually(lambda: os.path.exists(runtime.socket), lambda there: not there) is False
    hold.release()
    finished = kept.finish()
    assert finished.code == 0 and "120 delivered, 0 lost, 0 left" in finished.output, finished
    assert sorted(whose(letter_api)["test"]) == list(range(120))
    assert letter.flush(DEADLINE) and balanced(letter.stats())["delivered"] == 120
    assert letter_api.repeated() == {}


@pytest.mark.slow
def test_it_does_not_wait_for_the_api_forever(
    make: Callable[..., Letter], runtime: Runtime, letter_api: Any, hold: Hold, kept: Any
) -> None:
    letter = make(relay=runtime.socket)
    track(letter, 3)
    assert hold.arrived.wait(DEADLINE)
    kept.signal(signal.SIGTERM)
    began = time.monotonic()
    assert kept.finish().code == 0
    assert time.monotonic() - began < 9.9  # once `exit_timeout`, which is 5, and not twice
    hold.release()
    assert letter.flush(DEADLINE) and letter_api.distinct == 3  # what it left is still the client's


def test_a_second_relay_at_the_same_socket_exits(
    make: Callable[..., Letter], runtime: Runtime, letter_api: Any, kept: Any
) -> None:
    second = runtime.command("--socket", runtime.socket)
    assert second.returncode == 1 and f"another relay serves at {runtime.socket}" in second.stderr
    letter = make(relay=runtime.socket)
    track(letter, 1)
    assert letter.flush(DEADLINE) and letter.stats()["relayed"] == 1


def test_the_socket_of_a_killed_relay_is_replaced_but_no_other_file(
    make: Callable[..., Letter], runtime: Runtime, letter_api: Any, kept: Any
) -> None:
    kept.signal(signal.SIGKILL)
    kept.finish()
    assert stat.S_ISSOCK(os.stat(runtime.socket).st_mode)
    with runtime.keep():
        letter = make(relay=runtime.socket)
        track(letter, 1)
        assert letter.flush(DEADLINE) and letter.stats()["relayed"] == 1
    Path(runtime.socket).unlink()
    Path(runtime.socket).write_text("precious")
    refused = runtime.command("--socket", runtime.socket)
    assert refused.returncode == 1 and "is not a socket: remove it, or choose another path" in refused.stderr
    assert Path(runtime.socket).read_text() == "precious"


# Mistakes.


def test_a_directory_that_others_may_write_in_is_not_trusted(make: Callable[..., Letter], runtime: Runtime) -> None:
    directory = Path(runtime.socket).parent
    directory.mkdir()
    directory.chmod(0o777)
    with pytest.raises(LetterError, match="its permissions are too open"):
        make(relay=runtime.socket)
    refused = runtime.command("--socket", runtime.socket)
    assert refused.returncode == 1 and "its permissions are too open" in refused.stderr


def _missing_key(path: Path) -> tuple[list[str], str]:
    return ["--socket", str(path / "r.sock"), "--api-key-file", "/no/key"], "--api-key-file: /no/key: No such file"


def _status_with_missing_key(path: Path) -> tuple[list[str], str]:
    return ["--status", "--api-key-file", "/no/key"], "--api-key-file: /no/key: No such file"


def _empty_key(path: Path) -> tuple[list[str], str]:
    return ["--status", "--api-key-file", os.devnull], f"--api-key-file: {os.devnull} is empty"


def _binary_key(path: Path) -> tuple[list[str], str]:
    (path / "key").write_bytes(bytes(range(256)))
    (path / "key").chmod(0o600)
    return ["--status", "--api-key-file", str(path / "key")], "api_key must be printable ASCII"


def _managers_missing_key(path: Path) -> tuple[list[str], str]:
    (path / "authkey").write_text("secret")
    (path / "authkey").chmod(0o600)
    options = ["--manager", str(path / "m.sock"), "--authkey-file", str(path / "authkey"), "--api-key-file", "/no/key"]
    return options, "--api-key-file: /no/key: No such file"


def _missing_authkey(path: Path) -> tuple[list[str], str]:
    return ["--manager", str(path / "m.sock"), "--authkey-file", "/no/authkey"], "--authkey-file: /no/authkey: No such"


def _managers_port(path: Path) -> tuple[list[str], str]:
    (path / "authkey").write_text("secret")
    (path / "authkey").chmod(0o600)
    options = ["--manager", "127.0.0.1:99999", "--authkey-file", str(path / "authkey")]
    return options, "cannot listen at ('127.0.0.1', 99999): "


def _directory_in_nothing(path: Path) -> tuple[list[str], str]:
    return ["--socket", str(path / "a" / "b" / "r.sock")], f"{path / 'a' / 'b'}: No such file"


def _open_directory(path: Path) -> tuple[list[str], str]:
    (path / "open").mkdir()
    (path / "open").chmod(0o777)
    return ["--socket", str(path / "open" / "r.sock")], f"{path / 'open'}: its permissions are too open (0777)"


def _directory_is_a_file(path: Path) -> tuple[list[str], str]:
    (path / "file").write_text("")
    return ["--socket", str(path / "file" / "r.sock")], f"{path / 'file'}: it must be a directory"


@pytest.mark.parametrize(
    "lay",
    [
        _missing_key,
        _status_with_missing_key,
        _empty_key,
        _binary_key,
        _managers_missing_key,
        _missing_authkey,
        _managers_port,
        _directory_in_nothing,
        _open_directory,
        _directory_is_a_file,
    ],
)
def test_a_command_names_the_file_that_it_cannot_use(
    lay: Callable[[Path], tuple[list[str], str]], runtime: Runtime, tmp_path: Path
) -> None:
    options, says = lay(tmp_path)
    done = runtime.command(*options)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and line.split("]: ", 1)[1].startswith(says), line


def test_the_inbox_refuses_an_invalid_port(runtime: Runtime) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "letterapp", "inbox", "--port", "70000"],
        env=environment(runtime.api.url),
        stderr=subprocess.PIPE,
        timeout=DEADLINE,
    )
    assert done.returncode == 2 and b"argument --port: must be from 0 to 65535" in done.stderr
