"""``python -m letterapp spool DIR``: what it shows of real spools, and what it delivers."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import DEADLINE, Finished, Program, environment, eventually
from spool_dir import NOWHERE, SpoolDir, change, claimed, fill, is_locked

from letterapp._storage.spool import KEPT
from letterapp._storage.spool_header import HEADER
from letterapp.testing import IngestionServer, status

KEY = "lt_test_secret_of_the_spool"
FINGERPRINT = hashlib.sha256(KEY.encode()).hexdigest()[:16]


def event(number: int, name: str = "Order Completed", when: str = "2026-01-31T12:00:00.000000Z") -> bytes:
    return json.dumps(
        {
            "type": "track", "event": name, "properties": {"n": number}, "userId": "u", "timestamp": when,
            "messageId": f"m{number}",
        }
    ).encode()  # fmt: skip


EVENTS = [event(number, "E" * (number + 1)) for number in range(9)]


def spool_command(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "letterapp", "spool", *map(str, arguments)]


def run_command(tmp_path: Path, *arguments: Any, url: str = NOWHERE, **env: str) -> Finished:
    env = {"LETTER_API_KEY": KEY, "LETTER_BASE_URL": url, **env}
    with Program(spool_command(*arguments), environment(url, **env), tmp_path) as program:
        finished = program.finish()
    assert KEY not in finished.output
    return finished


@pytest.fixture
def spool(spool_dir: SpoolDir) -> SpoolDir:
    return spool_dir


def contents(spool: SpoolDir, but: str) -> dict[str, tuple[bytes, int]]:
    """All files, except for one that this process has locked: to close it would release the lock."""
    paths = [spool.path / name for name in spool.files() if name != os.path.basename(but)]
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def garbage(path: Path) -> None:
    path.write_bytes(b"something else")
    path.chmod(0o600)


def test_it_shows_each_kind_of_file_and_changes_nothing(spool: SpoolDir, tmp_path: Path) -> None:
    left = spool.leave(event(1), event(2, "Signed Up", "2026-01-30T09:00:00Z"), event(3), key=KEY)
    slot = claimed(spool.spool(key="another-key"))  # this process, which runs
    fill(slot, event(4))
    cut, wrong = spool.leave(event(5), key=KEY), spool.leave(event(6), event(7), key=KEY)
    opened = spool.leave(event(8), key=KEY)
    os.truncate(cut, 5000)
    change(wrong, HEADER + (8 + len(event(6)) + 7) // 8 * 8 + 11, b"?")  # in the second record
    os.chmod(opened, 0o644)
    (spool.path / f".letter-{FINGERPRINT}-0000000000000001.ring").touch(0o600)
    aside = spool.path / f"letter-{FINGERPRINT}-0000000000000002.ring.damaged"
    garbage(aside)
    (spool.path / "notes.txt").write_text("of no interest")
    before = contents(spool, slot.path)

    found = json.loads(run_command(tmp_path, spool.path, "--json").output)
    files = {file["file"]: file for file in found["files"]}
    assert contents(spool, slot.path) == before and is_locked(slot.path)
    assert len(files) == 7 and "notes.txt" not in files
    one = files[os.path.basename(left)]
    assert (one["state"], one["key"], one["pid"], one["events"]) == ("left", FINGERPRINT, None, 3)
    assert one["since"] == "2026-01-30T09:00:00Z" and one["names"] == {"Order Completed": 2, "Signed Up": 1}
    used = files[os.path.basename(slot.path)]
    assert (used["state"], used["pid"], used["events"]) == ("in use", os.getpid(), 1)
    assert used["key"] == hashlib.sha256(b"another-key").hexdigest()[:16]
    assert files[os.path.basename(cut)]["problem"].startswith("it has 5,000 bytes instead of")
    half = files[os.path.basename(wrong)]
    assert (half["state"], half["events"], half["unreadable"]) == ("damaged", 1, 1)
    assert files[os.path.basename(opened)]["problem"] == "its permissions are too open, expected 0600"
    states = sorted(file["state"] for file in files.values())
    assert states == sorted(["left", "in use", *["damaged"] * 3, "untrusted", "unfinished"])
    assert (found["waiting"], found["left"]) == (5, 4)

    shown = run_command(tmp_path, spool.path)
    assert shown.code == 1  # a file is damaged
    for said in (
        "7 files of", "5 events waiting", f"3 events of key {FINGERPRINT}, since 2026-01-30 09:00:00 UTC",
        "2 Order Completed, 1 Signed Up", "its process has ended", f"process {os.getpid()} runs (",
        "a checksum is wrong; 1 event can be read, and at least 1 event cannot", "it is not a spool file",
        "4 events of ended processes wait",
    ):  # fmt: skip
        assert said in shown.output, (said, shown)
    slot.release()


def test_a_spool_that_is_in_order_is_shown_with_status_0(spool: SpoolDir, tmp_path: Path) -> None:
    spool.leave(event(1), key=KEY)
    assert run_command(tmp_path, spool.path).code == 0


@pytest.mark.parametrize("place", ["missing", "file"])
def test_what_is_no_directory_is_refused_and_not_created(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for more in ([], ["--send"]):
        done = run_command(tmp_path, tmp_path / place, *more)
        assert done.code == 1 and "cannot be read" in done.output, done
    assert not (tmp_path / "missing").exists()


def test_names_of_events_cannot_write_to_the_terminal(spool: SpoolDir, tmp_path: Path) -> None:
    spool.leave(event(1, "\x1b[31mred\nÜ"), b"[]", b"no json", key=KEY)
    done = run_command(tmp_path, spool.path, LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.code == 0 and "\\u001b[31mred\\n\\xdc" in done.output and "2 no event" in done.output, done


@pytest.mark.slow
def test_a_file_that_changes_while_it_is_read_is_not_called_damaged(spool: SpoolDir, tmp_path: Path) -> None:
    child = os.fork()
    if not child:
        try:
            slot = claimed(spool.spool(key=KEY))  # a small ring, which wraps around all the time
            ring, events = fill(slot, event(0)), itertools.cycle(EVENTS)
            while True:
                for _ in range(7):
                    ring.append(next(events))
                while ring.take(100, 100_000):
                    ring.settle()
        finally:
            os._exit(1)
    try:
        eventually(lambda: list(spool.path.glob("letter-*")), bool)
        for _ in range(5):
            found = json.loads(run_command(tmp_path, spool.path, "--json").output)
            assert [file["state"] for file in found["files"]] == ["in use"], found
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


# Sending.


def test_it_delivers_what_ended_processes_left_and_no_more(
    spool: SpoolDir, tmp_path: Path, letter_api: IngestionServer
) -> None:
    sizes = {"max_queue_events": 1000, "max_queue_bytes": 1_000_000, "max_batch_bytes": 100_000}
    for first in (0, 400):
        spool.leave(*[event(number) for number in range(first, first + 400)], key=KEY, **sizes)
    other = spool.leave(event(9001), key="another-key")
    slot = claimed(spool.spool(key=KEY, **sizes))
    fill(slot, event(9002))
    done = run_command(tmp_path, spool.path, "--send", url=letter_api.url)
    assert done.code == 0 and "800 events delivered\n" in done.output, done
    assert sorted(item["properties"]["n"] for item in letter_api.events) == list(range(800))
    assert spool.files() == sorted([os.path.basename(other), os.path.basename(slot.path)])
    assert is_locked(slot.path)
    slot.release()

    again = run_command(tmp_path, spool.path, "--send", "--json", url=letter_api.url)
    assert again.code == 0 and json.loads(again.output.splitlines()[-1])["delivered"] == 1, again


def test_there_may_be_nothing_to_send(spool: SpoolDir, tmp_path: Path, letter_api: IngestionServer) -> None:
    spool.leave(event(1), key="another-key")
    done = run_command(tmp_path, spool.path, "--send", url=letter_api.url)
    assert done.code == 0 and "nothing to send" in done.output and FINGERPRINT in done.output, done
    assert not letter_api.requests and len(spool.files()) == 1


def test_no_damaged_file_is_removed(spool: SpoolDir, tmp_path: Path, letter_api: IngestionServer) -> None:
    spool.leave(event(100), key=KEY)
    for number in range(KEPT + 2):
        garbage(spool.path / f"letter-{FINGERPRINT}-a{number:015x}.ring")
        garbage(spool.path / f"letter-{FINGERPRINT}-b{number:015x}.ring.damaged")
    done = run_command(tmp_path, spool.path, "--send", url=letter_api.url)
    assert [item["properties"]["n"] for item in letter_api.events] == [100], done
    assert len([name for name in spool.files() if name.endswith(".damaged")]) == 2 * (KEPT + 2)
    assert done.code == 1 and "cannot be read" in done.output


@pytest.mark.slow
def test_a_key_that_the_api_refuses_ends_it_at_once(
    spool: SpoolDir, tmp_path: Path, letter_api: IngestionServer
) -> None:
    path = spool.leave(event(1), event(2), key=KEY)
    letter_api.rule = lambda _: status(401, b'{"error":{"code":"unauthorized","message":"no such key"}}')
    done = run_command(tmp_path, spool.path, "--send", url=letter_api.url)
    assert done.code == 1 and "no such key" in done.output and "2 still in the spool" in done.output, done
    assert done.seconds < DEADLINE / 2 and os.path.exists(path)
    letter_api.rule = None
    assert run_command(tmp_path, spool.path, "--send", url=letter_api.url).code == 0
    assert letter_api.distinct == 2


@pytest.mark.slow
def test_it_gives_up_when_nothing_is_delivered(spool: SpoolDir, tmp_path: Path) -> None:
    spool.leave(event(1), key=KEY)
    done = run_command(tmp_path, spool.path, "--send", "--timeout", "0.5")
    assert done.code == 1 and "nothing was delivered for 0.5 s" in done.output, done
    assert json.loads(run_command(tmp_path, spool.path, "--json").output)["left"] == 1


def test_without_a_key_nothing_is_sent(spool: SpoolDir, tmp_path: Path, letter_api: IngestionServer) -> None:
    spool.leave(event(1), key=KEY)
    done = run_command(tmp_path, spool.path, "--send", url=letter_api.url, LETTER_API_KEY="")
    assert done.code == 1 and "api_key is required" in done.output and not letter_api.requests, done
    secret = tmp_path / "key"
    secret.write_text(f"{KEY}\n")
    secret.chmod(0o600)
    done = run_command(
        tmp_path, spool.path, "--send", "--api-key-file", secret, "--base-url", letter_api.url, LETTER_API_KEY=""
    )
    assert done.code == 0 and letter_api.distinct == 1, done


def test_ctrl_c_leaves_the_rest_in_the_spool(spool: SpoolDir, tmp_path: Path, letter_api: IngestionServer) -> None:
    spool.leave(event(1), event(2), key=KEY)
    letter_api.hold()
    env = environment(letter_api.url, LETTER_API_KEY=KEY, LETTER_BASE_URL=letter_api.url)
    with Program(spool_command(spool.path, "--send"), env, tmp_path) as program:
        assert eventually(lambda: letter_api.requests, bool)
        program.signal(signal.SIGINT)
        done = program.finish()
    assert done.code == -signal.SIGINT and "stays in the spool" in done.output, done
    letter_api.release()
    assert run_command(tmp_path, spool.path, "--send", url=letter_api.url).code == 0
    assert letter_api.distinct == 2


def test_a_reader_that_has_gone_is_no_error(spool: SpoolDir, tmp_path: Path) -> None:
    spool.leave(event(1), key=KEY)
    line = '"$@" >&-; echo $?; "$@" >/dev/full; echo $?'
    with Program(["sh", "-c", line, "sh", *spool_command(spool.path)], environment(NOWHERE), tmp_path) as program:
        assert program.finish().output == "0\n0\n"


def test_a_client_s_own_spool(tmp_path: Path, letter_api: IngestionServer) -> None:
    # As an application leaves it, with the default sizes.
    code = (
        "import os, sys; from letterapp import Letter\n"
        f"letter = Letter('{KEY}', '{NOWHERE}', spool='spool')\n"
        "for number in range(300): letter.track('u', 'E', {'n': number})\n"
        "os.kill(os.getpid(), 9)"
    )
    with Program([sys.executable, "-c", code], environment(NOWHERE), tmp_path) as program:
        assert program.finish().code == -signal.SIGKILL
    found = json.loads(run_command(tmp_path, "spool", "--json").output)
    assert (found["left"], found["files"][0]["names"]) == (300, {"E": 300})
    assert run_command(tmp_path, "spool", "--send", url=letter_api.url).code == 0
    assert letter_api.distinct == 300
