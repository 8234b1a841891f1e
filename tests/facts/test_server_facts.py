"""What servers and multiprocessing do with a lock file and a mapping made before they fork, and how they end.

The facts about the kernel itself are in test_kernel_facts.py.
"""

from __future__ import annotations

import fcntl
import json
import re
import signal
import sys
from pathlib import Path
from typing import Any, Callable

import psutil
import pytest
from harness import PROGRAMS, Program, WebServer, environment, eventually, run, start

from stress.ports import free_port

if sys.platform != "linux":
    pytest.skip("facts about Linux", allow_module_level=True)

from programs import finalizers

NOWHERE = "http://127.0.0.1:9"
LOCKS = {"TEST_LOCKS": "memfd"}


def found(program: Program, count: int) -> Any:
    """The lines "found ..." that a program's workers have printed, once there are ``count``."""

    def look() -> Any:
        return [json.loads(line) for line in re.findall(r"^found (.+)\n", program.output, re.M)]

    lines = eventually(lambda: look() if program.process.poll() is None else [], lambda seen: len(seen) >= count)
    assert len(lines) == count, program.output
    return lines


# What is left of them in a worker.


def start_celery(app: str, tmp_path: Path) -> Program:
    pytest.importorskip("celery")
    (tmp_path / "queue").mkdir()
    command = [sys.executable, "-m", "celery", "-A", app, "worker", "--loglevel", "WARNING", "--concurrency", "1"]
    command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    return Program(command, environment(NOWHERE, **LOCKS), tmp_path)


def start_web(server: str, tmp_path: Path) -> WebServer:
    pytest.importorskip(server)
    (tmp_path / "launcher.py").write_text("import sys, pyuwsgi\nsys.exit(pyuwsgi.run())\n")
    port = free_port()
    command = {
        "gunicorn": ["-m", "gunicorn", "programs.look_wsgi:application", "--preload", "-b"],
        "pyuwsgi": ["launcher.py", "--master", "--module", "programs.look_wsgi", "--http-socket"],
    }[server]
    env = environment(NOWHERE, XDG_RUNTIME_DIR=str(tmp_path), **LOCKS)
    return WebServer([sys.executable, *command, f"127.0.0.1:{port}"], env, tmp_path, port)


STARTS: dict[str, Callable[[Path], Program]] = {
    "multiprocessing": lambda tmp_path: start(PROGRAMS / "look_pool.py", NOWHERE, tmp_path, **LOCKS),
    "Celery": lambda tmp_path: start_celery("programs.look_celery", tmp_path),
    "gunicorn": lambda tmp_path: start_web("gunicorn", tmp_path),
    "uWSGI": lambda tmp_path: start_web("pyuwsgi", tmp_path),
}


@pytest.mark.slow
@pytest.mark.parametrize("server", STARTS)
def test_a_worker_inherits_memory_and_locks_and_the_slot_of_a_killed_one_is_reused(server: str, tmp_path: Path) -> None:
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

CHILDREN = {
    "a Pool that nobody closed": ["alive", "alive", "dead", "dead"],
    "a Pool in a with": ["dead", "dead", "dead", "dead"],
    "a daemon": ["alive", "alive", "dead", "dead"],
    "an executor that nobody shut down": ["dead", "dead", "dead", "dead"],
    "a Process that ends when asked": ["alive", "alive", "dead", "dead"],
}


def tells(program: Callable[..., None], tmp_path: Path, *arguments: str) -> str:
    finished = run(program, NOWHERE, tmp_path, *arguments, **LOCKS)
    assert finished.code == 0, finished
    return finished.output


@pytest.mark.parametrize("what, states", CHILDREN.items(), ids=CHILDREN.keys())
def test_a_finalize_below_zero_runs_after_the_children_have_ended(what: str, states: list[str], tmp_path: Path) -> None:
    moments = ["atexit, registered last", "Finalize 100", "Finalize -100", "atexit, registered first"]
    expected = "".join(f"{moment}: {state}\n" for moment, state in zip(moments, states))
    assert tells(finalizers.children, tmp_path, what) == expected


def test_a_child_inherits_no_finalize_and_its_own_below_zero_runs_after_its_pool_has_ended(tmp_path: Path) -> None:
    assert tells(finalizers.child_with_a_pool, tmp_path, "none") == ""
    reported = tells(finalizers.child_with_a_pool, tmp_path, "its own")
    assert reported == "Finalize 100: alive\nFinalize -100: dead\n"


# Terminated while it waits for a job, a worker may learn of the end before SIGTERM comes: then its finalizers begin,
# and are cut short anywhere.
ENDS_OF_A_POOL = {
    "runs when the pool is closed": ("close", "Finalize 100: dead\nFinalize -100: dead\n"),
    "does not run when it is terminated at work": ("terminate", ""),
}


@pytest.mark.parametrize("end, output", ENDS_OF_A_POOL.values(), ids=ENDS_OF_A_POOL.keys())
def test_a_finalize_of_a_pool_worker(end: str, output: str, tmp_path: Path) -> None:
    assert tells(finalizers.worker_of_a_pool, tmp_path, end) == output


@pytest.mark.slow
def test_celery_runs_no_finalize_in_a_child_and_all_in_its_parent_after_the_child_has_ended(tmp_path: Path) -> None:
    with start_celery("programs.celery_finalizers", tmp_path) as worker:
        found(worker, 1)
        worker.signal(signal.SIGTERM)
        finished = worker.finish()
    assert re.findall(r"^at (.+)$", finished.output, re.M) == [
        "worker_process_shutdown of the child",
        "Finalize 100 of the parent: dead",
        "Finalize -100 of the parent: dead",
        "atexit of the parent: dead",
    ], finished
