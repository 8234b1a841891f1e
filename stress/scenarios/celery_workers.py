"""Celery's prefork pool, whose children leave by ``os._exit``. The broker is a folder of files."""

from __future__ import annotations

import time
from typing import Any

TITLES = {
    "celery-prefork": "Celery, 2 prefork children at work; SIGTERM to the parent after 60 tasks: a warm shutdown",
    "celery-recycle": "Celery, 2 prefork children, each replaced after 10 of 60 tasks; SIGTERM to the parent at rest",
}
# At a warm shutdown the kernel kills those children that replaced others: Celery has it end them with their parent
# (PR_SET_PDEATHSIG), and that is the thread that forked them. So what is replaced and what is stopped at work differ.
QUEUED = {"celery-prefork": 600, "celery-recycle": 60}  # tasks
DONE = 60  # tasks before the end
AT_START, A_TASK = 5, 3  # events
TASK = 0.02  # seconds
FOLDERS = {"data_folder_in": "queue", "data_folder_out": "queue", "control_folder": "control"}
PATIENCE = 45.0


def inside(name: str) -> None:
    import celery
    import celery.signals
    import desk

    app = celery.Celery("jobs", broker="filesystem://")
    app.conf.broker_transport_options = {**FOLDERS, "polling_interval": 0.02}
    app.conf.broker_connection_retry_on_startup = True
    app.conf.worker_enable_remote_control = False

    @app.task(name="work")  # type: ignore[untyped-decorator]
    def work() -> None:
        desk.track(A_TASK)
        time.sleep(TASK)

    @celery.signals.worker_ready.connect  # type: ignore[untyped-decorator]
    def queue(**_: Any) -> None:
        for _number in range(QUEUED[name]):
            work.delay()

    desk.track(AT_START)
    flags = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "WARNING"]
    recycle = ["--max-tasks-per-child", "10"] if name == "celery-recycle" else []
    app.worker_main(["worker", "--concurrency", "2", *flags, *recycle])


def outside(stage: Any) -> None:
    from ..visits import stop, until

    (stage.folder / "queue").mkdir()
    program = stage.play(stage.name, patience=2 * PATIENCE)
    events = AT_START + DONE * A_TASK
    until(lambda: stage.calls >= events or not program.is_running, PATIENCE)
    if stage.name == "celery-recycle":
        stage.api.wait_for(events, seconds=2.0)
    stop(stage, program, PATIENCE)
