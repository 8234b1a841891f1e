"""The smallest application: `celery -A tasks worker`, and `python tasks.py` to run its task in that worker."""

import os

from celery import Celery

from letterapp import Letter

app = Celery("tasks", broker=os.environ.get("REDIS_URL", "redis://localhost:6379/0"))
letter = Letter()  # LETTER_API_KEY. Created in Celery's parent process, used in its children


@app.task
def complete_order(number: int, user: str) -> None:
    letter.track(user, "Order Completed", {"order": number})


if __name__ == "__main__":
    complete_order.delay(1, "user_42")
