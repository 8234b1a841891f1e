"""Programs whose clients append to a stream in Redis."""

from __future__ import annotations

import os

from programs.common import child, main, make, work


def forks(url: str) -> None:
    """Parent, child and grandchild use one client, before and after each fork."""
    letter = make(relay=url)
    work(letter, 100)
    assert letter.flush(20)

    def grandchild() -> None:
        work(letter, 100, start=2000)
        assert letter.flush(20)

    def first() -> None:
        work(letter, 100, start=1000)
        assert os.waitpid(child(grandchild), 0)[1] == 0
        assert letter.flush(20)

    pid = child(first)
    work(letter, 100, start=100)
    assert letter.flush(20)
    assert os.waitpid(pid, 0)[1] == 0


main(globals())
