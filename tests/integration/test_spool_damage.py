"""Which files of a spool are trusted, and what happens to those that are damaged."""

from __future__ import annotations

import os
import sys
from binascii import crc32
from pathlib import Path
from typing import Any, Callable

import pytest
from harness import DEADLINE, eventually
from programs.spools import SMALL
from spool_dir import (
    MANY,
    NOBODY,
    SpoolDir,
    change,
    claimed,
    descriptors,
    in_child,
)

from letterapp import LetterError
from letterapp._storage import spool as spool_module
from letterapp._storage import spool_header
from letterapp._storage.ring import Ring
from letterapp._storage.spool import KEPT
from letterapp._storage.spool_header import HEADER, WORDS_AT

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


def test_files_of_ended_processes_are_recovered_oldest_first_and_removed(spool_dir: SpoolDir) -> None:
    paths = [spool_dir.leave(b"%d" % number) for number in range(3)]
    for age, path in enumerate(reversed(paths)):
        os.utime(path, (age, age))
    assert spool_dir.recover(spool_dir.spool()) == [[b"2"], [b"1"], [b"0"]]
    assert spool_dir.files() == [] and spool_dir.reports == []


def test_recovered_events_that_were_not_settled_can_be_recovered_again(spool_dir: SpoolDir) -> None:
    spool_dir.leave(b"a", b"b", b"c")
    (slot,) = spool_dir.spool().orphans()
    ring, _ = Ring.recovered_from(slot)
    ring.take(1, 1000), ring.settle()
    ring.take(1, 1000)  # it is being sent when the process ends
    slot.release()
    assert spool_dir.recover(spool_dir.spool()) == [[b"b", b"c"]]


def _as_link(path: str) -> str:
    os.rename(path, path + ".real")
    os.symlink(path + ".real", path)
    return "not a regular file"


def _with_second_name(path: str) -> str:
    os.link(path, path + ".second")
    return "more than one hard link"


def _open_to_others(path: str) -> str:
    os.chmod(path, 0o640)
    return "its permissions are too open, expected 0600"


def _of_another_user(path: str) -> str:
    os.chown(path, NOBODY, NOBODY)
    return "another user"


def _as_directory(path: str) -> str:
    os.unlink(path)
    os.mkdir(path)
    return "not a regular file"


def _as_pipe(path: str) -> str:
    os.unlink(path)
    os.mkfifo(path, 0o600)
    return "not a regular file"


def _newer(path: str) -> str:
    head = bytearray(Path(path).read_bytes()[: spool_header.HEAD.size])
    head[8] += 1
    change(path, 0, bytes(head) + spool_header.CHECKSUM.pack(crc32(head)))
    return "written by a newer version"


@pytest.mark.parametrize(
    "put",
    [
        _as_link,
        _with_second_name,
        _open_to_others,
        pytest.param(_of_another_user, marks=needs_root),
        _as_directory,
        _as_pipe,
        _newer,
    ],
)
def test_an_untrusted_file_is_not_opened_and_reported_once(put: Callable[[str], str], spool_dir: SpoolDir) -> None:
    path = spool_dir.leave(b"strange")
    why = put(path)
    before = os.lstat(path)
    good = spool_dir.leave(b"good", max_queue_events=21)
    spool_dir.reports.clear()
    spool = spool_dir.spool()
    assert spool_dir.recover(spool) == [[b"good"]] and not os.path.exists(good)
    assert spool_dir.recover(spool) == [] and claimed(spool) and spool_dir.reported_once(why)
    after = os.lstat(path)
    assert (before.st_ino, before.st_size, before.st_mtime) == (after.st_ino, after.st_size, after.st_mtime)
    assert (spool_dir.reports[0].cause, spool_dir.reports[0].lost) == ("degraded", 0)


def _foreign(path: str) -> str:
    Path(path).write_bytes(b"a diary, of some length" * 1000)
    return "not a spool file"


def _empty(path: str) -> str:
    os.truncate(path, 0)
    return "not a spool file"


def _cut_in_the_header(path: str) -> str:
    os.truncate(path, 100)
    return "it is truncated"


def _cut(path: str) -> str:
    os.truncate(path, os.path.getsize(path) - 1)
    return "bytes instead of"


def _longer(path: str) -> str:
    with open(path, "ab") as file:
        file.write(b"x")
    return "bytes instead of"


def _flipped(at: int) -> Callable[[str], str]:
    def flip(path: str) -> str:
        change(path, at, bytes([Path(path).read_bytes()[at] ^ 4]))
        return "not a spool file" if at < 8 else "checksum is wrong"

    return flip


