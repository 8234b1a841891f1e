"""A pool of multiprocessing whose workers call `look`.

It gets two jobs, and the first stays until its worker is killed: a worker that is killed while it waits for a job may
hold the queue's lock.
"""

from __future__ import annotations

import multiprocessing

from programs.common import stay
from programs.look import look


def job() -> None:
    if not look():
        stay()


if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(1) as pool:
        pool.apply_async(job)
        pool.apply(job)
        stay()
