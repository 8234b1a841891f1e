"""Tasks that run again if their worker is killed: `celery -A shop worker`, and `python shop.py 3` to enqueue three.

With PAYMENTS_URL they call the service there; without it nobody is charged.
"""

import os
import sys
import urllib.request

from celery import Celery

from letterapp import Letter, message_id

app = Celery("shop", broker=os.environ.get("REDIS_URL", "redis://localhost:6379/0"))
app.conf.task_acks_late = True  # a task is taken from the queue when it has ended, and not when it begins,
app.conf.task_reject_on_worker_lost = True  # nor when its worker is killed

PAYMENTS = os.environ.get("PAYMENTS_URL")
letter = Letter()  # LETTER_API_KEY. Created in Celery's parent process, used in its children


@app.task
def charge(order: int, user: str) -> None:
    # The task may run twice. The second run's events have the same ids, so the API counts them once.
    letter.track(user, "Charge Started", {"order": order}, message_id=message_id("Charge Started", order))
    if PAYMENTS:
        urllib.request.urlopen(f"{PAYMENTS}/charge/{order}", b"").read()
    letter.track(user, "Order Charged", {"order": order}, message_id=message_id("Order Charged", order))


if __name__ == "__main__":  # python shop.py 3: enqueue the orders 0, 1, 2
    for number in range(int(sys.argv[1])):
        charge.delay(number, f"user_{number}")