@pytest.mark.parametrize(
    "damage", [_foreign, _empty, _cut_in_the_header, _cut, _longer, *map(_flipped, (0, 8, 12, 16, 24, 40, 65))]
)
def test_a_file_that_cannot_be_read_is_set_aside_and_reported_once(
    damage: Callable[[str], str], spool_dir: SpoolDir
) -> None:
    spool_dir.leave(b"good", max_queue_events=21)
    path = spool_dir.leave(b"corrupt")
    why = damage(path)
    content = Path(path).read_bytes()
    os.utime(path, (1, 1))  # so it is looked at first
    spool = spool_dir.spool()
    assert spool_dir.recover(spool) == [[b"good"]] and spool_dir.recover(spool) == []
    assert spool_dir.reported_once(why) and os.path.basename(path) in str(spool_dir.reports[0])
    assert (spool_dir.reports[0].cause, spool_dir.reports[0].lost) == ("damaged", 1)  # or more: unknown
    assert spool_dir.files() == [os.path.basename(path) + ".damaged"]
    assert Path(path + ".damaged").read_bytes() == content


def write_header(path: str, header: int, capacity: int, in_flight_size: int) -> None:
    """Give the file a header with these sizes and a valid checksum, and the length that they add up to."""
    magic, version, _, _, _, key = spool_header.HEAD.unpack_from(Path(path).read_bytes())
    head = spool_header.HEAD.pack(magic, version, header, capacity, in_flight_size, key)
    change(path, 0, head + spool_header.CHECKSUM.pack(crc32(head)))
    os.truncate(path, min(header + capacity + in_flight_size, 1 << 34))  # sparse


@pytest.mark.parametrize(
    "header, capacity, in_flight_size",
    [
        (HEADER, 0, 0),
        (HEADER, 0, 3616),
        (HEADER, 6352, 0),
        (HEADER, 6351, 3616),  # no multiples of the unit of records
        (HEADER, 6352, 3613),
        (HEADER, 1, 1),
        (0, 6352, 3616),
        (100, 6352, 3616),
        (HEADER + 1, 6352, 3616),
        (2**32 - 1, 6352, 3616),
        (HEADER, (1 << 34) + 8, 3616),
        (HEADER, 2**64 - 8, 2**64 - 8),
    ],
)
def test_odd_sizes_in_a_header_with_a_valid_checksum_are_damage(
    header: int,
    capacity: int,
    in_flight_size: int,
    spool_dir: SpoolDir,
    make: Any,
    errors: list[LetterError],
    letter_api: Any,
) -> None:
    path = spool_dir.leave(*MANY, key="test-key")
    write_header(path, header, capacity, in_flight_size)
    letter = make(spool=spool_dir.path, **SMALL)
    letter.track("u", "E")
    assert letter.flush(DEADLINE) and len(letter_api.events) == 1
    assert [(error.cause, error.lost) for error in errors] == [("damaged", 1)]
    assert "its header has impossible sizes" in str(errors[0])
    assert os.path.basename(path) + ".damaged" in spool_dir.files() and not os.path.exists(path)


def test_a_header_cannot_make_a_process_read_more_than_spool_max_bytes(spool_dir: SpoolDir) -> None:
    path = spool_dir.leave(b"x")
    capacity = in_flight_size = 1 << 33
    write_header(path, HEADER, capacity, in_flight_size - HEADER)
    change(path, WORDS_AT, (capacity >> 3).to_bytes(4, sys.byteorder) + bytes(4))
    change(path, HEADER, (0xFFFFFFF0).to_bytes(4, "little"))  # one record, whose checksum covers as much
    spool = spool_dir.spool()
    assert spool_dir.recover(spool) == []
    assert spool_dir.reported_once("more than spool_max_bytes=268,435,456 allows")
    assert os.path.getsize(path) == 1 << 34 and spool_dir.reports[0].cause == "degraded"


ODD_RECORDS = [
    bytes(16),  # of no size
    b"\xf0\xff\xff\xff" + bytes(12),
    b"\xff\xff\xff\xff" + bytes(12),  # "the next one is at the beginning"
    b"\0\0\0\x80" + bytes(12),
    b"\x08\0\0\0" + b"\xff" * 12,  # a wrong checksum
    *(
        len(odd).to_bytes(4, "little") + crc32(odd).to_bytes(4, "little") + odd
        for odd in (b"no JSON!", b"[1]", b"{}", b"null", b'{"a":1}\n{"b":2}', b"\xff\xfe{}", b"[" * 2000, b'{"x":NaN}')
    ),
]
ODD_WORDS = [(0xFFFFFFFF, 0xFFFFFFFF), (1, 5), (5, 1), (0x80000000, 0x80000000), (0, 0xFFFFFFFF)]
SMALLEST = [(HEADER, 8, 8), (HEADER, 16, 8)]  # for no event
ODD_SIZES = [(HEADER, 0, 8), (64, 6352, 3616), (HEADER, 1 << 40, 8)]


