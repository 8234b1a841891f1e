"""Some unusual input for each fuzz target in each test run; `python -m stress fuzz` runs for as long as wanted.

Its findings become examples here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Iterator

import pytest
from harness import DEADLINE, ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stress.fuzz.targets import SEEDS, TARGETS
from stress.fuzz.worker import Recorder

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Unix")

some = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
BYTES = st.binary(max_size=400)


@pytest.fixture(scope="module")
def targets() -> Iterator[dict[str, Any]]:
    """Each target, created when it is first used."""
    made: dict[str, Any] = {}

    class Made(dict):  # type: ignore[type-arg]
        def __missing__(self, name: str) -> Any:
            made[name] = TARGETS[name]()
            self[name] = made[name].__enter__()
            return self[name]

    yield Made()
    for target in made.values():
        target.__exit__(None, None, None)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_the_initial_inputs_of_each_corpus_are_no_findings(name: str, targets: Any) -> None:
    for data in SEEDS[name]:
        targets[name](data)


@given(BYTES)
@some
def test_any_value_in_a_call_is_an_event_or_a_letter_error(targets: Any, data: bytes) -> None:
    targets["call"](data)


@given(BYTES)
@some
def test_any_bytes_as_a_file_of_a_spool_are_events_or_damage(targets: Any, data: bytes) -> None:
    targets["spool"](data)


@given(BYTES)
@some
def test_any_answer_of_the_api_settles_or_loses_each_event(targets: Any, data: bytes) -> None:
    targets["api"](data)


@given(BYTES)
@some
def test_any_answer_of_a_relay_leaves_counts_that_balance(targets: Any, data: bytes) -> None:
    targets["answer"](data)


@given(BYTES)
@some
def test_any_lines_to_a_relay_lose_no_event_of_another_client(targets: Any, data: bytes) -> None:
    targets["relay"](data)


# The fuzzer.


def test_a_finding_is_kept_once_and_does_not_end_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(data: bytes) -> None:
        if data > b"1":
            raise ValueError("found")
        while data == b"1":
            pass

    record = Recorder(run, tmp_path, max_cpu_time=0.05)
    for data in (b"0", b"2", b"3", b"1", b"4", b"0"):
        record(data)
    kept = sorted(path.read_bytes() for path in tmp_path.iterdir() if not path.suffix)
    texts = "".join(path.read_text() for path in tmp_path.glob("*.txt"))
    assert kept == [b"1", b"2"] and "ValueError: found" in texts and "TooLong" in texts
    record.print_progress()
    assert "6 inputs" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_prints_its_seed_and_extends_its_corpus(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stress", "fuzz", "spool", "--seconds", "1", "--engine", "hypothesis"]
    command += ["--seed", "7", "--corpus", str(tmp_path / "corpus")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 0, done
    assert "hypothesis, seed 7, 1 s, 0 inputs" in done.stdout and " s, 0 kinds of findings" in done.stdout, done
    assert len(os.listdir(tmp_path / "corpus")) >= len(SEEDS["spool"])
    assert os.listdir(tmp_path / "corpus.findings") == []


@pytest.mark.skipif(find_spec("atheris") is not None, reason="atheris is installed")
def test_an_engine_that_is_not_installed_is_an_error_with_instructions(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stress", "fuzz", "spool", "--engine", "atheris", "--cache", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE)
    assert (done.returncode, done.stdout) == (2, "") and "pip install -e '.[fuzz]'" in done.stderr


def test_an_unknown_target_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stress", "fuzz", "no-such", "--cache", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE)
    assert (done.returncode, done.stdout) == (2, "") and "no such target: no-such" in done.stderr
