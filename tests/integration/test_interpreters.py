"""Interpreters in one process: `concurrent.interpreters` and `InterpreterPoolExecutor`, public from Python 3.14 on.

Responsible for: a client in each of them, and what becomes of its events when they end. Not responsible for uWSGI's
(test_uwsgi.py), of which nobody announces the end.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import run, whose
from programs import interpreters

pytestmark = pytest.mark.skipif(sys.version_info < (3, 14), reason="concurrent.interpreters is new in 3.14")

each_interval = pytest.mark.parametrize("interval", [0, 3600], ids=["sent at once", "waiting"])


@each_interval
@pytest.mark.parametrize("ends", ["closed", "with the process"])
def test_the_end_of_an_interpreter_delivers_waiting_events(
    interval: float, ends: str, letter_api: Any, tmp_path: Path
) -> None:
    finished = run(interpreters.created, letter_api.url, tmp_path, interval, ends)
    assert finished.code == 0 and "letterapp:" not in finished.output, finished
    each = {f"interpreter {number}": list(range(5)) for number in range(interpreters.INTERPRETERS)}
    assert whose(letter_api) == {"program": list(range(5)), **each}, finished
    assert letter_api.repeated() == {}


@each_interval
def test_an_interpreter_pool_executor(interval: float, letter_api: Any, tmp_path: Path) -> None:
    options = json.dumps({"flush_interval": interval})
    finished = run(interpreters.pool, letter_api.url, tmp_path, TEST_OPTIONS=options)
    assert finished.code == 0 and not finished.output, finished
    assert sorted(whose(letter_api)["job"]) == list(range(21))
