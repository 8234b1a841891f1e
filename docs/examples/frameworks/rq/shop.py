"""Jobs that run again if their process is killed: `rq worker`, and `python shop.py 3` to enqueue three.

With PAYMENTS_URL they call the service there; without it nobody is charged.
"""

import os
import sys
import urllib.request

from redis import Redis
from rq import Queue, Retry

from letterapp import Letter, message_id

PAYMENTS = os.environ.get("PAYMENTS_URL")
letter = Letter()  # LETTER_API_KEY


def charge(order: int, user: str) -> None:
    # The job may run twice. The second run's events have the same ids, so the API counts them once.
    letter.track(user, "Charge Started", {"order": order}, message_id=message_id("Charge Started", order))
    if PAYMENTS:
        urllib.request.urlopen(f"{PAYMENTS}/charge/{order}", b"").read()
    letter.track(user, "Order Charged", {"order": order}, message_id=message_id("Order Charged", order))
    # RQ runs each job in a new process that imports this module. If that process is killed, nobody else has its events.
    if not letter.flush():
        raise RuntimeError("the API did not take this job's events in time: run it again")


if __name__ == "__main__":  # python shop.py 3: enqueue the orders 0, 1, 2
    import shop  # the job's name is shop.charge, and not __main__.charge

    queue = Queue(connection=Redis.from_url(os.environ.get("REDIS_URL", "redis://localhost:6379/0")))
    for number in range(int(sys.argv[1])):
        queue.enqueue(shop.charge, number, f"user_{number}", retry=Retry(max=3))
