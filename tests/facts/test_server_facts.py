"""What servers and multiprocessing really do with a lock file and a mapping made before their forks, and how they end.

The facts about the kernel itself are in `test_kernel_facts`, whose programs' helpers are used here.
"""

from __future__ import annotations

import fcntl
import json
import re
import signal
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any, Callable

import psutil
import pytest
from harness import PRELUDE, Program, WebServer, environment, eventually, run, start
from test_kernel_facts import LOCKS, NOWHERE

from stress.ports import free_port

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="facts about Linux")


def found(program: Program, count: int) -> Any:
    """The lines "found ..." that a program's workers have printed, once there are ``count``."""

    def look() -> Any:
        return [json.loads(line) for line in re.findall(r"^found (.+)\n", program.output, re.M)]

    lines = eventually(lambda: look() if program.process.poll() is None else [], lambda seen: len(seen) >= count)
    assert len(lines) == count, program.output
    return lines


# What is left of them in a worker.

LOOK = """
before = os.fstat(LOCKS)
words = memoryview(mmap.mmap(-1, 4096)).cast("Q")

def look():
    "Take the one slot, and tell who had it last."
    same, taken = os.path.samestat(os.fstat(LOCKS), before), take(1)
    last, words[1] = words[1], os.getpid()
    line = json.dumps({"pid": os.getpid(), "fd": LOCKS, "same": same, "taken": taken, "last": last})
    os.write(1, f"found {line}\\n".encode())  # in one piece
    return last
"""

WSGI = """
def application(environ, start_response):
    look()
    start_response("200 OK", [("Content-Length", "0")])
    return []
"""

# Celery and multiprocessing get two jobs, and the first stays until it is killed. A worker that is killed while it
# waits for a job may take the queue's lock along.
POOL = """
import multiprocessing

def job():
    if not look():
        stay()

with multiprocessing.get_context("fork").Pool(1) as pool:
    pool.apply_async(job)
    pool.apply(job)
    stay()
"""

CELERY = """
from celery import Celery, signals

app = Celery("app", broker="filesystem://")
app.conf.update(
    broker_transport_options={
        "data_folder_in": "queue", "data_folder_out": "queue", "control_folder": "control",
        "polling_interval": 0.02,
    },
    broker_connection_retry_on_startup=True,
    worker_enable_remote_control=False,
)
"""

TASKS = """
@app.task
def job():
    if not look():
        stay()

@signals.worker_ready.connect
def queue(**_):
    job.delay(), job.delay()
"""


def start_celery(code: str, tmp_path: Path) -> Program:
    pytest.importorskip("celery")
    (tmp_path / "queue").mkdir()
    (tmp_path / "app.py").write_text(PRELUDE + LOCKS + LOOK + CELERY + code)
    command = [sys.executable, "-m", "celery", "-A", "app", "worker", "--loglevel", "WARNING", "--concurrency", "1"]
    command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    return Program(command, environment(NOWHERE), tmp_path)


def start_web(server: str, tmp_path: Path) -> WebServer:
    pytest.importorskip(server)
    (tmp_path / "app.py").write_text(PRELUDE + LOCKS + LOOK + WSGI)
    (tmp_path / "launcher.py").write_text("import sys, pyuwsgi\nsys.exit(pyuwsgi.run())\n")
    port = free_port()
    command = {
        "gunicorn": ["-m", "gunicorn", "app:application", "--preload", "-b"],
        "pyuwsgi": ["launcher.py", "--master", "--wsgi-file", "app.py", "--http-socket"],
    }[server]
    env = environment(NOWHERE, XDG_RUNTIME_DIR=str(tmp_path))
    return WebServer([sys.executable, *command, f"127.0.0.1:{port}"], env, tmp_path, port)


STARTS: dict[str, Callable[[Path], Program]] = {
    "multiprocessing": lambda tmp_path: start(LOCKS + LOOK + POOL, NOWHERE, tmp_path),
    "Celery": lambda tmp_path: start_celery(TASKS, tmp_path),
    "gunicorn": lambda tmp_path: start_web("gunicorn", tmp_path),
    "uWSGI": lambda tmp_path: start_web("pyuwsgi", tmp_path),
}


@pytest.mark.parametrize("server", STARTS)
def test_a_worker_has_both_and_the_next_has_its_slot_when_it_is_killed(server: str, tmp_path: Path) -> None:
    def ask() -> None:
        if isinstance(program, WebServer):
            program.get()

    with STARTS[server](tmp_path) as program:
        ask()
        (first,) = found(program, 1)
        assert first["same"] and first["taken"] and first["last"] == 0
        with open(f"/proc/{first['pid']}/fd/{first['fd']}", "r+b") as opened, pytest.raises(BlockingIOError):
            fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 1)
        program.signal(signal.SIGKILL, first["pid"])
        assert eventually(lambda: not psutil.pid_exists(first["pid"]), bool), program.output
        ask()
        _, second = found(program, 2)
        assert second["pid"] != first["pid"]
        assert second == {**first, "pid": second["pid"], "last": first["pid"]}, program.output


# When the children of multiprocessing are dead.

