"""Programs of test_survived_signals: signals of `exit_signals` that do not end them."""

from __future__ import annotations

import os
import signal

from programs.common import main, make, work


def twice(relay: str) -> None:
    signal.signal(signal.SIGTERM, lambda *_: None)
    letter = make(
        "test-key",
        exit_signals=(signal.SIGTERM,),
        flush_at=10,
        flush_interval=3600,
        exit_timeout=1,
        relay=relay or False,
    )
    for turn in range(2):
        start = 20 * turn
        work(letter, 1, start=start)
        os.kill(os.getpid(), signal.SIGTERM)
        work(letter, 1, start=start + 1)  # waits until `exit_timeout` is used up, because the API does not answer
        print("waited", flush=True)
        assert letter.flush()
        work(letter, 10, start=start + 2)
        assert letter.flush()
    print(letter.stats()["relayed"])


def long_ago() -> None:
    from letterapp._delivery import stages

    stages.SURVIVAL = 0.0
    signal.signal(signal.SIGTERM, lambda *_: None)
    letter = make(exit_signals=(signal.SIGTERM,), flush_at=10, flush_interval=3600)
    work(letter, 1)
    os.kill(os.getpid(), signal.SIGTERM)
    work(letter, 10, start=1)
    assert letter.flush()


def first_process(relay: str) -> None:
    letter = make("test-key", exit_signals=(signal.SIGTERM,), relay=relay or False)
    work(letter, 5)
    assert os.getpid() == 1
    os.kill(1, signal.SIGTERM)
    work(letter, 5, start=5)
    assert letter.flush()
    os.kill(1, signal.SIGTERM)
    work(letter, 5, start=10)
    assert letter.flush()
    print(letter.stats()["relayed"], letter.stats()["lost"])


main(globals())
