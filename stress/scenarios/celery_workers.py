"""Celery's prefork pool, whose children end with ``os._exit``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..scenario_run import ScenarioRun

TITLES = {
    "celery-prefork": "Celery, 2 busy prefork children; SIGTERM to the parent after 60 tasks: a warm shutdown",
    "celery-recycle": "Celery, 2 prefork children, each replaced after 10 of 60 tasks; SIGTERM to the idle parent",
}
# Two scenarios, because at a warm shutdown the kernel kills children that replaced others: Celery ties them to their
# parent (PR_SET_PDEATHSIG), and "parent" means the thread that forked them.
QUEUED = {"celery-prefork": 600, "celery-recycle": 60}  # tasks
DONE = 60  # tasks before SIGTERM
AT_START, PER_TASK = 5, 3  # events, as in inside/celery_program.py
TIMEOUT = 45.0


def inside(name: str) -> None:
    import celery_program

    celery_program.run(QUEUED[name], recycle=name == "celery-recycle")


def outside(run: ScenarioRun) -> None:
    from ..http_load import stop, wait_until

    (run.folder / "queue").mkdir()
    program = run.start(run.name, timeout=2 * TIMEOUT)
    events = AT_START + DONE * PER_TASK
    wait_until(lambda: run.calls >= events or not program.is_running, TIMEOUT)
    if run.name == "celery-recycle":
        run.api.wait_for(events, seconds=2.0)
    stop(run, program, TIMEOUT)
