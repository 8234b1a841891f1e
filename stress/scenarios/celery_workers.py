"""Celery's prefork pool, whose children leave by ``os._exit``. The broker is a folder of files."""

from __future__ import annotations

from typing import Any

TITLES = {
    "celery-prefork": "Celery, 2 prefork children at work; SIGTERM to the parent after 60 tasks: a warm shutdown",
    "celery-recycle": "Celery, 2 prefork children, each replaced after 10 of 60 tasks; SIGTERM to the parent at rest",
}
# At a warm shutdown the kernel kills those children that replaced others: Celery has it end them with their parent
# (PR_SET_PDEATHSIG), and that is the thread that forked them. So what is replaced and what is stopped at work differ.
QUEUED = {"celery-prefork": 600, "celery-recycle": 60}  # tasks
DONE = 60  # tasks before the end
AT_START, PER_TASK = 5, 3  # events, as in inside/celery_program.py
PATIENCE = 45.0


def inside(name: str) -> None:
    import celery_program

    celery_program.run(QUEUED[name], recycle=name == "celery-recycle")


def outside(stage: Any) -> None:
    from ..visits import stop, until

    (stage.folder / "queue").mkdir()
    program = stage.play(stage.name, patience=2 * PATIENCE)
    events = AT_START + DONE * PER_TASK
    until(lambda: stage.calls >= events or not program.is_running, PATIENCE)
    if stage.name == "celery-recycle":
        stage.api.wait_for(events, seconds=2.0)
    stop(stage, program, PATIENCE)
