"""``multiprocessing`` and ``concurrent.futures``: workers by each start method, and each way in which they end."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
from typing import Any

METHODS = ("fork", "spawn", "forkserver")
TITLES = {
    **{f"process-{method}": f"8 jobs, a Process each, {method}" for method in METHODS},
    **{f"pool-{method}-close": f"Pool(4), 40 jobs, {method}, closed and joined" for method in METHODS},
    **{f"pool-{method}-terminate": f"`with Pool(4)`, 40 jobs, {method}: SIGTERM at its end" for method in METHODS},
    "pool-recycle": "Pool(4), 80 jobs, each worker replaced after 10 of them",
    "executor": "ProcessPoolExecutor(4), 40 jobs, fork",
}


def job(number: int) -> None:
    import desk

    desk.track(10)


def inside(name: str) -> None:
    import desk

    desk.track(10)
    kind, _, rest = name.partition("-")
    method, _, end = rest.partition("-")
    context: Any = multiprocessing.get_context(method if method in METHODS else "fork")
    if kind == "process":
        _processes(context)
    elif kind == "executor":
        with concurrent.futures.ProcessPoolExecutor(4, mp_context=context) as executor:
            list(executor.map(job, range(40)))
    elif end == "terminate":
        with context.Pool(4) as pool:
            pool.map(job, range(40), chunksize=1)
    else:
        pool = context.Pool(4, maxtasksperchild=10 if method == "recycle" else None)
        pool.map(job, range(80 if method == "recycle" else 40), chunksize=1)
        pool.close()
        pool.join()
    desk.track(10)


def _processes(context: Any) -> None:
    processes = [context.Process(target=job, args=(number,)) for number in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def outside(stage: Any) -> None:
    stage.finish(stage.play(stage.name, patience=25.0))
