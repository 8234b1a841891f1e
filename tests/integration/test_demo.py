"""`python -m letterapp demo`: what it prints, and its exit status."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import Program, environment, eventually

from letterapp.testing import status


def demo(tmp_path: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "letterapp", "demo", *arguments],
        env=environment("", **env),
        cwd=str(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_the_demos_ledger_balances(tmp_path: Path) -> None:
    done = demo(tmp_path, "--workers", "2", "--events", "120")
    assert done.returncode == 0, done.stdout
    assert "the ledger balances" in done.stdout
    for who in ("parent", "worker 2", "grandchild of worker 1", "Pool worker", "ProcessPoolExecutor worker", "spawned"):
        assert who in done.stdout
    for who in ("worker 2", "grandchild of worker 1", "Pool worker", "spawned", "parent"):
        assert f"{who}, through a manager" in done.stdout
    total = re.search(r"total +([\d,]+) +([\d,]+) +(\d+) +(\d+)", done.stdout)
    assert total is not None and total.groups() == ("2,280", "2,280", "0", "0")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_the_demo_with_a_real_api_sends_one_event_per_job(letter_api: Any, tmp_path: Path) -> None:
    done = demo(tmp_path, "--workers", "2", "--base-url", letter_api.url, LETTER_API_KEY="k")
    assert done.returncode == 0, done.stdout
    assert letter_api.distinct == 19 and "the ledger balances" in done.stdout


@pytest.mark.slow
def test_the_demo_fails_when_events_are_lost(letter_api: Any, tmp_path: Path) -> None:
    letter_api.rule = lambda request: status(400, json.dumps({"error": {"message": "never"}}).encode())
    done = demo(tmp_path, "--workers", "1", "--base-url", letter_api.url, LETTER_API_KEY="k")
    assert done.returncode == 1, done.stdout
    assert "THE LEDGER DOES NOT BALANCE" in done.stdout and "never" in done.stdout


@pytest.mark.parametrize("arguments", [("--workers", "0"), ("--events", "x"), ("--unknown",)])
def test_the_demo_reports_wrong_arguments(arguments: list[str], tmp_path: Path) -> None:
    done = demo(tmp_path, *arguments)
    assert done.returncode == 2 and "usage:" in done.stdout


def test_the_demo_with_a_real_api_requires_a_key(tmp_path: Path) -> None:
    done = demo(tmp_path, "--base-url", "http://127.0.0.1:9")
    assert done.returncode == 2 and "api_key is required" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_ctrl_c_ends_the_demo_and_its_processes_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "letterapp", "demo", "--events", "4000"]  # its workers are busy for seconds
    with Program(command, environment(""), tmp_path) as program:
        assert eventually(lambda: "processes done" in program.output, bool), program.output
        program.signal_group(signal.SIGINT)
        done = program.finish()
        assert done.code == -signal.SIGINT, done
        assert not program.left_behind(15), "clients that send may outlive the server, for 30 s"
        assert "Traceback" not in done.output and "given up" not in done.output, done
