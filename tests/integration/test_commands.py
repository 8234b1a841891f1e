"""`python -m letterapp`: what holds for every command."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import DEADLINE, Program, environment

from letterapp.testing import Hold


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
def test_ctrl_c_ends_a_command_without_a_traceback(letter_api: Any, tmp_path: Path) -> None:
    hold = Hold()
    letter_api.plan(hold)
    command = [sys.executable, "-m", "letterapp", "doctor", "--timeout", "60"]
    with Program(command, environment(letter_api.url, LETTER_BASE_URL=letter_api.url), tmp_path) as program:
        assert hold.arrived.wait(DEADLINE)
        program.signal(signal.SIGINT)
        done = program.finish()
    hold.release()
    assert done.code == -signal.SIGINT and "Traceback" not in done.output, done
