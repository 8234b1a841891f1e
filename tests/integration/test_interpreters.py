"""Interpreters in one process: `concurrent.interpreters` and `InterpreterPoolExecutor`, public from Python 3.14 on.

Responsible for: a client in each of them, and what becomes of its events when they end. Not responsible for uWSGI's
(test_uwsgi.py), of which nobody announces the end.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from harness import run, whose

pytestmark = pytest.mark.skipif(sys.version_info < (3, 14), reason="concurrent.interpreters is new in 3.14")

WORK = """
from letterapp import Letter
letter = Letter("k", {api!r}, flush_interval={interval})
for serial in range(5):
    letter.track("interpreter {number}", "Worked", {{"serial": serial}})
"""
COUNT = 3
each_interval = pytest.mark.parametrize("interval", [0, 3600], ids=["sent at once", "waiting"])


@each_interval
@pytest.mark.parametrize("ends", ["closed", "with the process"])
def test_an_interpreter_s_end_delivers_what_waits(interval: float, ends: str, letter_api: Any, tmp_path: Path) -> None:
    code = f"""
    from concurrent import interpreters
    made = []
    for number in range({COUNT}):
        made.append(interpreters.create())
        made[-1].exec({WORK!r}.format(api=API, interval={interval}, number=number))
    if {ends == "closed"}:
        for one in made:
            one.close()
    letter = Letter("k", API)  # the first interpreter's, which has nothing to do with theirs
    work(letter, 5)
    """
    finished = run(code, letter_api.url, tmp_path)
    assert finished.code == 0 and "letterapp:" not in finished.output, finished
    each = {f"interpreter {number}": list(range(5)) for number in range(COUNT)}
    assert whose(letter_api) == {"program": list(range(5)), **each}, finished
    assert letter_api.repeated() == {}


JOB = """
import os
from letterapp import Letter

letter = Letter("k", os.environ["TEST_API"], flush_interval=float(os.environ["INTERVAL"]))

def job(serial):
    letter.track("job", "Worked", {"serial": serial})
    return serial
"""


@each_interval
def test_an_interpreter_pool_executor(interval: float, letter_api: Any, tmp_path: Path) -> None:
    (tmp_path / "jobs.py").write_text(JOB)
    code = """
    from concurrent.futures import InterpreterPoolExecutor
    import jobs
    with InterpreterPoolExecutor(2) as pool:
        assert list(pool.map(jobs.job, range(20))) == list(range(20))
    jobs.job(20)
    """
    finished = run(code, letter_api.url, tmp_path, INTERVAL=str(interval))
    assert finished.code == 0 and not finished.output, finished
    assert sorted(whose(letter_api)["job"]) == list(range(21))
