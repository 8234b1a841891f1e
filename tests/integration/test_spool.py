"""Files of a spool: the names, which of them are believed, the directory, the bound, the disk.

Whose they are, and what is sent after all were killed, is in `test_spool_processes`.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from binascii import crc32
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from harness import DEADLINE, eventually, run
from spooled import NOWHERE, SMALL, Bench, change, claimed, descriptors, fill, in_child

from letterapp import Letter, LetterError
from letterapp._storage import spool as spool_module
from letterapp._storage.ring import Ring
from letterapp._storage.spool import HEADER, KEPT, WORDS_AT

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]

NAME = re.compile(r"letter-[0-9a-f]{16}-[0-9a-f]{16}\.ring")
IS_ROOT = os.geteuid() == 0
NOBODY = 65534
# So many, for a queue as `SMALL`, that no other process goes on behind them.
MANY = [b'{"messageId":"%d","rest":"%s"}' % (number, b"x" * 50) for number in range(1, 12)]
needs_root = pytest.mark.skipif(not IS_ROOT, reason="only root can be another user")


# Names and modes.


def test_a_file_is_this_user_s_alone_and_its_name_and_content_do_not_show_the_key(bench: Bench) -> None:
    before = os.umask(0)
    try:
        slot = claimed(bench.spool("secret-key"))
    finally:
        os.umask(before)
    fill(slot, b"an event")
    (name,) = bench.files()
    assert NAME.fullmatch(name)
    assert stat.S_IMODE(os.stat(slot.path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(bench.directory).st_mode) == 0o700
    content = Path(slot.path).read_bytes()
    assert b"an event" in content and b"secret" not in content
    assert len(content) == HEADER + slot.room + slot.hand


def test_all_the_disk_s_room_is_taken_when_the_file_is_made(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    for allocate in (getattr(os, "posix_fallocate", unable), unable):
        monkeypatch.setattr(os, "posix_fallocate", allocate, raising=False)
        slot = claimed(bench.spool(max_queue_bytes=3_000_000))
        status = os.stat(slot.path)
        assert status.st_size == HEADER + slot.room + slot.hand <= status.st_blocks * 512


def test_a_key_has_files_of_its_own(bench: Bench) -> None:
    bench.left(b"one's", key="one")
    assert bench.adopt(bench.spool("other")) == []
    assert bench.adopt(bench.spool("one")) == [[b"one's"]]


def test_a_file_that_was_renamed_to_another_key_s_name_is_left_alone(bench: Bench) -> None:
    ours, theirs = bench.left(b"x"), bench.left(b"secret", key="other")
    os.rename(theirs, ours)
    bench.reports.clear()
    spool = bench.spool()
    assert bench.adopt(spool) == [] == bench.adopt(spool)
    assert bench.said("of another key") and os.path.exists(ours)


def test_what_another_key_left_is_reported_once(bench: Bench, errors: list[LetterError], make: Any) -> None:
    left = [bench.left(b"x", key="old"), bench.left(b"x", key="old"), bench.left(b"x", key="older")]
    os.utime(left[1], (86_400 * 365, 86_400 * 365))
    empty = claimed(bench.spool("emptied"))
    empty._file.close()  # as a process does that is killed
    in_use = claimed(bench.spool("used"))
    fill(in_use, b"x")
    Path(bench.directory, "letter-notes.ring").write_text("a diary of some length" * 100)
    before = bench.files()
    size = sum(map(os.path.getsize, left))
    letter = make(api_key="new", spool=bench.directory, flush_interval=1000)
    (error,) = errors
    assert (error.cause, error.lost, error.events) == ("degraded", 0, [])
    names = sorted({os.path.basename(path)[: len("letter-") + 16] + "-*" for path in left})
    assert f"3 files of {size:,} bytes, the oldest of 1971-01-01" in str(error) and ", ".join(names) in str(error)
    assert letter.flush(DEADLINE) and in_child(lambda: letter.stats()["memory"] != "spool") == 0
    assert len(errors) == 1 and set(before) <= set(bench.files())
    in_use.release()


# The directory.


@pytest.mark.parametrize("path", ["", 5, "a\0b", ["x"]])
def test_a_spool_must_be_a_path(path: Any) -> None:
    with pytest.raises(LetterError, match="spool must be the path of a directory"):
        Letter("k", spool=path)


def test_a_path_may_be_relative_and_is_meant_where_the_client_was_made(
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


def _client(path: Path) -> Path:
    (path / "real").mkdir(0o700)
    (path / "link").symlink_to(path / "real")
    return path / "link"


def _dangling(path: Path) -> Path:
    (path / "link").symlink_to(path / "nowhere")
    return path / "link"


def _open(path: Path) -> Path:
    (path / "open").mkdir()
    (path / "open").chmod(0o750)
    return path / "open"


@pytest.mark.parametrize(
    "lay, problem",
    [
        (_missing, "cannot be made: No such file or directory. What it lies in must exist"),
        (_file, "must be a directory, and not a link to one"),
        (_client, "must be a directory, and not a link to one"),
        (_dangling, "must be a directory, and not a link to one"),
        (_open, "others may use it: chmod it to 700"),
    ],
)
def test_a_directory_that_will_not_do_is_an_error_at_construction(
    lay: Callable[[Path], Path], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(LetterError, match=problem):
        Letter("k", NOWHERE, spool=lay(tmp_path))


@needs_root
def test_another_user_s_directory_is_an_error_at_construction(bench: Bench) -> None:
    bench.directory.mkdir(0o700)
    os.chown(bench.directory, NOBODY, NOBODY)
    with pytest.raises(LetterError, match="belongs to user 65534: name a directory of this user's own"):
        bench.spool()


def as_a_user(job: Callable[[str], object]) -> None:
    """Do ``job`` in a directory of a user whom modes hold back."""
    with tempfile.TemporaryDirectory() as home:
        if IS_ROOT:
            os.chown(home, NOBODY, NOBODY)

        def child() -> bool:
            if IS_ROOT:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            job(home)
            return False

        assert in_child(child) == 0


def test_a_directory_that_cannot_be_written_is_an_error_at_construction() -> None:
    def job(home: str) -> None:
        os.mkdir(home + "/spool", 0o500)
        with pytest.raises(LetterError, match="cannot be used: Permission denied"):
            Bench(Path(home, "spool")).spool()
        with pytest.raises(LetterError, match="cannot be made: Permission denied"):
            Bench(Path(home, "spool", "below")).spool()

    as_a_user(job)


def test_a_directory_that_becomes_unwritable_costs_a_report_and_no_event() -> None:
    def job(home: str) -> None:
        bench = Bench(Path(home, "spool"))
        spool = bench.spool()
        os.chmod(home + "/spool", 0o500)
        assert spool.claim() is None and spool.claim() is None
        assert bench.said("cannot be used: Permission denied; events lie in memory instead")

    as_a_user(job)


@pytest.mark.parametrize("lay", [_missing, _file, _client, _open])
def test_a_directory_that_changes_later_costs_a_report_and_no_event(
    lay: Callable[[Path], Path], bench: Bench, tmp_path: Path
) -> None:
    spool = bench.spool()
    slot = claimed(spool)
    bench.directory.rename(tmp_path / "moved")
    if lay is not _missing:
        lay(tmp_path).rename(bench.directory)
    assert spool.claim() is None and spool.claim() is None
    assert list(spool.orphans()) == []
    assert sorted("cannot be used" in str(report) for report in bench.reports) == [False, True]
    assert fill(slot, b"still").pop() == b"still"
    slot.release()


def test_too_small_or_too_large_a_bound_is_an_error_at_construction(bench: Bench) -> None:
    with pytest.raises(LetterError, match="spool_max_bytes must be 5,360,048 or more"):
        Letter("k", NOWHERE, spool=bench.directory, spool_max_bytes=5_000_000)
    with pytest.raises(LetterError, match="max_queue_bytes and max_queue_events are too large for a spool"):
        Letter("k", NOWHERE, spool=bench.directory, max_queue_bytes=1 << 40)
    with pytest.raises(LetterError, match="spool_max_bytes must be a whole number"):
        Letter("k", NOWHERE, spool=bench.directory, spool_max_bytes=0)
    with pytest.raises(LetterError, match="spool_sync must be True or False"):
        Letter("k", NOWHERE, spool=bench.directory, spool_sync="yes")  # type: ignore[arg-type]


def test_where_there_are_no_locks_a_spool_is_an_error(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "POSSIBLE", False)
    with pytest.raises(LetterError, match="spool needs the file locks of POSIX"):
        bench.spool()


# What is believed.


def test_what_an_ended_process_left_is_taken_over_the_oldest_first_and_its_file_removed(bench: Bench) -> None:
    paths = [bench.left(b"%d" % number) for number in range(3)]
    for age, path in enumerate(reversed(paths)):
        os.utime(path, (age, age))
    assert bench.adopt(bench.spool()) == [[b"2"], [b"1"], [b"0"]]
    assert bench.files() == [] and bench.reports == []


def test_what_was_taken_over_and_not_settled_can_be_taken_over_again(bench: Bench) -> None:
    bench.left(b"a", b"b", b"c")
    (slot,) = bench.spool().orphans()
    ring, _ = Ring.recovered_from(slot)
    ring.take(1, 1000), ring.settle()
    ring.take(1, 1000)  # and on the wire when it ends
    slot.release()
    assert bench.adopt(bench.spool()) == [[b"b", b"c"]]


def _as_link(path: str) -> str:
    os.rename(path, path + ".real")
    os.symlink(path + ".real", path)
    return "no file, or a link"


def _with_second_name(path: str) -> str:
    os.link(path, path + ".second")
    return "second name"


def _open_to_others(path: str) -> str:
    os.chmod(path, 0o640)
    return "others may use it"


def _another_user_s(path: str) -> str:
    os.chown(path, NOBODY, NOBODY)
    return "another user"


def _as_directory(path: str) -> str:
    os.unlink(path)
    os.mkdir(path)
    return "no file"


def _as_pipe(path: str) -> str:
    os.unlink(path)
    os.mkfifo(path, 0o600)
    return "no file"


def _newer(path: str) -> str:
    head = bytearray(Path(path).read_bytes()[: spool_module._head.size])
    head[8] += 1
    change(path, 0, bytes(head) + spool_module._checksum.pack(crc32(head)))
    return "newer version"


@pytest.mark.parametrize(
    "lay",
    [
        _as_link,
        _with_second_name,
        _open_to_others,
        pytest.param(_another_user_s, marks=needs_root),
        _as_directory,
        _as_pipe,
        _newer,
    ],
)
def test_what_others_could_have_laid_there_is_left_alone_and_reported_once(
    lay: Callable[[str], str], bench: Bench
) -> None:
    path = bench.left(b"strange")
    why = lay(path)
    before = os.lstat(path)
    good = bench.left(b"good", max_queue_events=21)
    bench.reports.clear()
    spool = bench.spool()
    assert bench.adopt(spool) == [[b"good"]] and not os.path.exists(good)
    assert bench.adopt(spool) == [] and claimed(spool) and bench.said(why)
    after = os.lstat(path)
    assert (before.st_ino, before.st_size, before.st_mtime) == (after.st_ino, after.st_size, after.st_mtime)
    assert (bench.reports[0].cause, bench.reports[0].lost) == ("degraded", 0)


def _foreign(path: str) -> str:
    Path(path).write_bytes(b"a diary, of some length" * 1000)
    return "not a spool's"


def _empty(path: str) -> str:
    os.truncate(path, 0)
    return "not a spool's"


def _cut_in_the_header(path: str) -> str:
    os.truncate(path, 100)
    return "cut short"


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
        return "not a spool's" if at < 8 else "checksum is wrong"

    return flip


@pytest.mark.parametrize(
    "mark_corrupt", [_foreign, _empty, _cut_in_the_header, _cut, _longer, *map(_flipped, (0, 8, 12, 16, 24, 40, 65))]
)
def test_a_file_that_cannot_be_read_is_set_aside_and_reported_once(
    mark_corrupt: Callable[[str], str], bench: Bench
) -> None:
    bench.left(b"good", max_queue_events=21)
    path = bench.left(b"spoilt")
    why = mark_corrupt(path)
    content = Path(path).read_bytes()
    os.utime(path, (1, 1))  # so it is looked at first
    spool = bench.spool()
    assert bench.adopt(spool) == [[b"good"]] and bench.adopt(spool) == []
    assert bench.said(why) and os.path.basename(path) in str(bench.reports[0])
    assert (bench.reports[0].cause, bench.reports[0].lost) == ("damaged", 1)  # or more: nobody can know
    assert bench.files() == [os.path.basename(path) + ".damaged"]
    assert Path(path + ".damaged").read_bytes() == content


def lay_header(path: str, header: int, room: int, hand: int) -> None:
    """Have the file claim these sizes, with a checksum that is right, and be as long as they say."""
    magic, version, _, _, _, key = spool_module._head.unpack_from(Path(path).read_bytes())
    head = spool_module._head.pack(magic, version, header, room, hand, key)
    change(path, 0, head + spool_module._checksum.pack(crc32(head)))
    os.truncate(path, min(header + room + hand, 1 << 34))  # sparse


@pytest.mark.parametrize(
    "header, room, hand",
    [
        (HEADER, 0, 0),
        (HEADER, 0, 3616),
        (HEADER, 6352, 0),
        (HEADER, 6351, 3616),  # no multiples of a record's
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
def test_a_header_of_odd_sizes_whose_checksum_is_right_is_damage(
    header: int, room: int, hand: int, bench: Bench, make: Any, errors: list[LetterError], letter_api: Any
) -> None:
    path = bench.left(*MANY, key="test-key")
    lay_header(path, header, room, hand)
    letter = make(spool=bench.directory, **SMALL)
    letter.track("u", "E")
    assert letter.flush(DEADLINE) and len(letter_api.events) == 1
    assert [(error.cause, error.lost) for error in errors] == [("damaged", 1)]
    assert "its header claims" in str(errors[0])
    assert os.path.basename(path) + ".damaged" in bench.files() and not os.path.exists(path)


def test_a_header_cannot_have_more_read_than_the_spool_may_hold(bench: Bench) -> None:
    path = bench.left(b"x")
    room = hand = 1 << 33
    lay_header(path, HEADER, room, hand - HEADER)
    change(path, WORDS_AT, (room >> 3).to_bytes(4, sys.byteorder) + bytes(4))
    change(path, HEADER, (0xFFFFFFF0).to_bytes(4, "little"))  # one record, whose checksum covers as much
    spool = bench.spool()
    assert bench.adopt(spool) == [] and bench.said("more than all files may have (spool_max_bytes=268,435,456)")
    assert os.path.getsize(path) == 1 << 34 and bench.reports[0].cause == "degraded"


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


def test_a_directory_full_of_damage_costs_a_plain_client_nothing_but_reports(
    bench: Bench, make: Any, errors: list[LetterError], letter_api: Any
) -> None:
    good: list[str] = []

    def left(*more: bytes) -> str:
        events = []
        for _ in range(2):
            good.append(f"m{len(good)}")
            event = '{"type":"track","userId":"left","messageId":"%s","event":"E","timestamp":"t","properties":{}}'
            events.append((event % good[-1]).encode())
        return bench.left(*events, *more, key="test-key")

    # All before any is spoilt: who makes a file looks at the others.
    spoilt = [(left(b"odd" * 700), record) for record in ODD_RECORDS]
    left()
    lays = (_as_link, _with_second_name, _open_to_others, _as_directory, _as_pipe)
    count = len(ODD_WORDS + SMALLEST + ODD_SIZES) + 3 + len(lays)
    paths = iter([bench.left(*MANY, key="test-key") for _ in range(count)])
    for path, record in spoilt:
        change(path, Path(path).read_bytes().index(b"oddodd") - 8, record)
    for word in ODD_WORDS:
        change(next(paths), WORDS_AT, (word[0] << 32 | word[1]).to_bytes(8, sys.byteorder))
    for sizes in SMALLEST:
        lay_header(next(paths), *sizes)
    unreadable = [next(paths) for _ in range(len(ODD_SIZES) + 3)]
    for path, sizes in zip(unreadable, ODD_SIZES):
        lay_header(path, *sizes)
    for path, length in zip(unreadable[len(ODD_SIZES) :], (0, 100, HEADER)):
        os.truncate(path, length)
    for lay in lays:
        lay(next(paths))
    for name in (b"\xff\xfe", b"", b"x" * 100):
        Path(os.path.join(bench.directory, os.fsdecode(b"letter-%s.ring" % name))).write_bytes(b"some file")

    letter = make(spool=bench.directory)
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
    again = make(spool=bench.directory)
    again.track("mine", "E")
    assert again.flush(DEADLINE) and again.stats()["adopted"] == 0
    assert len([error for error in errors if error.cause != "degraded"]) == before, "damage is reported once"


def test_many_damaged_files_have_the_directory_listed_a_few_times(bench: Bench, monkeypatch: Any) -> None:
    spool = bench.spool()
    for _ in range(30):
        spoilt = bench.left(b"spoilt")
        change(spoilt, Path(spoilt).read_bytes().index(b"spoilt"), b"S")
    for number in range(100):
        path = bench.directory / f"{spool._prefix}{number:016x}.ring"
        path.write_bytes(b"x" * 16)
        path.chmod(0o600)
    listings: list[Any] = []
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listings.append(path) or listdir(path))
    assert bench.adopt(spool) == [[]] * 30
    assert len(listings) <= 4
    assert len(bench.files()) == KEPT and all(name.endswith(".damaged") for name in bench.files())
    assert [error.lost for error in bench.reports] == [1] * KEPT + [100 - KEPT]
    assert {error.cause for error in bench.reports} == {"damaged"}


def test_a_file_that_is_cut_while_nothing_waits_in_it_is_left_for_another(bench: Bench, make: Any) -> None:
    letter = make(spool=bench.directory, flush_interval=1000)
    (cut,) = bench.files()
    os.truncate(bench.directory / cut, 0)
    assert in_child(lambda: letter.track("u", "E") or letter.flush(DEADLINE)) in (0, 1)  # and no SIGBUS
    letter.track("u", "E")
    assert letter.flush(DEADLINE) and letter.stats()["delivered"] == 1
    assert cut + ".damaged" in bench.files()


def test_a_flipped_bit_in_an_event_ends_the_ring_there_and_the_file_is_kept(bench: Bench) -> None:
    path = bench.left(b"first", b"second", b"third")
    at = Path(path).read_bytes().index(b"second")
    change(path, at, b"S")
    assert bench.adopt(bench.spool()) == [[b"first"]]
    assert bench.files() == [os.path.basename(path) + ".damaged"]


def test_what_was_found_damaged_stays_so_though_the_finder_is_killed(bench: Bench) -> None:
    path = bench.left(b"first", b"second")
    change(path, Path(path).read_bytes().index(b"second"), b"S")
    (slot,) = bench.spool().orphans()
    ring, wrong = Ring.recovered_from(slot)
    assert wrong
    slot.mark_corrupt()
    ring.take(10, 1000)  # from now on the words cover the first alone
    slot.release()
    assert bench.files() == [os.path.basename(path)]
    assert bench.adopt(bench.spool()) == [[b"first"]]
    assert bench.files() == [os.path.basename(path) + ".damaged"]


@pytest.mark.parametrize("word", [0, 1])
def test_a_word_that_points_nowhere_is_damage(word: int, bench: Bench) -> None:
    path = bench.left(b"first")
    change(path, WORDS_AT + 8 * word, b"\xff" * 4 + b"\x7f" * 4)
    assert bench.adopt(bench.spool()) == ([[]] if word == 0 else [[b"first"]])
    assert bench.files() == [os.path.basename(path) + ".damaged"]


def test_an_empty_file_that_was_spoilt_is_not_used_again(bench: Bench) -> None:
    slot = claimed(bench.spool())
    slot.mark_corrupt()
    os.rename(slot.path, slot.path + ".away")  # so that its release leaves it
    slot.release()
    os.rename(slot.path + ".away", slot.path)
    assert claimed(bench.spool()).path != slot.path
    assert os.path.basename(slot.path) + ".damaged" in bench.files()


def _await_a_tick(clock: Path) -> None:
    """Kernels before 6.13 date files by a clock that ticks every few milliseconds."""
    clock.touch()
    before = clock.stat().st_ctime_ns
    assert eventually(lambda: clock.touch() or clock.stat().st_ctime_ns, lambda now: now > before) > before


def test_no_damaged_file_is_overwritten_and_the_latest_few_are_kept(bench: Bench, tmp_path: Path) -> None:
    spool = bench.spool()
    first = bench.left(b"x")
    Path(first + ".damaged").write_text("an older one")
    _cut(first)
    assert bench.adopt(spool) == []
    assert Path(first + ".damaged").read_text() == "an older one" and len(bench.files()) == 2
    for number in range(KEPT):
        _await_a_tick(tmp_path / f"{number}")
        path = bench.left(b"x")
        _cut(path)
        assert bench.adopt(spool) == []
    assert len(bench.files()) == KEPT and os.path.basename(path) + ".damaged" in bench.files()
    assert not os.path.exists(first + ".damaged")


def test_a_file_that_cannot_be_set_aside_stops_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.left(b"good", max_queue_events=21)
    path = bench.left(b"x")
    _cut(path)
    os.utime(path, (1, 1))

    def rename(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "rename", rename)
    spool = bench.spool()
    assert bench.adopt(spool) == [[b"good"]] and bench.adopt(spool) == []
    assert bench.said("bytes instead of")


# Making a file.


def test_a_scan_never_sees_a_file_that_is_not_whole(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    maker, other = bench.spool(), bench.spool()
    rename, seen = os.rename, []

    def look_first(old: str, new: str) -> None:
        seen.append(bench.files())
        assert list(other.orphans()) == [] and in_child(another_scan) == 1
        rename(old, new)

    def another_scan() -> bool:
        monkeypatch.setattr(os, "rename", rename)
        return bench.spool().claim() is not None

    monkeypatch.setattr(os, "rename", look_first)
    slot = claimed(maker)
    assert seen[0] == ["." + os.path.basename(slot.path)], "hidden, whole, and left alone because it is locked"
    assert os.path.exists(slot.path)


def test_what_a_killed_process_had_begun_to_make_is_removed(bench: Bench, tmp_path: Path) -> None:
    code = """
    from letterapp._storage.spool import Spool
    os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    Letter('k', API, spool=sys.argv[1])
    """
    assert run(code, NOWHERE, tmp_path, str(bench.directory)).code == -signal.SIGKILL
    (left,) = bench.files()
    assert left.startswith(".letter-")
    assert bench.adopt(bench.spool("other")) == [] and bench.files() == [left], "another key's is another's"
    slot = claimed(bench.spool())
    assert bench.files() == [os.path.basename(slot.path)]


def test_what_cannot_be_removed_stops_nothing() -> None:
    def job(home: str) -> None:
        bench = Bench(Path(home, "spool"))
        spool = bench.spool()
        slot = claimed(spool)
        left = bench.directory / ("." + os.path.basename(slot.path))
        left.write_text("")
        left.chmod(0o000)
        assert claimed(spool) and left.exists() and bench.reports == []

    as_a_user(job)


def test_a_file_that_a_scan_removed_before_it_was_whole_is_made_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, turns = os.rename, []

    def removed(old: str, new: str) -> None:
        turns.append(old)
        if len(turns) <= 2:
            os.unlink(old)
        rename(old, new)

    monkeypatch.setattr(os, "rename", removed)
    spool = bench.spool()
    slot = claimed(spool)
    assert len(turns) == 3 and bench.files() == [os.path.basename(slot.path)]
    turns[:] = ["never"] * -9
    monkeypatch.setattr(os, "rename", lambda old, new: (os.unlink(old), rename(old, new)))
    before = descriptors()
    assert spool.claim() is None and bench.said("others remove what is made there")
    assert descriptors() == before


def test_a_process_without_standard_descriptors_gives_their_numbers_to_no_file(bench: Bench, tmp_path: Path) -> None:
    code = """
    for number in range(3):
        os.close(number)
    letter = Letter('k', API, spool=sys.argv[1])
    work(letter, 1)
    taken = [number for number in range(3) if os.path.exists(f"/dev/fd/{number}")]
    os._exit(len(taken))
    """
    assert run(code, NOWHERE, tmp_path, str(bench.directory)).code == 0


# The bound, and files that are used again.


def test_an_empty_file_of_the_same_size_is_used_again_and_others_are_removed(bench: Bench) -> None:
    slots = [claimed(bench.spool()), claimed(bench.spool()), claimed(bench.spool(max_queue_events=30))]
    for slot in slots:
        slot._file.close()  # as a process does that ends at once
        os.utime(slot.path, (1, 1))
    os.utime(slots[2].path, (0, 0))  # so it is looked at first
    again = claimed(bench.spool())
    assert os.stat(again.path).st_mtime > 1, "it counts as new"
    assert again.path in (slots[0].path, slots[1].path) and len(fill(again, b"x")) == 1
    assert not os.path.exists(slots[2].path)
    assert bench.adopt(bench.spool()) == []
    assert bench.files() == [os.path.basename(again.path)], "a look for events removes the others"


def test_a_file_with_events_is_never_used_again(bench: Bench) -> None:
    path = bench.left(b"x")
    assert claimed(bench.spool()).path != path
    assert bench.adopt(bench.spool()) == [[b"x"]]


def two_files(bench: Bench) -> dict[str, int]:
    slot = claimed(bench.spool())
    size = len(slot.memory)
    slot.release()
    return {"spool_max_bytes": 2 * size + 100}


@pytest.mark.parametrize("overflow", ["drop_newest", "block", "drop_oldest"])
def test_files_in_use_are_never_dropped_for_the_bound(overflow: str, bench: Bench) -> None:
    spool = bench.spool(overflow=overflow, **two_files(bench))
    slots = [claimed(spool), claimed(spool)]
    assert spool.claim() is None and spool.claim() is None
    assert bench.said("is full (spool_max_bytes=") and spool.losses() == []
    assert bench.reports[0].cause == "degraded"
    slots[0].release()
    assert claimed(spool)


def test_what_ended_processes_left_is_kept_at_the_bound(bench: Bench) -> None:
    bound = two_files(bench)
    bench.left(*MANY), bench.left(*MANY)
    spool = bench.spool(**bound)
    assert spool.claim() is None and bench.said("is full")
    assert bench.adopt(spool) == [MANY, MANY]
    assert claimed(spool)


@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest"])
def test_at_the_bound_a_process_goes_on_in_the_emptiest_file_of_an_ended_one(overflow: str, bench: Bench) -> None:
    bound = {"overflow": overflow, **two_files(bench)}
    other, emptiest = bench.left(b"a", b"b"), bench.left(b"c")
    slot, another = claimed(bench.spool(**bound)), claimed(bench.spool(**bound))
    assert (slot.path, another.path) == (emptiest, other)
    ring, wrong = Ring.recovered_from(slot)
    assert not wrong and ring.append(b"d")
    slot.release()
    assert bench.adopt(bench.spool(**bound)) == [[b"c", b"d"]] and bench.reports == []


def test_a_process_that_may_do_nothing_but_fork_keeps_no_events_from_others(bench: Bench) -> None:
    bound = two_files(bench)
    bench.left(b"a"), bench.left(b"b")
    settings = Letter("k", enabled=False, spool=bench.directory, **{**SMALL, **bound})._settings
    assert spool_module.Spool(settings, bench.reports.append, lambda: True).claim() is None
    assert bench.said("events lie in memory instead")


def test_who_goes_on_in_a_file_sends_what_is_there_and_sets_a_damaged_one_aside(
    bench: Bench, make: Any, errors: list[LetterError], letter_api: Any
) -> None:
    bound = two_files(bench)["spool_max_bytes"] // 2
    event = b'{"type":"track","userId":"u","messageId":"%d","event":"E","timestamp":"2026-01-01","properties":{}}'
    spoilt = bench.left(event % 1, event % 2, key="test-key")
    change(spoilt, Path(spoilt).read_bytes().index(event % 2), b"[")
    letter = make(spool=bench.directory, spool_max_bytes=bound, **SMALL)
    assert len(eventually(lambda: letter_api.events, bool)) == 1, "without any call"
    letter.track("u", "E")
    assert letter.close(DEADLINE) and letter.stats()["memory"] == "spool"
    assert len(letter_api.events) == 2 and [(error.cause, error.lost) for error in errors] == [("damaged", 1)]
    assert bench.files() == [os.path.basename(spoilt) + ".damaged"]


def test_a_process_a_job_fills_no_spool_while_the_api_is_away(
    bench: Bench, make: Any, errors: list[LetterError], letter_api: Any
) -> None:
    options = {"spool": bench.directory, "max_queue_bytes": 60_000, "max_queue_events": 300, "max_batch_bytes": 2000}
    options["spool_max_bytes"] = 3 * 75_000
    away = make(base_url=NOWHERE, flush_interval=1000, **options)  # whose file is one of three

    def job() -> bool:
        away.track("u", "E")
        os.kill(os.getpid(), signal.SIGKILL)
        return True

    for _ in range(16):
        assert in_child(job) == -signal.SIGKILL
    assert len(bench.files()) == 3 and errors == []
    assert make(**options).flush(DEADLINE) and len(letter_api.events) == 16 and errors == []


def test_with_drop_oldest_the_oldest_file_of_an_ended_process_gives_way(bench: Bench) -> None:
    bound = two_files(bench)
    old, new = bench.left(*MANY), bench.left(*MANY)
    os.utime(old, (1, 1))
    spool = bench.spool(overflow="drop_oldest", **bound)
    slot = claimed(spool)
    (error,) = spool.losses()
    assert (error.cause, error.lost, error._events) == ("overflow", 11, tuple(MANY)) and spool.losses() == []
    assert str(error).startswith(
        f"11 events of ended processes dropped (drop_oldest): the spool {bench.directory} was full (spool_max_bytes="
    )
    assert bench.files() == sorted(map(os.path.basename, (new, slot.path))) and bench.reports == []


def test_a_file_that_gave_way_is_reported_as_what_it_is(make: Any, errors: list[LetterError], bench: Bench) -> None:
    bound = two_files(bench)
    old, _ = bench.left(*MANY), bench.left(*MANY)
    os.utime(old, (1, 1))
    letter = make(api_key="k", spool=bench.directory, overflow="drop_oldest", flush_interval=1000, **bound, **SMALL)
    (error,) = errors
    assert (error.cause, error.lost) == ("overflow", 11) and "was full (spool_max_bytes=" in str(error)
    assert [item["messageId"] for item in error.events] == [str(number) for number in range(1, 12)]
    assert letter.stats()["lost"] == {"overflow": 11}


def test_a_damaged_file_that_gives_way_is_set_aside(bench: Bench) -> None:
    bound = two_files(bench)
    old, _ = bench.left(*MANY, b"last"), bench.left(*MANY)
    os.utime(old, (1, 1))
    change(old, Path(old).read_bytes().rindex(b"last"), b"L")
    os.utime(old, (1, 1))
    spool = bench.spool(overflow="drop_oldest", **bound)
    assert claimed(spool)
    assert [(error.cause, error.lost, error._events) for error in spool.losses()] == [
        ("damaged", 1, ()),
        ("overflow", 11, tuple(MANY)),
    ]
    assert os.path.exists(old + ".damaged")


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


@pytest.mark.skipif(not IS_ROOT or sys.platform != "linux", reason="needs to mount")
def test_a_full_disk_costs_a_report_and_what_has_a_file_can_fill_it(tiny_disk: Path) -> None:
    bench = Bench(tiny_disk / "spool")
    spool = bench.spool()
    slots = []
    while True:
        slot = spool.claim()
        if slot is None:
            break
        slots.append(slot)
    assert len(slots) == 4 and spool.claim() is None
    assert bench.said("cannot be used: No space left on device; events lie in memory instead")
    assert len(bench.files()) == 4, "and what could not be made whole is gone"
    Path(tiny_disk, "rest").write_bytes(b"x" * os.statvfs(tiny_disk).f_bavail * 4096)
    for slot in slots:
        ring = Ring(slot)
        while ring.append(b"e" * 300):
            pass
        slot.release()
    assert len(bench.adopt(bench.spool())) == 4, "a directory on a full disk is no wrong one"


@pytest.fixture
def copying_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that copies what changes, so that a file which is there is no reason that there is room for it."""
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


