"""The examples of docs/testing.md, as they are run: by pytest, by pytest-xdist, by unittest, by Django's runner."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness import DEADLINE, ROOT, environment, needs

EXAMPLES = ROOT / "docs" / "examples" / "testing"


def run_tests(example: str, tmp_path: Path, *arguments: str) -> str:
    """Run tests in a copy of ``example``, in which the library would send to a port on which nobody listens."""
    shutil.copytree(EXAMPLES / example, tmp_path / example, ignore=shutil.ignore_patterns("__pycache__"))
    # If anything were sent, it would be sent to this proxy, which refuses every connection.
    env = environment("", https_proxy="http://127.0.0.1:9", TMPDIR=str(tmp_path))
    done = subprocess.run(
        [sys.executable, *arguments],
        env=env,
        cwd=str(tmp_path / example),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=2 * DEADLINE,
    )
    assert done.returncode == 0, done.stdout
    assert "letterapp:" not in done.stdout, done.stdout  # nothing is lost
    assert not list(tmp_path.glob("letterapp-tests-*"))
    return done.stdout


PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider")


def test_with_pytest(tmp_path: Path) -> None:
    assert "4 passed" in run_tests("pytest_shop", tmp_path, *PYTEST)


@pytest.mark.slow
def test_with_pytest_xdist(tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    assert "4 passed" in run_tests("pytest_shop", tmp_path, *PYTEST, "-n", "2")


def test_with_unittest(tmp_path: Path) -> None:
    output = run_tests("unittest_shop", tmp_path, "-m", "unittest")
    assert "Ran 2 tests" in output and output.rstrip().endswith("OK" if hasattr(os, "fork") else "OK (skipped=1)")


@needs("django")
@pytest.mark.parametrize("options", [(), ("--parallel", "2")], ids=["one-process", "parallel"])
def test_with_django(options: tuple[str, ...], tmp_path: Path) -> None:
    assert "Ran 2 tests" in run_tests("django_shop", tmp_path, "manage.py", "test", *options)
