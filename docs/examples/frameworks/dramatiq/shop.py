"""Tasks that Dramatiq runs: `dramatiq shop`."""

import os
import sys

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from letterapp import Letter

dramatiq.set_broker(RedisBroker(url=os.environ.get("REDIS_URL", "redis://localhost:6379/0")))

letter = Letter()  # LETTER_API_KEY


@dramatiq.actor
def charge(order: int, user: str) -> None:
    letter.track(user, "Order Charged", {"order": order})


if __name__ == "__main__":  # python shop.py 3: enqueue the orders 0, 1, 2
    for number in range(int(sys.argv[1])):
        charge.send(number, f"user_{number}")
