"""Programs that continue after a signal of `exit_signals`: they send batches, and use their relay, as before it.

Responsible for: an application's own handler that returns, the first process of a container. Not responsible for: event
loops (test_asyncio.py), signals that end a process (test_ends.py).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from harness import Program, environment, eventually, run, start, whose
from programs import survivors
from relayed import KEY, Runtime, own_runtime  # noqa: F401  (a fixture)

from letterapp.testing import Hold

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Unix")


def _serials(request: Any) -> list[int]:
    return [item["properties"]["serial"] for item in json.loads(request.body)["batch"]]


def _survive(program: Program, letter_api: Any) -> list[list[int]]:
    """Let a program survive two signals. The API does not answer at the first event after each, until it is given up.

    Returns the serial numbers of each request.
    """
    held = {serial: Hold() for serial in (1, 21)}

    letter_api.rule = lambda request: held.get(_serials(request)[0])
    for turn, hold in enumerate(held.values(), 1):
        assert eventually(lambda: program.output.count("waited"), turn.__eq__) == turn, program.output
        hold.release()
    finished = program.finish()
    assert finished.code == 0, finished
    assert whose(letter_api) == {"program": [*range(12), *range(20, 32)]}
    return [_serials(request) for request in letter_api.requests]


@pytest.mark.slow
def test_a_program_that_survives_a_signal_sends_batches_again(letter_api: Any, tmp_path: Path) -> None:
    with start(survivors.twice, letter_api.url, tmp_path, "") as program:
        requests = _survive(program, letter_api)
    assert [len(serials) for serials in requests] == [1, 1, 10] * 2


@pytest.mark.slow
def test_a_program_that_survives_a_signal_uses_its_relay_again(
    runtime: Runtime, letter_api: Any, tmp_path: Path
) -> None:
    with runtime.keep(), start(survivors.twice, letter_api.url, tmp_path, runtime.socket) as program:
        _survive(program, letter_api)
        assert int(program.output.splitlines()[-1]) >= 22


@pytest.mark.slow
def test_long_after_a_signal_that_a_program_survived_it_sends_batches_again(letter_api: Any, tmp_path: Path) -> None:
    finished = run(survivors.long_ago, letter_api.url, tmp_path)
    assert finished.code == 0, finished
    assert [len(_serials(request)) for request in letter_api.requests] == [1, 10]


def _can_be_first() -> bool:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not hasattr(os, "geteuid") or not _can_be_first(), reason="needs root and process namespaces")
@pytest.mark.parametrize("relay", [False, True], ids=["alone", "with a relay"])
def test_the_first_process_of_a_container_continues_after_a_signal_that_the_kernel_ignores(
    relay: bool, runtime: Runtime, letter_api: Any, tmp_path: Path
) -> None:
    python = [
        sys.executable,
        "-m",
        survivors.__name__,
        survivors.first_process.__name__,
        runtime.socket if relay else "",
    ]
    command = ["unshare", "--pid", "--fork", *python]
    with ExitStack() as stack:
        if relay:
            stack.enter_context(runtime.keep())
        program = stack.enter_context(Program(command, environment(letter_api.url), tmp_path))
        finished = program.finish()
    assert finished.code == 0 and finished.output == f"{15 if relay else 0} {{}}\n", finished
    assert whose(letter_api) == {"program": list(range(15))}
