"""asyncio: a call never blocks the loop, and the loop goes on while a flush or a close is awaited."""

from __future__ import annotations

import asyncio
from typing import Any

from harness import DEADLINE

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


def test_the_loop_goes_on_while_aflush_waits(letter_api: Any) -> None:
    hold = Hold()
    letter_api.plan(hold)

    async def main() -> None:
        async with Letter("k", letter_api.url, flush_at=1) as letter:
            track(letter, 10)
            assert await ticks_while(letter.aflush(DEADLINE), hold.release) >= 20
            assert letter.stats()["delivered"] == 10

    asyncio.run(main())


def test_the_loop_goes_on_while_aclose_waits(letter_api: Any) -> None:
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


def test_aflush_says_when_time_ran_out(letter_api: Any) -> None:
    hold = Hold()
    letter_api.plan(hold)

    async def main() -> None:
        letter = Letter("k", letter_api.url, flush_at=1)
        track(letter, 1)
        assert await letter.aflush(0.05) is False
        hold.release()
        assert await letter.aclose() is True

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
