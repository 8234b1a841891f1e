"""The client's own threads block all signals; the callbacks that they run, and what these start, do not.

Responsible for: signals that the program waits for, the signal mask of programs that are started on a client's thread.
Not responsible for: that a thread has gone after `flush` (test_forks.py), signals that end a process (test_ends.py).
"""

from __future__ import annotations

import signal
import sys
from typing import Any

import pytest
from harness import run
from programs import threads

from letterapp.testing import status

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.mark.parametrize("spool", ["", "spool"], ids=["memory", "spool"])
def test_a_signal_that_the_program_waits_for_is_not_received_by_our_threads(
    spool: str, letter_api: Any, tmp_path: Any
) -> None:
    finished = run(threads.awaited_signals, letter_api.url, tmp_path, spool)
    assert finished.output == f"{int(signal.SIGTERM)} {int(signal.SIGUSR1)} ", finished


def test_on_error_and_ssl_context_run_with_the_programs_signal_mask(letter_api: Any, tmp_path: Any) -> None:
    # Else whatever they start, which inherits it, could not be stopped.
    letter_api.rule = lambda request: status(404)
    finished = run(threads.masks_of_callbacks, letter_api.url, tmp_path)
    assert finished.output.startswith("True [") and finished.output.endswith("\nTrue\n"), finished


def test_a_report_within_a_report_restores_the_mask(letter_api: Any, tmp_path: Any) -> None:
    letter_api.rule = lambda request: status(400)
    finished = run(threads.report_within_a_report, letter_api.url, tmp_path)
    inside, outside = finished.output.splitlines()
    assert inside == outside, finished


def test_the_on_error_of_a_listener_runs_with_the_programs_signal_mask(letter_api: Any, tmp_path: Any) -> None:
    # Its thread starts the one that sends.
    letter_api.rule = lambda request: status(400)
    finished = run(threads.report_of_a_listener, letter_api.url, tmp_path)
    inside, outside = finished.output.splitlines()
    assert inside == outside, finished