@pytest.mark.skipif(not IS_ROOT or sys.platform != "linux", reason="needs to mount")
def test_a_start_on_a_full_disk_that_copies_what_changes_ends_no_process(
    copying_disk: Path, make: Any, letter_api: Any
) -> None:
    event = b'{"type":"track","userId":"left","messageId":"m","event":"E","timestamp":"t","properties":{}}'
    Bench(copying_disk / "spool").left(event, key="test-key")
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


def test_a_limit_on_files_costs_a_report_and_leaves_nothing_behind(bench: Bench, tmp_path: Path) -> None:
    code = """
    import resource
    errors = []
    letter = Letter('k', API, spool=sys.argv[1], on_error=errors.append)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    other = Letter('k', API, spool=sys.argv[1], on_error=errors.append)
    kept = letter.stats()["memory"], other.stats()["memory"]
    limit = os.dup(0)  # the lowest number that is free
    os.close(limit)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    third = Letter('k', API, spool=sys.argv[1], on_error=errors.append, flush_interval=3600, send_on_os_exit=False)
    work(third, 3)  # a call needs no descriptor
    print(*kept, third.stats()["memory"], *errors, sep="\\n")
    os._exit(0)
    """
    spool, first, second, *errors = run(code, NOWHERE, tmp_path, str(bench.directory)).output.splitlines()
    assert (spool, first, second) == ("spool", "shared", "shared")
    assert len(errors) == 3 and "File too large" in errors[0]
    assert "cannot be used: Too many open files" in errors[1] and "cannot be read: Too many open files" in errors[2]
    assert len(bench.files()) == 1


