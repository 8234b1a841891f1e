"""``python -m letterapp doctor``: spools, relays and managers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from doctors import KEY, examine
from managed import SECRET, Directory, own_directory  # noqa: F401  (a fixture)
from relayed import KEY as RELAY_KEY
from relayed import Runtime, own_runtime  # noqa: F401  (a fixture)
from spool_dir import SpoolDir, claimed, fill

from letterapp.testing import IngestionServer

EVENT = b'{"type":"track","event":"E","userId":"u","messageId":"m","timestamp":"2026-01-31T12:00:00Z","properties":{}}'


def test_a_spool(spool_dir: SpoolDir, letter_api: IngestionServer, tmp_path: Path) -> None:
    fresh = examine(letter_api.url, tmp_path, "--spool", spool_dir.path)
    assert fresh.code == 0 and "does not exist yet" in fresh.of("spool")["text"], fresh.output
    assert not spool_dir.path.exists() and "survive whatever is killed" in fresh.of("mode")["text"]

    spool_dir.leave(EVENT, EVENT, key=KEY)
    slot = claimed(spool_dir.spool(key=KEY))  # this process goes on with the file of another, if there is no room
    fill(slot, EVENT)
    spool_dir.leave(EVENT, key="another-key")
    damaged = spool_dir.path / "letter-0123456789abcdef-1.ring.damaged"
    damaged.write_bytes(b"x")
    damaged.chmod(0o600)
    before = spool_dir.files()
    done = examine(letter_api.url, tmp_path, "--spool", spool_dir.path)
    texts = [finding["text"] for finding in done.findings if finding["check"] == "spool"]
    assert any("1 of 4 files in use, 1 events waiting there" in text for text in texts), done.output
    assert "2 events of ended processes wait for the next process" in texts
    assert "1 events of other API keys wait" in texts and "1 file that cannot be read" in texts, texts
    assert done.code == 0 and spool_dir.files() == before
    slot.release()


@pytest.mark.parametrize("kind", ["open", "file", "no parent", "no locks"])
def test_a_spool_that_cannot_be_used(kind: str, letter_api: IngestionServer, tmp_path: Path) -> None:
    path = tmp_path / "spool"
    if kind == "open":
        path.mkdir(0o755)
    elif kind == "file":
        path.touch(0o600)
    elif kind == "no parent":
        path = tmp_path / "missing" / "spool"
    else:
        path = Path("/proc/self/task")
    done = examine(letter_api.url, tmp_path, "--spool", path)
    assert done.code == 1 and done.of("spool")["level"] == "fail", done.output


def test_little_room_for_a_spool(spool_dir: SpoolDir, letter_api: IngestionServer, tmp_path: Path) -> None:
    # As a rule there is a file system here that is smaller than a spool may become.
    spool_dir.leave(EVENT, key=KEY)
    done = examine(letter_api.url, tmp_path, "--spool", spool_dir.path)
    status = os.statvfs(spool_dir.path)
    is_short = status.f_bavail * status.f_frsize < 268_435_456
    assert any("bytes free" in finding["text"] for finding in done.findings) == is_short, done.output


# Relays and managers.


def test_a_relay(runtime: Runtime, letter_api: IngestionServer, tmp_path: Path) -> None:
    with runtime.keep():
        done = examine(letter_api.url, tmp_path, "--relay", runtime.socket, key=RELAY_KEY)
        assert done.code == 0 and "serves at" in done.of("relay")["text"], done.output
        assert "a relay sends" in done.of("mode")["text"]
        other = examine(letter_api.url, tmp_path, "--relay", runtime.socket)
        assert other.code == 1 and "same key" in other.of("relay")["advice"], other.output
    gone = examine(letter_api.url, tmp_path, "--relay", runtime.socket, key=RELAY_KEY)
    assert gone.code == 1 and "python -m letterapp relay --socket" in gone.of("relay")["advice"], gone.output


def test_no_relay_runs(runtime: Runtime, letter_api: IngestionServer, tmp_path: Path) -> None:
    done = examine(letter_api.url, tmp_path, "--relay", key=RELAY_KEY)
    assert done.code == 0 and "no relay of this user and API key runs" in done.of("relay")["text"], done.output
    nowhere = examine(letter_api.url, tmp_path, "--relay", tmp_path / "none" / "r.sock", key=RELAY_KEY)
    assert nowhere.code == 1 and nowhere.of("relay")["level"] == "fail", nowhere.output


@pytest.mark.slow
def test_a_manager(directory: Directory, letter_api: IngestionServer, tmp_path: Path) -> None:
    arguments = ("--manager", directory.socket, "--authkey-file", directory.authkey_file)
    with directory.keep():
        done = examine(letter_api.url, tmp_path, *arguments, key=RELAY_KEY)
        assert done.code == 0 and "0 waiting, 0 lost" in done.of("manager")["text"], done.output
        assert "a manager sends" in done.of("mode")["text"]
        (tmp_path / "wrong").write_bytes(b"wrong")
        wrong = examine(letter_api.url, tmp_path, *arguments[:3], tmp_path / "wrong", key=RELAY_KEY)
        assert wrong.code == 1 and wrong.of("manager")["level"] == "fail", wrong.output
    gone = examine(letter_api.url, tmp_path, *arguments, key=RELAY_KEY)
    assert gone.code == 1 and gone.of("manager")["level"] == "fail", gone.output
    assert SECRET.decode() not in gone.output


# File systems that cannot be written to.


def mounting(place: str) -> list[str]:
    """A command that runs what follows with an empty, read-only file system at ``place``, which only it sees."""
    script = 'mount -t tmpfs -o ro,mode=700 none "$0" && exec "$@"'
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, place]


def can_mount() -> bool:
    try:
        return subprocess.run([*mounting("/mnt"), "true"], stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


needs_mounts = pytest.mark.skipif(not can_mount(), reason="a file system cannot be mounted here")


@needs_mounts
def test_a_spool_on_a_read_only_file_system(letter_api: IngestionServer, tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    before = mounting(str(tmp_path / "spool"))
    done = examine(letter_api.url, tmp_path, "--spool", tmp_path / "spool", before=before)
    assert done.code == 1 and "Read-only file system" in done.of("spool")["text"], done.output


@needs_mounts
@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no such directory here")
def test_no_shared_memory_for_semaphores(letter_api: IngestionServer, tmp_path: Path) -> None:
    done = examine(letter_api.url, tmp_path, before=mounting("/dev/shm"))
    assert done.of("semaphores")["level"] == "warn" and done.code == 0, done.output
    assert done.of("memory")["level"] == "ok"  # which needs no file
