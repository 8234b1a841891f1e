"""asyncio: a call never blocks the loop, and the loop continues while a flush or a close is awaited."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Iterator

import pytest
from harness import DEADLINE, eventually, run, start, whose
from programs import loops

from letterapp import Letter, LetterError
from letterapp.testing import Hold


def track(letter: Letter, count: int) -> None:
    for serial in range(count):
        letter.track("u", "e", {"serial": serial})


async def ticks_while(awaitable: Any, until: Any) -> int:
    """How often the loop turned while ``awaitable`` ran; ``until`` is called after 20 turns, and must let it end."""
    task = asyncio.ensure_future(awaitable)
    ticks = 0
    while not task.done():
        ticks += 1
        await asyncio.sleep(0)
        if ticks == 20:
            until()
        if ticks > 20:
            await asyncio.sleep(0.001)
    await task
    return ticks


def test_the_loop_runs_while_aflush_waits(letter_api: Any) -> None:
    hold = Hold()
    letter_api.plan(hold)

    async def main() -> None:
        async with Letter("k", letter_api.url, flush_at=1) as letter:
            track(letter, 10)
            assert await ticks_while(letter.aflush(DEADLINE), hold.release) >= 20
            assert letter.stats()["delivered"] == 10

    asyncio.run(main())


def test_the_loop_runs_while_aclose_waits(letter_api: Any) -> None:
    hold = Hold()
    letter_api.plan(hold)

    async def main() -> None:
        letter = Letter("k", letter_api.url, flush_at=1)
        track(letter, 10)
        assert await ticks_while(letter.aclose(DEADLINE), hold.release) >= 20
        assert letter.stats()["delivered"] == 10

    asyncio.run(main())


def test_async_with_delivers_all(letter_api: Any) -> None:
    async def main() -> None:
        async with Letter("k", letter_api.url, flush_interval=30) as letter:
            track(letter, 40)
        assert letter_api.distinct == 40

    asyncio.run(main())


def test_aflush_returns_false_at_its_timeout(letter_api: Any) -> None:
    hold = Hold()
    letter_api.plan(hold)

    async def main() -> None:
        letter = Letter("k", letter_api.url, flush_at=1)
        track(letter, 1)
        assert await letter.aflush(0.05) is False
        hold.release()
        assert await letter.aclose() is True

    asyncio.run(main())


@contextlib.contextmanager
def no_executor_to_be_had(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """While the application uses all threads of its loop's executor."""
    over = threading.Event()
    executor = ThreadPoolExecutor(1)
    executor.submit(over.wait, 2 * DEADLINE)
    loop.set_default_executor(executor)
    try:
        yield
    finally:
        over.set()


@pytest.mark.parametrize("wait", ["aflush", "aclose", "async with"])
def test_waiting_uses_no_thread_of_the_loops_executor(wait: str, letter_api: Any) -> None:
    async def main() -> None:
        with no_executor_to_be_had(asyncio.get_running_loop()):
            letter = Letter("k", letter_api.url, flush_interval=30)
            track(letter, 10)
            if wait == "async with":
                await asyncio.wait_for(letter.__aexit__(None, None, None), DEADLINE / 4)
            else:
                assert await asyncio.wait_for(getattr(letter, wait)(DEADLINE), DEADLINE / 4) is True
            assert letter.stats()["delivered"] == 10

    asyncio.run(main())


def test_the_time_of_each_aflush_counts_from_its_call(letter_api: Any) -> None:
    hold = Hold()
    letter_api.rule = lambda request: hold

    async def main() -> None:
        with no_executor_to_be_had(asyncio.get_running_loop()):
            letter = Letter("k", letter_api.url, flush_at=1)
            track(letter, 1)
            began = time.monotonic()
            answers = await asyncio.gather(*(letter.aflush(1) for _ in range(60)))
            assert answers == [False] * 60
            assert 0.99 <= time.monotonic() - began < 20  # one after the other they would take a minute
            hold.release()
            assert await letter.aclose(DEADLINE) is True

    asyncio.run(main())


def test_a_cancelled_aflush_returns_at_once(letter_api: Any) -> None:
    hold = Hold()
    letter_api.plan(hold)
    letter = Letter("k", letter_api.url, flush_at=1)

    async def main() -> None:
        track(letter, 1)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(letter.aflush(10 * DEADLINE), 0.05)
        flush = asyncio.ensure_future(letter.aflush(10 * DEADLINE))
        await asyncio.sleep(0)
        flush.cancel()
        with pytest.raises(asyncio.CancelledError):
            await flush

    began = time.monotonic()
    asyncio.run(main())  # whose end waits for the executor's threads
    assert time.monotonic() - began < DEADLINE
    hold.release()
    assert letter.close(DEADLINE) is True


