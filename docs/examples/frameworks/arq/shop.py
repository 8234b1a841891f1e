"""Tasks that Arq runs: `arq shop.WorkerSettings`, and `python shop.py 3` to enqueue three.

With PAYMENTS_URL they call the service there; without it nobody is charged.
"""

import asyncio
import os
import sys
from typing import Any, Dict

import aiohttp
from arq import create_pool
from arq.connections import RedisSettings

from letterapp import Letter, message_id

PAYMENTS = os.environ.get("PAYMENTS_URL")
letter = Letter()  # LETTER_API_KEY


async def charge(context: Dict[str, Any], order: int, user: str) -> None:
    # The job may run twice. The second run's events have the same ids, so the API counts them once.
    # `track` returns in microseconds, so there is nothing to await.
    letter.track(user, "Charge Started", {"order": order}, message_id=message_id("Charge Started", order))
    if PAYMENTS:
        async with aiohttp.ClientSession() as session:
            await session.post(f"{PAYMENTS}/charge/{order}")
    letter.track(user, "Order Charged", {"order": order}, message_id=message_id("Order Charged", order))


class WorkerSettings:
    functions = (charge,)
    redis_settings = RedisSettings.from_dsn(os.environ.get("REDIS_URL", "redis://localhost:6379/0"))


async def main(count: int) -> None:
    pool = await create_pool(WorkerSettings.redis_settings)
    for order in range(count):
        await pool.enqueue_job("charge", order, f"user_{order}")
    await pool.aclose()


if __name__ == "__main__":  # python shop.py 3: enqueue the orders 0, 1, 2
    asyncio.run(main(int(sys.argv[1])))
