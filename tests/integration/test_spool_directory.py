"""The directory of a spool: which ones are accepted, the names and modes of its files, and the option for its bound."""

from __future__ import annotations

import os
import pickle
import re
import stat
from pathlib import Path
from typing import Any, Callable

import pytest
from harness import DEADLINE
from spool_dir import (
    NOBODY,
    NOWHERE,
    SpoolDir,
    as_another_user,
    claimed,
    fill,
    in_child,
)

from letterapp import Letter, LetterError
from letterapp._storage import spool as spool_module
from letterapp._storage.spool_header import HEADER

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]

NAME = re.compile(r"letter-[0-9a-f]{16}-[0-9a-f]{16}\.ring")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


def test_a_file_is_private_to_this_user_and_does_not_reveal_the_key(spool_dir: SpoolDir) -> None:
    before = os.umask(0)
    try:
        slot = claimed(spool_dir.spool("secret-key"))
    finally:
        os.umask(before)
    fill(slot, b"an event")
    (name,) = spool_dir.files()
    assert NAME.fullmatch(name)
    assert stat.S_IMODE(os.stat(slot.path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(spool_dir.path).st_mode) == 0o700
    content = Path(slot.path).read_bytes()
    assert b"an event" in content and b"secret" not in content
    assert len(content) == HEADER + slot.capacity + slot.in_flight_size


def test_disk_space_is_allocated_when_the_file_is_created(spool_dir: SpoolDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    for allocate in (getattr(os, "posix_fallocate", unable), unable):
        monkeypatch.setattr(os, "posix_fallocate", allocate, raising=False)
        slot = claimed(spool_dir.spool(max_queue_bytes=3_000_000))
        status = os.stat(slot.path)
        assert status.st_size == HEADER + slot.capacity + slot.in_flight_size <= status.st_blocks * 512


def test_each_key_has_its_own_files(spool_dir: SpoolDir) -> None:
    spool_dir.leave(b"one's", key="one")
    assert spool_dir.recover(spool_dir.spool("other")) == []
    assert spool_dir.recover(spool_dir.spool("one")) == [[b"one's"]]


def test_a_file_renamed_to_another_keys_name_is_not_touched(spool_dir: SpoolDir) -> None:
    ours, theirs = spool_dir.leave(b"x"), spool_dir.leave(b"secret", key="other")
    os.rename(theirs, ours)
    spool_dir.reports.clear()
    spool = spool_dir.spool()
    assert spool_dir.recover(spool) == [] == spool_dir.recover(spool)
    assert spool_dir.reported_once("belongs to another API key") and os.path.exists(ours)


def test_events_of_another_key_are_reported_once(spool_dir: SpoolDir, errors: list[LetterError], make: Any) -> None:
    left = [spool_dir.leave(b"x", key="old"), spool_dir.leave(b"x", key="old"), spool_dir.leave(b"x", key="older")]
    os.utime(left[1], (86_400 * 365, 86_400 * 365))
    empty = claimed(spool_dir.spool("emptied"))
    empty._file.close()  # as if its process had been killed
    in_use = claimed(spool_dir.spool("used"))
    fill(in_use, b"x")
    Path(spool_dir.path, "letter-notes.ring").write_text("a diary of some length" * 100)
    before = spool_dir.files()
    size = sum(map(os.path.getsize, left))
    letter = make(api_key="new", spool=spool_dir.path, flush_interval=1000)
    (error,) = errors
    assert (error.cause, error.lost, error.events) == ("degraded", 0, [])
    names = sorted({os.path.basename(path)[: len("letter-") + 16] + "-*" for path in left})
    assert f"3 files of {size:,} bytes, the oldest of 1971-01-01" in str(error) and ", ".join(names) in str(error)
    assert letter.flush(DEADLINE) and in_child(lambda: letter.stats()["memory"] != "spool") == 0
    assert len(errors) == 1 and set(before) <= set(spool_dir.files())
    in_use.release()


@pytest.mark.parametrize("path", ["", 5, "a\0b", ["x"]])
def test_a_spool_must_be_a_path(path: Any) -> None:
    with pytest.raises(LetterError, match="spool must be the path of a directory"):
        Letter("k", spool=path)


def test_a_relative_path_is_resolved_when_the_client_is_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("here", Path("here"), b"here"):
        settings = Letter("k", enabled=False, spool=path)._settings  # type: ignore[arg-type]
        assert settings.spool == str(tmp_path / "here")
        assert pickle.loads(pickle.dumps(settings)).spool == settings.spool
    assert not (tmp_path / "here").exists(), "a client that is not enabled touches nothing"


def _missing(path: Path) -> Path:
    return path / "missing" / "spool"


def _file(path: Path) -> Path:
    (path / "file").write_text("")
    return path / "file"


def _link(path: Path) -> Path:
    (path / "real").mkdir(0o700)
    (path / "link").symlink_to(path / "real")
    return path / "link"


def _dangling(path: Path) -> Path:
    (path / "link").symlink_to(path / "nowhere")
    return path / "link"


def _open_to_others(path: Path) -> Path:
    (path / "open").mkdir()
    (path / "open").chmod(0o750)
    return path / "open"


@pytest.mark.parametrize(
    "put, problem",
    [
        (_missing, "cannot be created: No such file or directory. The parent directory must exist"),
        (_file, "must be a directory, and not a symbolic link"),
        (_link, "must be a directory, and not a symbolic link"),
        (_dangling, "must be a directory, and not a symbolic link"),
        (_open_to_others, "its permissions are too open"),
    ],
)
def test_an_unusable_directory_is_an_error_at_construction(
    put: Callable[[Path], Path], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(LetterError, match=problem):
        Letter("k", NOWHERE, spool=put(tmp_path))


@needs_root
def test_another_users_directory_is_an_error_at_construction(spool_dir: SpoolDir) -> None:
    spool_dir.path.mkdir(0o700)
    os.chown(spool_dir.path, NOBODY, NOBODY)
    with pytest.raises(LetterError, match="belongs to user 65534, not to this user"):
        spool_dir.spool()


def test_a_directory_that_cannot_be_written_is_an_error_at_construction() -> None:
    def job(home: str) -> None:
        os.mkdir(home + "/spool", 0o500)
        with pytest.raises(LetterError, match="cannot be used: Permission denied"):
            SpoolDir(Path(home, "spool")).spool()
        with pytest.raises(LetterError, match="cannot be created: Permission denied"):
            SpoolDir(Path(home, "spool", "below")).spool()

    as_another_user(job)


def test_a_directory_that_becomes_unwritable_is_reported_and_no_event_is_lost() -> None:
    def job(home: str) -> None:
        spool_dir = SpoolDir(Path(home, "spool"))
        spool = spool_dir.spool()
        os.chmod(home + "/spool", 0o500)
        assert spool.claim() is None and spool.claim() is None
        assert spool_dir.reported_once("cannot be used: Permission denied; events are kept in memory")

    as_another_user(job)


@pytest.mark.parametrize("put", [_missing, _file, _link, _open_to_others])
def test_a_directory_that_is_replaced_is_reported_and_no_event_is_lost(
    put: Callable[[Path], Path], spool_dir: SpoolDir, tmp_path: Path
) -> None:
    spool = spool_dir.spool()
    slot = claimed(spool)
    spool_dir.path.rename(tmp_path / "moved")
    if put is not _missing:
        put(tmp_path).rename(spool_dir.path)
    assert spool.claim() is None and spool.claim() is None
    assert list(spool.orphans()) == []
    assert sorted("cannot be used" in str(report) for report in spool_dir.reports) == [False, True]
    assert fill(slot, b"still").pop() == b"still"
    slot.release()


def test_too_small_or_too_large_a_bound_is_an_error_at_construction(spool_dir: SpoolDir) -> None:
    with pytest.raises(LetterError, match="spool_max_bytes must be 5,360,048 or more"):
        Letter("k", NOWHERE, spool=spool_dir.path, spool_max_bytes=5_000_000)
    with pytest.raises(LetterError, match="max_queue_bytes and max_queue_events are too large for a spool"):
        Letter("k", NOWHERE, spool=spool_dir.path, max_queue_bytes=1 << 40)
    with pytest.raises(LetterError, match="spool_max_bytes must be a whole number"):
        Letter("k", NOWHERE, spool=spool_dir.path, spool_max_bytes=0)
    with pytest.raises(LetterError, match="spool_sync must be True or False"):
        Letter("k", NOWHERE, spool=spool_dir.path, spool_sync="yes")  # type: ignore[arg-type]


def test_a_spool_is_an_error_where_there_are_no_file_locks(
    spool_dir: SpoolDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "POSSIBLE", False)
    with pytest.raises(LetterError, match="spool needs POSIX file locks"):
        spool_dir.spool()
