"""CPython's own tests of forks, ends and signals, with a used client in every process that they start.

Responsible for: a few of them that take seconds. Not responsible for: the rest, which `python -m stress cpython` runs.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
from harness import ROOT, environment

CHOSEN = ["test_signal:test_keyboard_interrupt*", "test_fork1"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="tried on Linux"),
    pytest.mark.skipif(
        importlib.util.find_spec("test") is None or importlib.util.find_spec("test.test_fork1") is None,
        reason="this Python comes without its own tests (Debian: libpython3-testsuite)",
    ),
]


def test_cpythons_tests_pass_with_a_client() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stress", "cpython", "--again", "2", *CHOSEN],
        env=environment(""),
        cwd=str(ROOT),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and "could not be run" not in done.stdout, done.stdout
    assert "processes used a client" in done.stdout and "client: 0 of 0" not in done.stdout, done.stdout
