"""How a file of a spool is created, reused, appended to by another process, and dropped at the bound."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from harness import DEADLINE, eventually, run
from programs import spools
from programs.spools import SMALL
from spool_dir import (
    MANY,
    NOWHERE,
    SpoolDir,
    as_another_user,
    change,
    claimed,
    descriptors,
    fill,
    in_child,
)

from letterapp import Letter, LetterError
from letterapp._storage import spool as spool_module
from letterapp._storage.ring import Ring

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]


# Creating a file.


def test_a_scan_never_sees_an_incomplete_file(spool_dir: SpoolDir, monkeypatch: pytest.MonkeyPatch) -> None:
    maker, other = spool_dir.spool(), spool_dir.spool()
    rename, seen = os.rename, []

    def scan_before_rename(old: str, new: str) -> None:
        seen.append(spool_dir.files())
        assert list(other.orphans()) == [] and in_child(another_scan) == 1
        rename(old, new)

    def another_scan() -> bool:
        monkeypatch.setattr(os, "rename", rename)
        return spool_dir.spool().claim() is not None

    monkeypatch.setattr(os, "rename", scan_before_rename)
    slot = claimed(maker)
    assert seen[0] == ["." + os.path.basename(slot.path)], "hidden, whole, and left alone because it is locked"
    assert os.path.exists(slot.path)


def test_an_incomplete_file_of_a_killed_process_is_removed(spool_dir: SpoolDir, tmp_path: Path) -> None:
    assert run(spools.killed_while_making, NOWHERE, tmp_path, spool_dir.path).code == -signal.SIGKILL
    (left,) = spool_dir.files()
    assert left.startswith(".letter-")
    assert spool_dir.recover(spool_dir.spool("other")) == []
    assert spool_dir.files() == [left], "a spool of another key leaves it alone"
    slot = claimed(spool_dir.spool())
    assert spool_dir.files() == [os.path.basename(slot.path)]


def test_an_incomplete_file_that_cannot_be_removed_does_not_stop_recovery() -> None:
    def job(home: str) -> None:
        spool_dir = SpoolDir(Path(home, "spool"))
        spool = spool_dir.spool()
        slot = claimed(spool)
        left = spool_dir.path / ("." + os.path.basename(slot.path))
        left.write_text("")
        left.chmod(0o000)
        assert claimed(spool) and left.exists() and spool_dir.reports == []

    as_another_user(job)


def test_a_file_that_a_scan_removed_while_incomplete_is_created_again(
    spool_dir: SpoolDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename
    created: list[str] = []

    def removed(old: str, new: str) -> None:
        created.append(old)
        if len(created) <= 2:
            os.unlink(old)
        rename(old, new)

    monkeypatch.setattr(os, "rename", removed)
    spool = spool_dir.spool()
    slot = claimed(spool)
    assert len(created) == 3 and spool_dir.files() == [os.path.basename(slot.path)]

    def always_removed(old: str, new: str) -> None:
        os.unlink(old)
        rename(old, new)

    monkeypatch.setattr(os, "rename", always_removed)
    before = descriptors()
    assert spool.claim() is None and spool_dir.reported_once("another program removes the files that are created there")
    assert descriptors() == before


def test_no_file_gets_the_number_of_a_closed_standard_descriptor(spool_dir: SpoolDir, tmp_path: Path) -> None:
    assert run(spools.without_standard_descriptors, NOWHERE, tmp_path, spool_dir.path).code == 0


# The bound, and files that are reused.


def test_an_empty_file_of_the_same_size_is_reused_and_others_are_removed(spool_dir: SpoolDir) -> None:
    slots = [claimed(spool_dir.spool()), claimed(spool_dir.spool()), claimed(spool_dir.spool(max_queue_events=30))]
    for slot in slots:
        slot._file.close()  # as if its process had been killed
        os.utime(slot.path, (1, 1))
    os.utime(slots[2].path, (0, 0))  # so it is looked at first
    again = claimed(spool_dir.spool())
    assert os.stat(again.path).st_mtime > 1, "it counts as new"
    assert again.path in (slots[0].path, slots[1].path) and len(fill(again, b"x")) == 1
    assert not os.path.exists(slots[2].path)
    assert spool_dir.recover(spool_dir.spool()) == []
    assert spool_dir.files() == [os.path.basename(again.path)], "looking for events removes the others"


def test_a_file_with_events_is_never_reused(spool_dir: SpoolDir) -> None:
    path = spool_dir.leave(b"x")
    assert claimed(spool_dir.spool()).path != path
    assert spool_dir.recover(spool_dir.spool()) == [[b"x"]]


@pytest.mark.parametrize("overflow", ["drop_newest", "block", "drop_oldest"])
def test_files_in_use_are_never_dropped_for_the_bound(overflow: str, spool_dir: SpoolDir) -> None:
    spool = spool_dir.spool(overflow=overflow, **spool_dir.room_for_two())
    slots = [claimed(spool), claimed(spool)]
    assert spool.claim() is None and spool.claim() is None
    assert spool_dir.reported_once("is full (spool_max_bytes=") and spool.losses() == []
    assert spool_dir.reports[0].cause == "degraded"
    slots[0].release()
    assert claimed(spool)


def test_events_of_ended_processes_are_kept_at_the_bound(spool_dir: SpoolDir) -> None:
    bound = spool_dir.room_for_two()
    spool_dir.leave(*MANY), spool_dir.leave(*MANY)
    spool = spool_dir.spool(**bound)
    assert spool.claim() is None and spool_dir.reported_once("is full")
    assert spool_dir.recover(spool) == [MANY, MANY]
    assert claimed(spool)


@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest"])
def test_at_the_bound_a_process_appends_to_the_emptiest_file_of_an_ended_one(
    overflow: str, spool_dir: SpoolDir
) -> None:
    bound: dict[str, Any] = {"overflow": overflow, **spool_dir.room_for_two()}
    other, emptiest = spool_dir.leave(b"a", b"b"), spool_dir.leave(b"c")
    slot, another = claimed(spool_dir.spool(**bound)), claimed(spool_dir.spool(**bound))
    assert (slot.path, another.path) == (emptiest, other)
    ring, wrong = Ring.recovered_from(slot)
    assert not wrong and ring.append(b"d")
    slot.release()
    assert spool_dir.recover(spool_dir.spool(**bound)) == [[b"c", b"d"]] and spool_dir.reports == []


def test_a_process_that_may_only_fork_claims_no_events_of_others(spool_dir: SpoolDir) -> None:
    bound = spool_dir.room_for_two()
    spool_dir.leave(b"a"), spool_dir.leave(b"b")
    settings = Letter("k", enabled=False, spool=spool_dir.path, **{**SMALL, **bound})._settings
    assert spool_module.Spool(settings, spool_dir.reports.append, lambda: True).claim() is None
    assert spool_dir.reported_once("events are kept in memory")


def test_a_process_that_appends_to_a_file_sends_its_events_and_sets_it_aside_if_damaged(
    spool_dir: SpoolDir, make: Any, errors: list[LetterError], letter_api: Any
) -> None:
    bound = spool_dir.room_for_two()["spool_max_bytes"] // 2
    event = b'{"type":"track","userId":"u","messageId":"%d","event":"E","timestamp":"2026-01-01","properties":{}}'
    damaged = spool_dir.leave(event % 1, event % 2, key="test-key")
    change(damaged, Path(damaged).read_bytes().index(event % 2), b"[")
    letter = make(spool=spool_dir.path, spool_max_bytes=bound, **SMALL)
    assert len(eventually(lambda: letter_api.events, bool)) == 1, "without any call"
    letter.track("u", "E")
    assert letter.close(DEADLINE) and letter.stats()["memory"] == "spool"
    assert len(letter_api.events) == 2 and [(error.cause, error.lost) for error in errors] == [("damaged", 1)]
    assert spool_dir.files() == [os.path.basename(damaged) + ".damaged"]


def test_one_process_for_each_job_does_not_fill_the_spool_while_the_api_is_down(
    spool_dir: SpoolDir, make: Any, errors: list[LetterError], letter_api: Any
) -> None:
    options = {"spool": spool_dir.path, "max_queue_bytes": 60_000, "max_queue_events": 300, "max_batch_bytes": 2000}
    options["spool_max_bytes"] = 3 * 75_000
    down = make(base_url=NOWHERE, flush_interval=1000, **options)  # its file is one of the three

    def job() -> bool:
        down.track("u", "E")
        os.kill(os.getpid(), signal.SIGKILL)
        return True

    for _ in range(16):
        assert in_child(job) == -signal.SIGKILL
    assert len(spool_dir.files()) == 3 and errors == []
    assert make(**options).flush(DEADLINE) and len(letter_api.events) == 16 and errors == []


def test_with_drop_oldest_the_oldest_file_of_an_ended_process_is_dropped(spool_dir: SpoolDir) -> None:
    bound = spool_dir.room_for_two()
    old, new = spool_dir.leave(*MANY), spool_dir.leave(*MANY)
    os.utime(old, (1, 1))
    spool = spool_dir.spool(overflow="drop_oldest", **bound)
    slot = claimed(spool)
    (error,) = spool.losses()
    assert (error.cause, error.lost, error._events) == ("overflow", 11, tuple(MANY)) and spool.losses() == []
    assert str(error).startswith(
        f"11 events of ended processes dropped (drop_oldest): the spool {spool_dir.path} was full (spool_max_bytes="
    )
    assert spool_dir.files() == sorted(map(os.path.basename, (new, slot.path))) and spool_dir.reports == []


def test_a_dropped_file_is_reported_as_overflow(make: Any, errors: list[LetterError], spool_dir: SpoolDir) -> None:
    bound = spool_dir.room_for_two()
    old, _ = spool_dir.leave(*MANY), spool_dir.leave(*MANY)
    os.utime(old, (1, 1))
    letter = make(api_key="k", spool=spool_dir.path, overflow="drop_oldest", flush_interval=1000, **bound, **SMALL)
    (error,) = errors
    assert (error.cause, error.lost) == ("overflow", 11) and "was full (spool_max_bytes=" in str(error)
    assert [item["messageId"] for item in error.events] == [str(number) for number in range(1, 12)]
    assert letter.stats()["lost"] == {"overflow": 11}


def test_a_damaged_file_that_is_dropped_is_set_aside(spool_dir: SpoolDir) -> None:
    bound = spool_dir.room_for_two()
    old, _ = spool_dir.leave(*MANY, b"last"), spool_dir.leave(*MANY)
    os.utime(old, (1, 1))
    change(old, Path(old).read_bytes().rindex(b"last"), b"L")
    os.utime(old, (1, 1))
    spool = spool_dir.spool(overflow="drop_oldest", **bound)
    assert claimed(spool)
    assert [(error.cause, error.lost, error._events) for error in spool.losses()] == [
        ("damaged", 1, ()),
        ("overflow", 11, tuple(MANY)),
    ]
    assert os.path.exists(old + ".damaged")
