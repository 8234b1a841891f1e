"""A job on Ray's workers: `python score.py`. With RAY_ADDRESS it runs on a cluster that exists."""

import os
import urllib.request
from typing import List, Tuple

import ray

from letterapp import Letter, message_id

Row = Tuple[int, str]
DAY = "2026-01-31"  # which run this is: the next day's events are others


def main() -> None:
    letter = Letter()  # LETTER_API_KEY. It travels with `score`
    scores_url = os.environ["SCORES_URL"]

    @ray.remote(max_retries=3, retry_exceptions=True)
    def score(rows: List[Row]) -> int:
        """Runs on a worker. If the worker is killed, Ray runs it again, on another one, from the first row."""
        for order, user in rows:
            letter.track(user, "Order Scored", {"order": order}, message_id=message_id("Order Scored", DAY, order))
            urllib.request.urlopen(f"{scores_url}/score/{order}", b"").read()
        # A task that has returned is not run again, and Ray kills its workers at the end without exit callbacks. So
        # let the task return when its events have arrived.
        if not letter.flush():
            raise RuntimeError("the API did not take this task's events in time: run it again")
        return len(rows)

    ray.init(num_cpus=None if "RAY_ADDRESS" in os.environ else 2, include_dashboard=False)
    rows = [(order, f"user_{order % 7}") for order in range(40)]
    scored = sum(ray.get([score.remote(rows[start : start + 5]) for start in range(0, len(rows), 5)]))
    ray.shutdown()
    letter.track("analysts", "Scores Done", {"orders": scored}, message_id=message_id("Scores Done", DAY))


if __name__ == "__main__":
    main()