# Syncing.


@pytest.mark.parametrize("sync", [False, True])
def test_the_disk_is_asked_only_where_that_was_wanted(sync: bool, bench: Bench, monkeypatch: Any) -> None:
    asked: list[str] = []
    path = os.path.realpath

    def ask(descriptor: int) -> None:
        asked.append(path(f"/dev/fd/{descriptor}") if sys.platform == "linux" else "")

    monkeypatch.setattr(os, "fsync", ask)
    monkeypatch.setattr(os, "fdatasync", ask, raising=False)
    slot = claimed(bench.spool(spool_sync=sync))
    hidden = os.path.join(bench.directory, "." + os.path.basename(slot.path))
    assert len(asked) == (3 if sync else 0)
    if sync and sys.platform == "linux":
        assert asked == [str(bench.directory.parent), hidden, str(bench.directory)]
    slot.sync()
    assert len(asked) == (4 if sync else 0)


def test_a_call_returns_when_its_event_is_on_the_disk(make: Any, bench: Bench, monkeypatch: Any) -> None:
    letter = make(spool=bench.directory, spool_sync=True, flush_interval=1000)
    (name,) = bench.files()
    seen: list[bool] = []

    def look(descriptor: int) -> None:
        seen.append(b'"serial":1' in Path(bench.directory, name).read_bytes())

    monkeypatch.setattr(os, "fsync", look)
    monkeypatch.setattr(os, "fdatasync", look, raising=False)
    letter.track("u", "Worked", {"serial": 1})
    assert seen == [True]
    letter.close(DEADLINE)
    letter.track("u", "Worked", {"serial": 2})  # refused; there is no file any more
    assert bench.files() == []


