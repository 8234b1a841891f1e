"""Delivery from a spool after some or all processes were killed."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import re
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness import DEADLINE, eventually, run, start, whose
from programs import spools
from spool_dir import NOWHERE, SpoolDir, change, descriptors

from letterapp import Letter, LetterError

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]


def ids(api: Any) -> dict[tuple[str, int], str]:
    return {(item["userId"], item["properties"]["serial"]): item["messageId"] for item in api.events}


def leave(count: int, who: str, spool_dir: SpoolDir, tmp_path: Path) -> None:
    """Have a process with the default bounds leave the given number of events."""
    finished = run(spools.is_killed_with, NOWHERE, tmp_path, count, who, spool_dir.path)
    assert finished.code == -signal.SIGKILL, finished


def test_after_all_processes_were_killed_under_load_the_next_start_delivers_all_in_order(
    make: Any, letter_api: Any, errors: list[LetterError], spool_dir: SpoolDir, tmp_path: Path
) -> None:
    with start(spools.works_without_end, letter_api.url, tmp_path, spool_dir.path) as program:
        at_work = eventually(
            lambda: re.findall(r"^(.*) \d+$", program.output, re.M), lambda who: len(who) > 3000 and len(set(who)) == 4
        )
        assert len(set(at_work)) == 4, program.output[-1000:]
        program.signal_group(signal.SIGKILL)
        program.finish()
        assert not program.left_behind()
        tracked = {who: int(serial) for who, serial in re.findall(r"^(.*) (\d+)$", program.output, re.M)}
    assert len(tracked) == 4
    before = dict(ids(letter_api))
    letter = make(spool=spool_dir.path)
    assert letter.flush(DEADLINE)
    came = whose(letter_api)
    for who, count in tracked.items():
        assert len(came[who]) - count in (0, 1), "one more may have been taken when its call had not returned"
        assert came[who] == list(range(len(came[who])))
    assert all(ids(letter_api)[event] == before[event] for event in before), "the same event under the same id"
    assert len(ids(letter_api)) == len(set(ids(letter_api).values()))
    assert errors == [] and letter.stats()["lost"] == {} and letter.stats()["memory"] == "spool"
    assert len(spool_dir.files()) == 1


def test_events_survive_an_outage_and_several_killed_processes(
    make: Any, letter_api: Any, spool_dir: SpoolDir, tmp_path: Path
) -> None:
    for turn in range(3):
        with start(spools.cannot_deliver, NOWHERE, tmp_path, spool_dir.path, f"start {turn}") as program:
            assert eventually(lambda: program.output, lambda output: "ready" in output)
            program.signal(signal.SIGKILL)
            program.finish()
    letter = make(spool=spool_dir.path)
    assert letter.flush(DEADLINE)
    assert whose(letter_api) == {f"start {turn}": list(range(20)) for turn in range(3)}
    assert letter.stats()["adopted"] == letter.stats()["delivered"] == 60


@pytest.mark.parametrize("serial", [0, 6])
def test_a_corrupt_event_loses_those_after_it_and_is_reported_once(
    serial: int, make: Any, letter_api: Any, errors: list[LetterError], spool_dir: SpoolDir, tmp_path: Path
) -> None:
    leave(10, "program", spool_dir, tmp_path)
    (name,) = spool_dir.files()
    path = str(spool_dir.path / name)
    change(path, Path(path).read_bytes().index(b'"serial":%d' % serial), b"'")
    letter = make(spool=spool_dir.path)
    assert letter.flush(DEADLINE) and letter.flush(DEADLINE)
    assert whose(letter_api).get("program", []) == list(range(serial))
    assert [(error.cause, error.lost) for error in errors] == [("damaged", 10 - serial)]
    assert letter.stats()["lost"] == {"damaged": 10 - serial}
    assert name + ".damaged" in spool_dir.files() and len(spool_dir.files()) == 2


def spawned(letter: Letter) -> None:
    letter.track("spawned", "Worked", {"serial": 0})
    assert letter.stats()["memory"] == "spool"
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_events_of_a_killed_child_are_delivered_by_its_parent(
    method: str, letter_api: Any, spool_dir: SpoolDir
) -> None:
    letter = Letter("test-key", letter_api.url, spool=spool_dir.path, flush_interval=1000)
    child = multiprocessing.get_context(method).Process(  # type: ignore[attr-defined]  # of the base class
        target=spawned, args=(letter,)
    )
    child.start()
    child.join(DEADLINE)
    assert child.exitcode == -signal.SIGKILL and letter_api.requests == []
    assert letter.close(DEADLINE)
    assert whose(letter_api) == {"spawned": [0]}
    child.close()


def test_a_discarded_client_leaves_nothing_open(letter_api: Any, spool_dir: SpoolDir) -> None:
    Letter("test-key", letter_api.url)  # the first of a process opens a file for good
    before = descriptors()
    for _ in range(3):
        letter = Letter("test-key", letter_api.url, spool=spool_dir.path)
        letter.track("u", "Worked", {"serial": 0})
        assert letter.close(DEADLINE)
        del letter
    assert eventually(descriptors, lambda count: count == before) == before
    assert spool_dir.files() == []


def test_an_event_tracked_after_the_end_removed_the_file_is_delivered(
    letter_api: Any, spool_dir: SpoolDir, tmp_path: Path
) -> None:
    finished = run(spools.tracks_after_its_end, letter_api.url, tmp_path, spool_dir.path)
    assert (finished.code, finished.output) == (0, "")
    assert whose(letter_api) == {"program": [0, 1, 2, 3]} and spool_dir.recover(spool_dir.spool("test-key")) == []


def test_a_start_without_an_event_sends_the_spooled_events_and_stops_its_thread(
    letter_api: Any, spool_dir: SpoolDir, tmp_path: Path
) -> None:
    leave(5, "left", spool_dir, tmp_path)
    with start(spools.only_starts, letter_api.url, tmp_path, spool_dir.path) as program:
        assert letter_api.wait_for(5), program.output
        process = psutil.Process(program.pid)
        assert eventually(process.num_threads, lambda count: count == 1) == 1
        assert eventually(spool_dir.files, lambda files: len(files) == 1), "its own"
    assert whose(letter_api) == {"left": list(range(5))}


def test_a_start_that_finds_nothing_starts_no_thread(make: Any, spool_dir: SpoolDir) -> None:
    letters = [make(spool=spool_dir.path, on_error=print) for _ in range(3)]
    assert [letter._delivery._queue.has_worker for letter in letters] == [False] * 3


def test_an_unpickled_client_and_a_listener_send_spooled_events_too(
    letter_api: Any, spool_dir: SpoolDir, tmp_path: Path
) -> None:
    from letterapp.relay import QueueListener

    leave(5, "left", spool_dir, tmp_path)
    with QueueListener(multiprocessing.Queue(10), "test-key", letter_api.url, spool=spool_dir.path):
        assert letter_api.wait_for(5)
    letter = Letter("test-key", letter_api.url, spool=spool_dir.path)
    data = pickle.dumps(letter)
    leave(5, "left", spool_dir, tmp_path)
    unpickled = pickle.loads(data)
    assert letter_api.wait_for(10)
    assert letter.close(DEADLINE) and unpickled.close(DEADLINE)
