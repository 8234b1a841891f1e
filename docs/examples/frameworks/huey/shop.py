"""Tasks that Huey runs: `huey_consumer shop.queue`, with `-k process` or with threads."""

import sys

from huey import SqliteHuey

from letterapp import Letter

queue = SqliteHuey(filename="tasks.db")

letter = Letter()  # LETTER_API_KEY


@queue.task()
def charge(order: int, user: str) -> None:
    letter.track(user, "Order Charged", {"order": order})


if __name__ == "__main__":  # python shop.py 3: enqueue the orders 0, 1, 2
    import shop  # the task's name is shop.charge, and not __main__.charge

    for number in range(int(sys.argv[1])):
        shop.charge(number, f"user_{number}")
