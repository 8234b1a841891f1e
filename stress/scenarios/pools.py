"""``multiprocessing`` and ``concurrent.futures``: workers of each start method, and each way in which they end."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..scenario_run import ScenarioRun

METHODS = ("fork", "spawn", "forkserver")
TITLES = {
    **{f"process-{method}": f"8 jobs, a Process each, {method}" for method in METHODS},
    **{f"pool-{method}-close": f"Pool(4), 40 jobs, {method}, closed and joined" for method in METHODS},
    "pool-fork-terminate": "`with Pool(4)`, 40 jobs, fork: SIGTERM at its end",
    "pool-spawn-terminate": "the same, spawn; spool= where it exists, because no memory is shared",
    "pool-forkserver-terminate": "the same, forkserver; spool= where it exists",
    "pool-recycle": "Pool(4), 80 jobs, each worker replaced after 10 of them",
    "executor": "ProcessPoolExecutor(4), 40 jobs, fork",
    "broken-executor": "the same 5 times, and a job that kills its worker: the pool is broken, the program continues",
}


def job(number: int) -> None:
    import tracker

    tracker.track(10)


def fatal_job(number: int) -> None:
    job(number)
    os.kill(os.getpid(), signal.SIGKILL)


def inside(name: str) -> None:
    import tracker

    tracker.track(10)
    kind, _, rest = name.partition("-")
    method, _, end = rest.partition("-")
    context: Any = multiprocessing.get_context(method if method in METHODS else "fork")
    if kind == "process":
        _processes(context)
    elif kind == "executor":
        with concurrent.futures.ProcessPoolExecutor(4, mp_context=context) as executor:
            list(executor.map(job, range(40)))
    elif kind == "broken":
        for _ in range(5):
            _break(context)
            tracker.track(10)
    elif end == "terminate":
        with context.Pool(4) as pool:
            pool.map(job, range(40), chunksize=1)
    else:
        pool = context.Pool(4, maxtasksperchild=10 if method == "recycle" else None)
        pool.map(job, range(80 if method == "recycle" else 40), chunksize=1)
        pool.close()
        pool.join()
    tracker.track(10)


def _break(context: Any) -> None:
    with concurrent.futures.ProcessPoolExecutor(4, mp_context=context) as executor:
        jobs = [executor.submit(job, number) for number in range(40)]
        fatal = executor.submit(fatal_job, 40)
        for each in [*jobs, fatal]:
            with contextlib.suppress(BrokenProcessPool):
                each.result()


def _processes(context: Any) -> None:
    processes = [context.Process(target=job, args=(number,)) for number in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def outside(run: ScenarioRun) -> None:
    no_shared_memory = run.name in ("pool-spawn-terminate", "pool-forkserver-terminate")
    options: dict[str, Any] = {"spool": str(run.folder / "spool")} if no_shared_memory else {}
    run.finish(run.start(run.name, timeout=25.0, **options))
