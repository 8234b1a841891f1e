"""Programs of test_asyncio: event loops that survive a signal of `exit_signals`."""

from __future__ import annotations

import asyncio
import atexit
import os
import signal
from pathlib import Path
from typing import Any

from letterapp import Letter, LetterError
from programs.common import main, make, work


async def _track_while_the_api_stands_still(letter: Letter) -> None:
    Path("held").touch()
    while not os.path.exists("hold"):
        await asyncio.sleep(0.01)
    work(letter, 20, start=3)
    Path("tracked").touch()


def survives(way: str, last: str) -> None:
    options: dict[str, Any] = {"spool": "spool", "overflow": "block"} if way == "spool" else {}

    async def run() -> Letter:
        loop = asyncio.get_running_loop()
        came = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, came.set)
        letter = make(flush_at=1, exit_signals=(signal.SIGTERM,), exit_timeout=60, **options)
        work(letter, 3)
        os.kill(os.getpid(), signal.SIGTERM)
        assert letter.stats()["delivered"] == 3  # by the handler
        await came.wait()
        await _track_while_the_api_stands_still(letter)
        await asyncio.sleep(0)
        if way == "thread":
            await loop.run_in_executor(None, work, letter, 1, "program", 23)
            assert letter.stats()["delivered"] == 24
        print(letter.stats()["lost"], flush=True)
        return letter

    letter = asyncio.run(run())
    if last == "close":
        letter.close()
    elif last == "flush":
        letter.flush()


def raises_again(exit_timeout: str) -> None:
    def on_error(error: LetterError) -> None:
        print(error.cause, error.lost, flush=True)

    async def run() -> None:
        came = asyncio.Event()
        before = signal.signal(signal.SIGTERM, lambda number, frame: came.set())
        options: dict[str, Any] = {"exit_timeout": float(exit_timeout), "on_error": on_error}
        letter = make(flush_at=1, exit_signals=(signal.SIGTERM,), **options)
        work(letter, 3)
        os.kill(os.getpid(), signal.SIGTERM)
        await came.wait()
        await _track_while_the_api_stands_still(letter)
        signal.signal(signal.SIGTERM, before)
        signal.raise_signal(signal.SIGTERM)

    asyncio.run(run())


def loop_of_an_exit_callback() -> None:
    async def last() -> None:
        work(letter, 5, start=1)

    atexit.register(lambda: asyncio.run(last()))  # after the client's own end
    letter = make()
    work(letter, 1)


main(globals())
