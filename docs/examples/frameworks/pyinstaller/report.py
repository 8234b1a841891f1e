"""A program that is shipped as one file: `pyinstaller --onefile report.py`."""

import multiprocessing

from letterapp import Letter, message_id


def count(order: int) -> int:
    letter.track(f"user_{order % 7}", "Order Counted", {"order": order}, message_id=message_id("Order Counted", order))
    return order


letter = Letter()  # LETTER_API_KEY. Workers start this program again, up to freeze_support


def main() -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        counted = pool.map(count, range(20))
        pool.close()  # let the workers end, which sends what they have queued
        pool.join()
    letter.track("analysts", "Orders Counted", {"count": len(counted)})


if __name__ == "__main__":
    multiprocessing.freeze_support()  # else each worker of a frozen program would run main()
    main()
