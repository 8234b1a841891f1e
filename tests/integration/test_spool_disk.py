"""A spool on a disk that is full or limited, and `spool_sync`."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator

import pytest
from harness import DEADLINE, eventually, run
from programs import spools
from spool_dir import (
    NOWHERE,
    SpoolDir,
    claimed,
    in_child,
)

from letterapp import LetterError
from letterapp._storage.ring import Ring

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]

needs_mount = pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="needs to mount")


# A full disk.


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", str(place)], stderr=subprocess.PIPE
    )
    if mounted.returncode:
        pytest.skip("no mounting here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@needs_mount
def test_a_full_disk_is_reported_and_existing_files_can_still_be_filled(tiny_disk: Path) -> None:
    spool_dir = SpoolDir(tiny_disk / "spool")
    spool = spool_dir.spool()
    slots = []
    while True:
        slot = spool.claim()
        if slot is None:
            break
        slots.append(slot)
    assert len(slots) == 4 and spool.claim() is None
    assert spool_dir.reported_once("cannot be used: No space left on device; events are kept in memory")
    assert len(spool_dir.files()) == 4, "the incomplete file is gone"
    Path(tiny_disk, "rest").write_bytes(b"x" * os.statvfs(tiny_disk).f_bavail * 4096)
    for slot in slots:
        ring = Ring(slot)
        while ring.append(b"e" * 300):
            pass
        slot.release()
    assert len(spool_dir.recover(spool_dir.spool())) == 4, "a directory on a full disk is not refused"


@pytest.fixture
def copying_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that copies on write, so that changing an existing file needs space as well."""
    image, place = tmp_path / "image", tmp_path / "disk"
    place.mkdir()
    image.touch()
    os.truncate(image, 120 << 20)
    if not shutil.which("mkfs.btrfs"):
        pytest.skip("needs btrfs-progs")
    subprocess.run(["mkfs.btrfs", "-q", str(image)], check=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(place)], stderr=subprocess.PIPE).returncode:
        pytest.skip("no mounting here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@needs_mount
def test_a_start_on_a_full_copy_on_write_disk_kills_no_process(copying_disk: Path, make: Any, letter_api: Any) -> None:
    event = b'{"type":"track","userId":"left","messageId":"m","event":"E","timestamp":"t","properties":{}}'
    SpoolDir(copying_disk / "spool").leave(event, key="test-key")
    fill_up = copying_disk / "rest"
    with open(fill_up, "wb", buffering=0) as rest, contextlib.suppress(OSError):
        while True:
            rest.write(os.urandom(1 << 20))
    os.sync()

    def start() -> bool:
        letter = make(spool=copying_disk / "spool")
        letter.track("mine", "E")
        return letter.flush(DEADLINE)  # type: ignore[no-any-return]

    assert in_child(start) == 1, "no SIGBUS"
    assert [event["userId"] for event in letter_api.events] == ["mine"]
    os.unlink(fill_up)
    assert eventually(lambda: in_child(start) == 1 and "left" in [event["userId"] for event in letter_api.events], bool)


def test_limits_on_files_are_reported_and_leave_no_file_behind(spool_dir: SpoolDir, tmp_path: Path) -> None:
    finished = run(spools.limited_files, NOWHERE, tmp_path, spool_dir.path)
    spool, first, second, *errors = finished.output.splitlines()
    assert (spool, first, second) == ("spool", "shared", "shared")
    assert len(errors) == 3 and "File too large" in errors[0]
    assert "cannot be used: Too many open files" in errors[1] and "cannot be read: Too many open files" in errors[2]
    assert len(spool_dir.files()) == 1


# Syncing.


@pytest.mark.parametrize("spool_sync", [False, True])
def test_files_are_synced_only_if_asked(spool_sync: bool, spool_dir: SpoolDir, monkeypatch: Any) -> None:
    synced: list[str] = []
    path = os.path.realpath

    def sync(descriptor: int) -> None:
        synced.append(path(f"/dev/fd/{descriptor}") if sys.platform == "linux" else "")

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "fdatasync", sync, raising=False)
    slot = claimed(spool_dir.spool(spool_sync=spool_sync))
    hidden = os.path.join(spool_dir.path, "." + os.path.basename(slot.path))
    assert len(synced) == (3 if spool_sync else 0)
    if spool_sync and sys.platform == "linux":
        assert synced == [str(spool_dir.path.parent), hidden, str(spool_dir.path)]
    slot.sync()
    assert len(synced) == (4 if spool_sync else 0)


def test_a_call_returns_when_its_event_is_on_the_disk(make: Any, spool_dir: SpoolDir, monkeypatch: Any) -> None:
    letter = make(spool=spool_dir.path, spool_sync=True, flush_interval=1000)
    (name,) = spool_dir.files()
    seen: list[bool] = []

    def look(descriptor: int) -> None:
        seen.append(b'"serial":1' in Path(spool_dir.path, name).read_bytes())

    monkeypatch.setattr(os, "fsync", look)
    monkeypatch.setattr(os, "fdatasync", look, raising=False)
    letter.track("u", "Worked", {"serial": 1})
    assert seen == [True]
    letter.close(DEADLINE)
    letter.track("u", "Worked", {"serial": 2})  # refused; there is no file any more
    assert spool_dir.files() == []


def test_a_disk_that_cannot_sync_is_reported_once(spool_dir: SpoolDir, monkeypatch: pytest.MonkeyPatch) -> None:
    slot = claimed(spool_dir.spool(spool_sync=True))

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail, raising=False)
    slot.sync()
    slot.sync()
    assert spool_dir.reported_once("cannot be synced: Input/output error")


@needs_mount
def test_a_client_whose_disk_is_full_raises_nothing(tiny_disk: Path, make: Any, errors: list[LetterError]) -> None:
    os.mkdir(tiny_disk / "spool", 0o700)
    Path(tiny_disk, "rest").write_bytes(b"x" * os.statvfs(tiny_disk).f_bavail * 4096)
    letter = make(spool=tiny_disk / "spool")
    letter.track("u", "E", {"serial": 0})
    assert letter.close(DEADLINE) and letter.stats()["delivered"] == 1
    assert letter.stats()["memory"] == "shared" and os.listdir(tiny_disk / "spool") == []
    (error,) = errors
    assert error.cause == "degraded" and "No space left on device; events are kept in memory" in str(error)
