"""A job on Dask's workers: `python score.py`. With DASK_SCHEDULER_ADDRESS it runs on a cluster that exists."""

import os
import urllib.request
from typing import List, Tuple

from dask.distributed import Client, LocalCluster

from letterapp import Letter, message_id

Row = Tuple[int, str]
DAY = "2026-01-31"  # which run this is: the next day's events are others


def score(rows: List[Row], letter: Letter) -> int:
    """Runs on a worker. If the worker is killed, Dask runs it again, on another one, from the first row."""
    for order, user in rows:
        letter.track(user, "Order Scored", {"order": order}, message_id=message_id("Order Scored", DAY, order))
        urllib.request.urlopen(os.environ["SCORES_URL"] + f"/score/{order}", b"").read()
    # Nobody may run a task again that has returned. So let it return when its events have arrived.
    if not letter.flush():
        raise RuntimeError("the API did not take this task's events in time: run it again")
    return len(rows)


def main() -> None:
    letter = Letter()  # LETTER_API_KEY. It is pickled with the tasks
    rows = [(order, f"user_{order % 7}") for order in range(40)]
    cluster = None
    if "DASK_SCHEDULER_ADDRESS" not in os.environ:
        cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with Client(cluster or os.environ["DASK_SCHEDULER_ADDRESS"]) as dask:
        parts = [rows[start : start + 5] for start in range(0, len(rows), 5)]
        scored = sum(dask.gather(dask.map(score, parts, letter=letter, retries=3)))
    if cluster is not None:
        cluster.close()
    letter.track("analysts", "Scores Done", {"orders": scored}, message_id=message_id("Scores Done", DAY))


if __name__ == "__main__":
    main()