def test_a_cancelled_aclose_still_closes(letter_api: Any) -> None:
    hold = Hold()
    letter_api.plan(hold)
    letter = Letter("k", letter_api.url, flush_at=1, on_error=lambda error: None)

    async def main() -> None:
        track(letter, 3)
        close = asyncio.ensure_future(letter.aclose(DEADLINE))
        await asyncio.sleep(0)  # it has a thread from then on
        close.cancel()
        with pytest.raises(asyncio.CancelledError):
            await close

    asyncio.run(main())

    def refused() -> int:
        track(letter, 1)
        return int(letter.stats()["lost"].get("closed", 0))

    assert eventually(refused, bool)
    hold.release()
    assert letter_api.wait_for(3)
    assert letter.close(DEADLINE) is True


def test_a_wrong_timeout_is_an_error_and_so_is_one_of_the_call_itself(letter_api: Any) -> None:
    class Broken(Letter):
        def flush(self, timeout: float | None = None) -> bool:
            raise ZeroDivisionError("mine")

    async def main() -> None:
        async with Broken("k", letter_api.url) as letter:
            with pytest.raises(LetterError, match="timeout"):
                await letter.aflush(-1)
            with pytest.raises(LetterError, match="timeout"):
                await letter.aclose("soon")  # type: ignore[arg-type]
            with pytest.raises(ZeroDivisionError):
                await letter.aflush()

    asyncio.run(main())


def test_without_threads_the_call_itself_waits(
    letter_api: Any, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    def none(*_: Any) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", none)

    async def main() -> None:
        letter = Letter("k", letter_api.url)
        track(letter, 3)
        assert await letter.aflush(DEADLINE) is True and await letter.aclose(DEADLINE) is True
        assert letter.stats()["delivered"] == 3

    asyncio.run(main())


def test_a_full_queue_never_blocks_the_loop_even_with_block(letter_api: Any) -> None:
    hold = Hold()
    letter_api.plan(hold)
    errors: list[LetterError] = []

    async def main() -> None:
        # With `timeout` this long the test would fail by its deadline, were the call to wait.
        options: Any = {"overflow": "block", "max_queue_events": 1, "timeout": 10 * DEADLINE, "on_error": errors.append}
        letter = Letter("k", letter_api.url, flush_at=1, **options)
        track(letter, 5)
        assert letter.stats()["lost"] == {"overflow": 4}
        hold.release()
        await letter.aclose()

    asyncio.run(asyncio.wait_for(main(), DEADLINE))


# After a signal of `exit_signals` that the program's own loop survives.


def survive(letter_api: Any, tmp_path: Path, way: str = "loop", last: str = "end") -> None:
    hold = Hold()
    with start(loops.survives, letter_api.url, tmp_path, way, last) as program:
        assert eventually((tmp_path / "held").exists, lambda there: there or program.process.poll() is not None)
        letter_api.rule = lambda request: hold
        (tmp_path / "hold").touch()
        tracked = eventually((tmp_path / "tracked").exists, bool, DEADLINE / 2)
        letter_api.rule = None
        hold.release()
        finished = program.finish()
    assert (finished.code, finished.output) == (0, "{}\n"), finished
    assert tracked, "the loop stood still"
    assert whose(letter_api) == {"program": list(range(24 if way == "thread" else 23))}


@pytest.mark.parametrize("last", ["end", "close", "flush"])
def test_after_a_signal_that_the_loop_survives_no_call_blocks_it_and_all_events_arrive(
    last: str, letter_api: Any, tmp_path: Path
) -> None:
    survive(letter_api, tmp_path, last=last)


def test_after_the_signal_a_call_in_another_thread_waits_for_its_event(letter_api: Any, tmp_path: Path) -> None:
    survive(letter_api, tmp_path, "thread")


def test_after_the_signal_no_call_in_the_loop_waits_for_room_or_a_spool(letter_api: Any, tmp_path: Path) -> None:
    survive(letter_api, tmp_path, "spool")


@pytest.mark.parametrize("answers", [True, False], ids=["delivers", "reports"])
def test_a_program_that_raises_its_signal_again_as_uvicorn_does(answers: bool, letter_api: Any, tmp_path: Path) -> None:
    hold = Hold()
    with start(loops.raises_again, letter_api.url, tmp_path, 60 if answers else 0.3) as program:
        assert eventually((tmp_path / "held").exists, lambda there: there or program.process.poll() is not None)
        letter_api.rule = lambda request: hold
        (tmp_path / "hold").touch()
        assert eventually((tmp_path / "tracked").exists, bool, DEADLINE / 2), "the loop stood still"
        if answers:
            letter_api.rule = None
            hold.release()
        finished = program.finish()
    hold.release()
    assert (finished.code, finished.output) == (-signal.SIGTERM, "" if answers else "exit 20\n"), finished
    if answers:
        assert whose(letter_api) == {"program": list(range(23))}


def test_events_tracked_in_an_exit_callbacks_loop_are_sent(letter_api: Any, tmp_path: Path) -> None:
    finished = run(loops.loop_of_an_exit_callback, letter_api.url, tmp_path)
    assert finished.code == 0, finished
    assert whose(letter_api) == {"program": list(range(6))}
