"""Programs of test_warnings: ends during which `python -X dev` must print no warning."""

from __future__ import annotations

import gc
import os
import sys
import time
from typing import Any, Callable

from letterapp import Letter
from programs.common import API, main, make

kept: list[Any] = []  # until the interpreter ends: a manager, which knows the address of the API itself
options: dict[str, Any] = {}


def used(create: Callable[..., Letter] = make) -> Letter:
    """A client that has a connection. `Letter` in the place of `make` gives one that nothing else keeps."""
    letter = create("k", "" if kept else API, **options)
    letter.track("u", "E")
    assert letter.flush(60)
    return letter


def forked(create: Callable[..., Letter] = make) -> tuple[Letter, bool]:
    """A client that its process has used, and in which of the two processes this is: True in the child."""
    letter = used(create)
    pid = os.fork()
    if pid:
        assert os.waitpid(pid, 0)[1] == 0
    return letter, not pid


def end() -> None:
    make(**options).track("u", "E")


def end_with_a_connection() -> None:
    used()


def close() -> None:
    assert used().close()


def async_with() -> None:
    import asyncio

    async def run() -> None:
        # On a busy machine any step may take long, and asyncio would log that in its development mode.
        asyncio.get_running_loop().slow_callback_duration = 60.0
        async with make(**options) as letter:
            letter.track("u", "E")
            assert await letter.aflush(60)

    asyncio.run(run())


def dropped() -> None:
    letter = used(Letter)
    del letter
    gc.collect()


def of_a_function() -> None:
    used(Letter)


def exception() -> None:
    used()
    raise SystemExit(0)


def unused_in_a_child() -> None:
    forked()


def used_in_a_child() -> None:
    letter, is_child = forked()
    if is_child:
        letter.track("u", "E")


def dropped_in_a_child() -> None:
    letter, is_child = forked(Letter)
    if not is_child:
        kept.append(letter)


def os_exit_in_a_child() -> None:
    letter, is_child = forked()
    if is_child:
        letter.track("u", "E")
        os._exit(0)


def process() -> None:
    import multiprocessing

    letter = used()
    context = multiprocessing.get_context("fork")
    job = context.Process(target=letter.track, args=("u", "E"))
    job.start()
    job.join()


def send() -> None:
    assert make(**options).send("a@b", "s", text="t")


def by(way: str, name: str) -> None:
    """Another of these programs, with a client that has its events delivered in another ``way``."""
    if way == "manager":
        from letterapp.relay import SenderManager

        manager = SenderManager("k", API)
        manager.start()
        kept.append(manager)
        options.update(relay=manager.queue)
    elif way == "relay":
        options.update(relay=True)
    else:
        options.update(spool="spool")
    globals()[name]()


def unreachable(last: str, arrives: str = "") -> None:
    """``arrives``: wait until the test says that the request has arrived."""
    letter = make(on_error=lambda error: None, exit_timeout=0.3)
    letter.track("u", "E")
    if arrives:
        _wait_for("arrived")
    if last == "close":
        letter.close()
    elif last == "close at once":
        letter.close(0)


def late_answer() -> None:
    letter = make(on_error=lambda error: None, exit_timeout=0.3)
    letter.track("u", "E")
    _wait_for("arrived")
    assert not letter.close(0)
    open("given up", "w").close()
    while len(sys._current_frames()) > 1:  # the sender's thread has its answer, and leaves
        time.sleep(0.01)


def _wait_for(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(0.01)


main(globals())
