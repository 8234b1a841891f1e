"""An older uWSGI, whose workers run no threads unless configured to.

Responsible for: the fixture `threadless`. Not responsible for: starting it, see uwsgi_server.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

WITHOUT_THREADS = "2.0.26"  # the last such version


@pytest.fixture(scope="session")
def threadless(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The directory of a pyuwsgi whose workers run no threads, fetched once and kept in pytest's cache."""
    cache = getattr(pytestconfig, "cache", None)  # absent when the cache is switched off
    name = f"pyuwsgi-{WITHOUT_THREADS}-{sys.implementation.cache_tag}"
    home = Path(cache.mkdir(name)) if cache is not None else tmp_path_factory.mktemp(name)
    there = home / "installed"
    if not there.exists():
        with tempfile.TemporaryDirectory(dir=str(home)) as fresh:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"]
            try:
                done = subprocess.run(
                    [*pip, "--target", os.path.join(fresh, "it"), f"pyuwsgi=={WITHOUT_THREADS}"],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    timeout=120,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                pytest.skip("pip took too long")
            if done.returncode:
                why = done.stdout.decode("utf-8", "replace").strip().splitlines()
                pytest.skip(f"no pyuwsgi {WITHOUT_THREADS} for this Python: {why[-1] if why else 'pip failed'}")
            try:
                os.rename(os.path.join(fresh, "it"), str(there))
            except OSError:
                assert there.exists()  # another worker of pytest-xdist was faster
    return str(there)
