"""Programs of test_interpreters. What runs in another interpreter is text there, or a module that it imports itself."""

from __future__ import annotations

from typing import Any

from programs.common import main, make, work

INTERPRETERS = 3
TRACKS = "from programs.common import make, work; work(make(flush_interval={}), 5, 'interpreter {}')"


def created(interval: str, ends: str) -> None:
    from concurrent import interpreters  # type: ignore[attr-defined]

    made: list[Any] = []
    for number in range(INTERPRETERS):
        made.append(interpreters.create())
        made[-1].exec(TRACKS.format(interval, number))
    if ends == "closed":
        for one in made:
            one.close()
    work(make(), 5)  # the first interpreter's, which has nothing to do with theirs


def pool() -> None:
    from concurrent.futures import InterpreterPoolExecutor  # type: ignore[attr-defined]

    from programs import jobs

    with InterpreterPoolExecutor(2) as executor:
        assert list(executor.map(jobs.job, range(20))) == list(range(20))
    jobs.job(20)


main(globals())