@pytest.mark.usefixtures("without_collection")
def test_a_directory_full_of_damaged_files_causes_only_reports(
    spool_dir: SpoolDir, make: Any, errors: list[LetterError], letter_api: Any
) -> None:
    good: list[str] = []

    def leave(*more: bytes) -> str:
        events = []
        for _ in range(2):
            good.append(f"m{len(good)}")
            event = '{"type":"track","userId":"left","messageId":"%s","event":"E","timestamp":"t","properties":{}}'
            events.append((event % good[-1]).encode())
        return spool_dir.leave(*events, *more, key="test-key")

    # All files are created before any is damaged, since creating one includes a look at the others.
    damaged = [(leave(b"odd" * 700), record) for record in ODD_RECORDS]
    leave()
    kinds = (_as_link, _with_second_name, _open_to_others, _as_directory, _as_pipe)
    count = len(ODD_WORDS + SMALLEST + ODD_SIZES) + 3 + len(kinds)
    paths = iter([spool_dir.leave(*MANY, key="test-key") for _ in range(count)])
    for path, record in damaged:
        change(path, Path(path).read_bytes().index(b"oddodd") - 8, record)
    for word in ODD_WORDS:
        change(next(paths), WORDS_AT, (word[0] << 32 | word[1]).to_bytes(8, sys.byteorder))
    for sizes in SMALLEST:
        write_header(next(paths), *sizes)
    unreadable = [next(paths) for _ in range(len(ODD_SIZES) + 3)]
    for path, sizes in zip(unreadable, ODD_SIZES):
        write_header(path, *sizes)
    for path, length in zip(unreadable[len(ODD_SIZES) :], (0, 100, HEADER)):
        os.truncate(path, length)
    for put in kinds:
        put(next(paths))
    for name in (b"\xff\xfe", b"", b"x" * 100):
        Path(os.path.join(spool_dir.path, os.fsdecode(b"letter-%s.ring" % name))).write_bytes(b"some file")

    letter = make(spool=spool_dir.path)
    letter.track("mine", "E")
    assert letter.flush(DEADLINE) and letter.stats()["memory"] == "spool"
    assert sorted(event["messageId"] for event in letter_api.events if event["userId"] == "left") == sorted(good)
    assert [event["userId"] for event in letter_api.events].count("mine") == 1
    assert {error.cause for error in errors} == {"damaged", "rejected", "degraded"}
    for path in unreadable:
        assert [os.path.basename(path) in str(error) for error in errors if error.cause == "damaged"].count(True) == 1
    for error in errors:
        assert str(error).isprintable() and all(isinstance(event, dict) for event in error.events)

    before = len([error for error in errors if error.cause != "degraded"])
    again = make(spool=spool_dir.path)
    again.track("mine", "E")
    assert again.flush(DEADLINE) and again.stats()["adopted"] == 0
    assert len([error for error in errors if error.cause != "degraded"]) == before, "damage is reported once"


def test_many_damaged_files_cost_only_a_few_directory_listings(spool_dir: SpoolDir, monkeypatch: Any) -> None:
    spool = spool_dir.spool()
    for _ in range(30):
        corrupt = spool_dir.leave(b"corrupt")
        change(corrupt, Path(corrupt).read_bytes().index(b"corrupt"), b"C")
    for number in range(100):
        path = spool_dir.path / f"{spool._prefix}{number:016x}.ring"
        path.write_bytes(b"x" * 16)
        path.chmod(0o600)
    listings: list[Any] = []
    listdir = os.listdir

    def count(path: Any) -> list[str]:
        listings.append(path)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", count)
    assert spool_dir.recover(spool) == [[]] * 30
    assert len(listings) <= 4
    assert len(spool_dir.files()) == KEPT and all(name.endswith(".damaged") for name in spool_dir.files())
    assert [error.lost for error in spool_dir.reports] == [1] * KEPT + [100 - KEPT]
    assert {error.cause for error in spool_dir.reports} == {"damaged"}


def test_an_empty_file_that_was_truncated_is_replaced(spool_dir: SpoolDir, make: Any) -> None:
    letter = make(spool=spool_dir.path, flush_interval=1000)
    (name,) = spool_dir.files()
    os.truncate(spool_dir.path / name, 0)

    def use() -> object:
        letter.track("u", "E")
        return letter.flush(DEADLINE)

    assert in_child(use) in (0, 1)  # and no SIGBUS
    letter.track("u", "E")
    assert letter.flush(DEADLINE) and letter.stats()["delivered"] == 1
    assert name + ".damaged" in spool_dir.files()


