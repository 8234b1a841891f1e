"""The `repr` of clients and settings, as crash reporters, debuggers and loggers ask for it at any moment."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from harness import run
from programs import reprs

from letterapp import Letter, LetterError
from letterapp._config import Settings
from letterapp.relay import SenderManager


def test_objects_whose_constructor_failed_have_a_repr() -> None:
    assert repr(Letter.__new__(Letter)) == "<Letter, not initialised>"
    assert "None" in repr(Settings.__new__(Settings))
    for make in (lambda: Letter("secret", flush_at=0), lambda: SenderManager("secret", flush_at=0)):
        with pytest.raises(LetterError) as caught:
            make()
        trace = caught.value.__traceback__
        shown = []
        while trace is not None:
            shown += [repr(value) for name, value in trace.tb_frame.f_locals.items() if name == "self"]
            trace = trace.tb_next
        assert len(shown) >= 2 and not any("secret" in text for text in shown)


def test_repr_takes_no_lock_and_starts_nothing(make: Any, letter_api: Any) -> None:
    letter = make(flush_interval=30)
    letter.track("u", "E")
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with letter._delivery._queue._lock:
            held.set()
            over.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(60)
        assert "waiting=1 delivered=0 lost=0" in repr(letter)
    finally:
        over.set()
        thread.join()


@pytest.mark.skipif(sys.platform == "win32", reason="needs os.fork")
def test_repr_in_a_forked_child_creates_nothing(letter_api: Any, tmp_path: Path) -> None:
    assert run(reprs.in_a_child, letter_api.url, tmp_path).output == "fine\n"
