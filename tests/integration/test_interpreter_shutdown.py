"""Calls in a finalizer while Python removes its modules: nothing can be sent any more, and nothing may hang."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from harness import run
from programs import shutdown

from letterapp.testing import Hold

pytestmark = pytest.mark.skipif(sys.implementation.name == "pypy", reason="PyPy removes no modules")


def test_a_call_in_a_finalizer_at_shutdown_does_not_wait_and_is_reported(letter_api: Any, tmp_path: Path) -> None:
    finished = run(shutdown.tracks, letter_api.url, tmp_path)
    reported, last = finished.output.splitlines()
    assert reported == "1 event given up: the interpreter is shutting down, and nothing can be sent any more"
    assert last == "(True, True) True {'exit': 1}", finished
    assert [item["userId"] for item in letter_api.events] == ["program"]


@pytest.mark.parametrize("call", shutdown.CALLS)
def test_impossible_calls_in_a_finalizer_at_shutdown_raise_a_letter_error(
    call: str, letter_api: Any, tmp_path: Path
) -> None:
    finished = run(shutdown.raises, letter_api.url, tmp_path, call)
    assert finished.output == "the interpreter is shutting down, and nothing can be sent any more", finished


def test_a_flush_in_a_finalizer_at_shutdown_does_not_wait_for_a_frozen_thread(letter_api: Any, tmp_path: Path) -> None:
    hold = Hold()
    letter_api.rule = lambda request: hold
    finished = run(shutdown.waits_for_a_frozen_thread, letter_api.url, tmp_path)
    hold.release()
    assert finished.output == "True\n", finished