def test_a_disk_that_cannot_sync_is_reported_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    slot = claimed(bench.spool(spool_sync=True))

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail, raising=False)
    slot.sync(), slot.sync()
    assert bench.said("cannot be synced: Input/output error")


def test_a_file_that_becomes_too_short_while_it_is_opened_costs_a_report(
    bench: Bench, make: Any, errors: list[LetterError], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, spool = bench.left(b"x", key="test-key"), bench.spool("test-key")
    rooms_of = spool_module.Spool._rooms_of

    def cut(spool: Any, file: Any) -> Any:
        rooms = rooms_of(spool, file)
        os.truncate(path, HEADER)
        return rooms

    monkeypatch.setattr(spool_module.Spool, "_rooms_of", cut)
    size, before = os.path.getsize(path), descriptors()
    assert bench.adopt(spool) == [] and descriptors() == before
    assert bench.said("cannot be taken over: mmap length is greater than file size")
    os.truncate(path, size)
    letter = make(spool=bench.directory)
    assert letter.stats()["memory"] == "spool" and [error.cause for error in errors] == ["degraded"]


@pytest.mark.skipif(not IS_ROOT or sys.platform != "linux", reason="needs to mount")
def test_nothing_comes_out_of_a_client_whose_disk_is_full(
    tiny_disk: Path, make: Any, errors: list[LetterError]
) -> None:
    os.mkdir(tiny_disk / "spool", 0o700)
    Path(tiny_disk, "rest").write_bytes(b"x" * os.statvfs(tiny_disk).f_bavail * 4096)
    letter = make(spool=tiny_disk / "spool")
    letter.track("u", "E", {"serial": 0})
    assert letter.close(DEADLINE) and letter.stats()["delivered"] == 1
    assert letter.stats()["memory"] == "shared" and os.listdir(tiny_disk / "spool") == []
    (error,) = errors
    assert error.cause == "degraded" and "No space left on device; events lie in memory instead" in str(error)
