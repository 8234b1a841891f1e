"""Programs of test_reports and test_refusals: what is reported to `on_error`, and by which process."""

from __future__ import annotations

import os
import threading
import time

from letterapp import LetterError
from programs.common import child, main, make, work


def close_in_a_child() -> None:
    letter = make(flush_at=1, on_error=lambda error: None)
    work(letter, 1)
    while not os.path.exists("arrived"):
        time.sleep(0.01)
    assert letter.close(0) is False
    pid = child(lambda: 0 if letter.close() else 1)
    assert os.waitpid(pid, 0)[1] == 0


def report_that_tracks() -> None:
    def on_error(error: LetterError) -> None:
        for _ in range(3):
            letter.track("u", "Lost", {"serial": error.lost})

    letter = make(on_error=on_error, exit_timeout=30)
    work(letter, 5)


def fork_in_on_error() -> None:
    parent = os.getpid()

    def on_error(error: LetterError) -> None:
        print(os.getpid() == parent, error.events[0]["event"], flush=True)
        if error.events[0]["event"] == "First":
            pid = os.fork()
            if pid:
                assert os.waitpid(pid, 0)[1] == 0
            else:
                letter.track("u", "Of the child")
                letter.track("u", "Of the child", {"n": object()})
                os._exit(0)

    letter = make(on_error=on_error)
    letter.track("u", "First", {"n": object()})
    letter.track("u", "Second", {"n": object()})


def refused_key(spool: str) -> None:
    reported, is_reported = [], threading.Event()

    def tell(error: LetterError) -> None:
        reported.append(error.cause)
        is_reported.set()

    letter = make("test-key", spool=spool, exit_timeout=0.1, on_error=tell)
    work(letter, 300)
    assert is_reported.wait(60)
    print(letter.flush(0.2), letter.close(0.2), reported, letter.stats()["lost"])


main(globals())
