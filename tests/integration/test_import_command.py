"""``python -m letterapp import``: how it stops and continues, what it shows, what it costs."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from harness import Program, eventually
from imports import Import, command, env_for, numbers, refused, row, run_import, write  # noqa: F401  (a fixture)

from letterapp.testing import IngestionServer, status

# Stops, and goes on.


def test_a_killed_import_is_continued(importing: Import, letter_api: IngestionServer, tmp_path: Path) -> None:
    rows = [row(number) if number % 50 else {**row(number), "timestamp": "soon"} for number in range(1000)]
    path = write(tmp_path / "rows.jsonl", *rows)
    letter_api.rule = lambda _: letter_api.hold() if len(letter_api.requests) == 5 else None
    with Program(command(path), env_for(letter_api.url), tmp_path) as program:
        assert letter_api.wait_until(lambda: len(letter_api.requests) >= 5)
        state = tmp_path / "rows.jsonl.import-state"
        assert eventually(lambda: state.exists() and state.read_text(), bool)
        program.signal(signal.SIGKILL)
        program.finish()
    with (tmp_path / "rows.jsonl.refused.jsonl").open("a") as file:  # what it may have written after the last state
        file.write('{"line": 401, "reason": "soon", "row": "' + 100_000 * "x")
    letter_api.rule = None
    letter_api.release()
    done = importing(path)
    assert "continuing behind line" in done.output and done.code == 1, done
    assert "980 rows sent, 20 refused" in done.output, done
    assert numbers(letter_api) == [number for number in range(1000) if number % 50]
    assert [line for line, _ in refused(tmp_path / "rows.jsonl.refused.jsonl")] == list(range(1, 1000, 50))
    assert len(letter_api.requests) < 14  # it did not begin with the first row
    assert not state.exists()


def test_ctrl_c_stops_and_says_how_to_continue(importing: Import, letter_api: IngestionServer, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", *map(row, range(2000)))
    letter_api.rule = lambda _: letter_api.hold() if len(letter_api.requests) == 4 else None
    with Program(command(path), env_for(letter_api.url), tmp_path) as program:
        assert letter_api.wait_until(lambda: len(letter_api.requests) >= 4)
        program.signal(signal.SIGINT)
        assert eventually(lambda: "stopping" in program.output, bool)
        letter_api.release()
        done = program.finish()
    letter_api.rule = None
    assert done.code == -signal.SIGINT and "Run the same command again to continue" in done.output, done
    assert f"{letter_api.distinct:,} rows sent" in done.output and letter_api.distinct < 2000, done
    before = len(letter_api.requests)
    assert importing(path).code == 0
    assert numbers(letter_api) == list(range(2000)) and len(letter_api.requests) - before < 20


def test_the_end_of_the_batches_under_way_is_recorded(
    importing: Import, letter_api: IngestionServer, tmp_path: Path
) -> None:
    path = write(tmp_path / "rows.jsonl", *map(row, range(2000)))
    letter_api.rule = lambda _: letter_api.hold() if len(letter_api.requests) == 4 else None
    with Program(command(path, "--connections", "3"), env_for(letter_api.url), tmp_path) as program:
        assert letter_api.wait_until(lambda: len(letter_api.requests) >= 4)
        program.signal(signal.SIGINT)
        assert eventually(lambda: "stopping" in program.output, bool)
        program.signal(signal.SIGINT)  # impatient
        done = program.finish()
    letter_api.rule = None
    letter_api.release()
    assert done.code == -signal.SIGINT, done
    assert importing(path, "--connections", "3").code == 0
    assert numbers(letter_api) == list(range(2000))


def test_a_key_that_the_api_refuses_stops_it_at_once(
    importing: Import, letter_api: IngestionServer, tmp_path: Path
) -> None:
    letter_api.rule = lambda _: status(401, b'{"error":{"message":"no such key"}}')
    path = write(tmp_path / "rows.jsonl", *map(row, range(5000)))
    done = importing(path)
    assert done.code == 1 and "no such key" in done.output and "0 rows sent" in done.output, done
    assert len(letter_api.requests) < 5 and not (tmp_path / "rows.jsonl.refused.jsonl").exists()
    letter_api.rule = None
    assert importing(path).code == 0 and letter_api.distinct == 5000


def test_no_key(importing: Import, tmp_path: Path) -> None:
    done = importing(write(tmp_path / "rows.jsonl", row(1)), LETTER_API_KEY="")
    assert done.code == 1 and "api_key is required" in done.output, done
    assert importing("rows.jsonl", "--dry-run", LETTER_API_KEY="").code == 0


def test_failures_are_retried(importing: Import, letter_api: IngestionServer, tmp_path: Path) -> None:
    letter_api.plan(status(503), status(429, headers={"Retry-After": "0"}))
    done = importing(write(tmp_path / "rows.jsonl", *map(row, range(250))))
    assert done.code == 0 and "the API answered 503; trying again" in done.output, done
    assert numbers(letter_api) == list(range(250))


@pytest.mark.slow
def test_another_file_or_other_options_begin_anew(
    importing: Import, letter_api: IngestionServer, tmp_path: Path
) -> None:
    path = write(tmp_path / "rows.jsonl", *map(row, range(300)))
    letter_api.rule = lambda _: status(401) if len(letter_api.requests) == 2 else None
    assert importing(path).code == 1
    letter_api.rule = None
    other = importing(path, "--now")
    assert "beginning with the first row: the last run had another options" in other.output and other.code == 0, other

    letter_api.rule = lambda request: status(401) if request.json["batch"][0]["properties"]["n"] >= 100 else None
    assert importing(path).code == 1
    letter_api.rule = None
    write(path, *map(row, range(3)))
    shorter = importing(path)
    assert shorter.code == 1 and "is shorter than in the last run" in shorter.output, shorter
    assert importing(path, "--restart").code == 0


def test_one_import_of_a_file_at_a_time(importing: Import, letter_api: IngestionServer, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", row(1))
    letter_api.hold()
    with Program(command(path), env_for(letter_api.url), tmp_path) as program:
        assert letter_api.wait_until(lambda: len(letter_api.requests) >= 1)
        second = importing(path)
        assert second.code == 1 and "another process imports this file" in second.output, second
        letter_api.release()
        assert program.finish().code == 0
    assert letter_api.distinct == 1


def test_a_file_that_is_not_its_own_is_not_overwritten(
    importing: Import, letter_api: IngestionServer, tmp_path: Path
) -> None:
    path, other = write(tmp_path / "rows.jsonl", row(1)), tmp_path / "rows.jsonl.refused.jsonl"
    other.write_text("notes\n")
    done = importing(path)
    assert done.code == 1 and "exists, and no import has written it" in done.output, done
    assert other.read_text() == "notes\n" and not letter_api.requests
    assert importing(path, "--refused", tmp_path / "bad.jsonl").code == 0


def test_without_a_place_for_the_state_it_is_still_imported(
    importing: Import, letter_api: IngestionServer, tmp_path: Path
) -> None:
    path = write(tmp_path / "rows.jsonl", row(1))
    done = importing(path, "--state", tmp_path / "missing" / "state")
    assert done.code == 0 and "it cannot be continued" in done.output, done


# What it shows, and costs.


def test_a_terminal_shows_a_bar(letter_api: IngestionServer, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", *map(row, range(300)))
    ours, its = pty.openpty()
    with subprocess.Popen(
        command(path), env=env_for(letter_api.url, TERM="xterm"), stdout=subprocess.PIPE, stderr=its, cwd=tmp_path
    ) as process:
        os.close(its)
        seen = b""
        try:
            while data := os.read(ours, 4096):
                seen += data
        except OSError:
            pass  # the other end is closed
        assert process.stdout is not None and process.stdout.read() == b"300 rows sent, 0 refused\n"
    os.close(ours)
    assert b"%  " in seen and b"rows  " in seen and seen.endswith(b"\r\x1b[K"), seen


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_memory_does_not_grow_with_the_file(letter_api: IngestionServer, tmp_path: Path) -> None:
    code = "from letterapp.__main__ import main; main(); print(open('/proc/self/status').read())"
    letter_api.rule = lambda _: letter_api.events.clear()  # the server is in this process
    peaks = []
    for count in (2_000, 60_000):
        path = write(tmp_path / f"{count}.jsonl", *map(row, range(count)))
        line = [sys.executable, "-c", code, "import", str(path)]
        with Program(line, env_for(letter_api.url), tmp_path) as program:
            done = program.finish()
        peaks.append(int(done.output.split("VmHWM:")[1].split()[0]))
    # Kilobytes. PyPy's memory grows until its collector thinks it worthwhile.
    assert peaks[1] - peaks[0] < (2_000 if sys.implementation.name == "cpython" else 100_000), peaks