def test_a_flipped_bit_in_an_event_ends_the_ring_there_and_the_file_is_kept(spool_dir: SpoolDir) -> None:
    path = spool_dir.leave(b"first", b"second", b"third")
    at = Path(path).read_bytes().index(b"second")
    change(path, at, b"S")
    assert spool_dir.recover(spool_dir.spool()) == [[b"first"]]
    assert spool_dir.files() == [os.path.basename(path) + ".damaged"]


def test_damage_is_recorded_even_if_the_process_that_found_it_is_killed(spool_dir: SpoolDir) -> None:
    path = spool_dir.leave(b"first", b"second")
    change(path, Path(path).read_bytes().index(b"second"), b"S")
    (slot,) = spool_dir.spool().orphans()
    ring, wrong = Ring.recovered_from(slot)
    assert wrong
    slot.mark_corrupt()
    ring.take(10, 1000)  # from now on the state words cover only the first
    slot.release()
    assert spool_dir.files() == [os.path.basename(path)]
    assert spool_dir.recover(spool_dir.spool()) == [[b"first"]]
    assert spool_dir.files() == [os.path.basename(path) + ".damaged"]


@pytest.mark.parametrize("word", [0, 1])
def test_a_word_that_points_outside_the_ring_is_damage(word: int, spool_dir: SpoolDir) -> None:
    path = spool_dir.leave(b"first")
    change(path, WORDS_AT + 8 * word, b"\xff" * 4 + b"\x7f" * 4)
    assert spool_dir.recover(spool_dir.spool()) == ([[]] if word == 0 else [[b"first"]])
    assert spool_dir.files() == [os.path.basename(path) + ".damaged"]


def test_an_empty_file_that_is_corrupt_is_not_reused(spool_dir: SpoolDir) -> None:
    slot = claimed(spool_dir.spool())
    slot.mark_corrupt()
    os.rename(slot.path, slot.path + ".away")  # so that its release leaves it
    slot.release()
    os.rename(slot.path + ".away", slot.path)
    assert claimed(spool_dir.spool()).path != slot.path
    assert os.path.basename(slot.path) + ".damaged" in spool_dir.files()


def _await_a_tick(clock: Path) -> None:
    """Wait until a file gets a later time: kernels before 6.13 date files by a clock that ticks every few ms."""

    def now() -> int:
        clock.touch()
        return clock.stat().st_ctime_ns

    before = now()
    assert eventually(now, lambda time: time > before) > before


def test_no_damaged_file_is_overwritten_and_the_latest_few_are_kept(spool_dir: SpoolDir, tmp_path: Path) -> None:
    spool = spool_dir.spool()
    first = spool_dir.leave(b"x")
    Path(first + ".damaged").write_text("an older one")
    _cut(first)
    assert spool_dir.recover(spool) == []
    assert Path(first + ".damaged").read_text() == "an older one" and len(spool_dir.files()) == 2
    for number in range(KEPT):
        _await_a_tick(tmp_path / f"{number}")
        path = spool_dir.leave(b"x")
        _cut(path)
        assert spool_dir.recover(spool) == []
    assert len(spool_dir.files()) == KEPT and os.path.basename(path) + ".damaged" in spool_dir.files()
    assert not os.path.exists(first + ".damaged")


def test_a_file_that_cannot_be_set_aside_does_not_stop_recovery(
    spool_dir: SpoolDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool_dir.leave(b"good", max_queue_events=21)
    path = spool_dir.leave(b"x")
    _cut(path)
    os.utime(path, (1, 1))

    def rename(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "rename", rename)
    spool = spool_dir.spool()
    assert spool_dir.recover(spool) == [[b"good"]] and spool_dir.recover(spool) == []
    assert spool_dir.reported_once("bytes instead of")


def test_a_file_that_is_truncated_while_it_is_opened_is_reported(
    spool_dir: SpoolDir, make: Any, errors: list[LetterError], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, spool = spool_dir.leave(b"x", key="test-key"), spool_dir.spool("test-key")
    sizes_of = spool_module.Spool._sizes_of

    def cut(spool: Any, file: Any) -> Any:
        sizes = sizes_of(spool, file)
        os.truncate(path, HEADER)
        return sizes

    monkeypatch.setattr(spool_module.Spool, "_sizes_of", cut)
    size, before = os.path.getsize(path), descriptors()
    assert spool_dir.recover(spool) == [] and descriptors() == before
    assert spool_dir.reported_once("cannot be recovered: mmap length is greater than file size")
    os.truncate(path, size)
    letter = make(spool=spool_dir.path)
    assert letter.stats()["memory"] == "spool" and [error.cause for error in errors] == ["degraded"]
