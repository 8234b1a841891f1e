"""A job on Spark's Python workers: `spark-submit score.py`, or `python score.py`."""

import os
import urllib.request
from typing import Iterable, Iterator, Tuple

from pyspark.sql import SparkSession

from letterapp import Letter, message_id

Row = Tuple[int, str]
DAY = "2026-01-31"  # which run this is: the next day's events are others


def main() -> None:
    letter = Letter()  # LETTER_API_KEY. It travels with `score`
    scores_url = os.environ["SCORES_URL"]

    def score(rows: Iterable[Row]) -> Iterator[int]:
        """Runs on a worker. If the worker is killed, Spark runs it again, on another one, from the first row."""
        count = 0
        for order, user in rows:
            letter.track(user, "Order Scored", {"order": order}, message_id=message_id("Order Scored", DAY, order))
            urllib.request.urlopen(f"{scores_url}/score/{order}", b"").read()
            count += 1
        # A task that has returned is not run again, and Spark kills its workers at the end without exit callbacks. So
        # let the task return when its events have arrived.
        if not letter.flush():
            raise RuntimeError("the API did not take this task's events in time: run it again")
        yield count

    # local[2,4]: two workers, each task at most four times. A cluster's default is four times, that of local[2] once.
    spark = SparkSession.builder.master(os.environ.get("SPARK_MASTER", "local[2,4]")).getOrCreate()
    rows = [(order, f"user_{order % 7}") for order in range(40)]
    scored = spark.sparkContext.parallelize(rows, 8).mapPartitions(score).sum()
    spark.stop()
    letter.track("analysts", "Scores Done", {"orders": scored}, message_id=message_id("Scores Done", DAY))


if __name__ == "__main__":
    main()