# `tell` says at each moment of a process's end whether the owners of the slots in `mine` live.
MOMENTS = """
import atexit

mine = []

def tell(moment):
    free = [take(slot) for slot in mine]
    state = "dead" if all(free) else "alive" if not any(free) else "mixed"
    os.write(1, f"{moment}: {state}\\n".encode())

assert "multiprocessing" not in sys.modules
atexit.register(tell, "atexit, registered first")
import multiprocessing
from multiprocessing import util
atexit.register(tell, "atexit, registered last")

def finalize():
    util.Finalize(None, tell, ("Finalize 100",), exitpriority=100)
    util.Finalize(None, tell, ("Finalize -100",), exitpriority=-100)

finalize()
context = multiprocessing.get_context("fork")
barrier = context.Barrier(2)

def own(_=None):
    assert take(os.getpid())
    barrier.wait()
    return os.getpid()

def own_and_stay():
    own()
    stay()

def process(daemon):
    started = context.Process(target=own_and_stay, daemon=daemon)
    started.start()
    barrier.wait()
    mine.append(started.pid)
    return started

def pool():
    opened = context.Pool(2)
    mine.extend(opened.map(own, range(2), chunksize=1))
    return opened
"""

CHILDREN = {
    "a Pool that nobody closed": ("p = pool()", ["alive", "alive", "dead", "dead"]),
    "a Pool in a with": ("with pool(): pass", ["dead", "dead", "dead", "dead"]),
    "a daemon": ("process(True)", ["alive", "alive", "dead", "dead"]),
    "an executor that nobody shut down": (
        """
        from concurrent.futures import ProcessPoolExecutor
        executor = ProcessPoolExecutor(2, mp_context=context)
        mine.extend(executor.map(own, range(2)))
        """,
        ["dead", "dead", "dead", "dead"],
    ),
    "a Process that ends when asked": (
        "util.Finalize(None, process(False).terminate, exitpriority=50)",
        ["alive", "alive", "dead", "dead"],
    ),
}


def tells(code: str, tmp_path: Path) -> str:
    finished = run(LOCKS + MOMENTS + dedent(code), NOWHERE, tmp_path)
    assert finished.code == 0, finished
    return finished.output


@pytest.mark.parametrize("code, states", CHILDREN.values(), ids=CHILDREN.keys())
def test_a_finalize_below_zero_runs_when_the_children_are_dead(code: str, states: list[str], tmp_path: Path) -> None:
    moments = ["atexit, registered last", "Finalize 100", "Finalize -100", "atexit, registered first"]
    assert tells(code, tmp_path) == "".join(f"{moment}: {state}\n" for moment, state in zip(moments, states))


def test_a_child_inherits_no_finalize_and_its_own_one_below_zero_runs_when_its_pool_is_dead(tmp_path: Path) -> None:
    code = """
    def has_a_pool():
        global p
        p = pool()
        {finalize}
    child = context.Process(target=has_a_pool)
    child.start(), child.join()
    os._exit(0)
    """
    assert tells(code.format(finalize="pass"), tmp_path) == ""
    assert tells(code.format(finalize="finalize()"), tmp_path) == "Finalize 100: alive\nFinalize -100: dead\n"


# Terminated while it waits for a job, a worker may be told of the end before SIGTERM comes: then its finalizers begin,
# and are cut short anywhere.
ENDS_OF_A_POOL = {
    "runs when the pool is closed": ("own", "close", "Finalize 100: dead\nFinalize -100: dead\n"),
    "does not run when it is terminated at work": ("own_and_stay", "terminate", ""),
}


@pytest.mark.parametrize("job, end, output", ENDS_OF_A_POOL.values(), ids=ENDS_OF_A_POOL.keys())
def test_a_finalize_of_a_worker_of_a_pool(job: str, end: str, output: str, tmp_path: Path) -> None:
    code = f"""
    with context.Pool(1, finalize) as p:
        p.apply_async({job})
        barrier.wait()
        p.{end}()
        p.join()
    os._exit(0)
    """
    assert tells(code, tmp_path) == output


IN_CELERY = """
import atexit
from multiprocessing import util  # whose registry is billiard's too

def tell(moment):
    state = "dead" if take(1) else "alive"
    os.write(1, f"at {moment}: {state}\\n".encode())

def arm(who):
    atexit.register(tell, f"atexit of the {who}")
    for priority in 100, -100:
        util.Finalize(None, tell, (f"Finalize {priority} of the {who}",), exitpriority=priority)

arm("parent")

@signals.worker_process_init.connect
def begin(**_):
    arm("child")

@signals.worker_process_shutdown.connect
def end(**_):
    os.write(1, b"at worker_process_shutdown of the child\\n")

@app.task
def job():
    look()

@signals.worker_ready.connect
def queue(**_):
    job.delay()
"""


def test_in_a_child_of_celery_no_finalize_runs_and_in_its_parent_all_do_when_it_is_dead(tmp_path: Path) -> None:
    with start_celery(IN_CELERY, tmp_path) as worker:
        found(worker, 1)
        worker.signal(signal.SIGTERM)
        finished = worker.finish()
    assert re.findall(r"^at (.+)$", finished.output, re.M) == [
        "worker_process_shutdown of the child",
        "Finalize 100 of the parent: dead",
        "Finalize -100 of the parent: dead",
        "atexit of the parent: dead",
    ], finished
