"""Batch jobs, schedulers, notebooks, daemons and frozen programs: what they track arrives once."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from applications import installed
from harness import ROOT, Program, eventually, has_ended, needs
from job_examples import arrived, copy_of, once, quiet_end, settings


def run(api: Any, cwd: Path, *command: str, late: bool = True) -> None:
    with Program([sys.executable, *command], settings(api, late), cwd) as program:
        quiet_end(program)


@pytest.mark.gate
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_pool_of_multiprocessing(method: str, letter_api: Any, tmp_path: Path) -> None:
    run(letter_api, copy_of("multiprocessing", tmp_path), "batch.py", method)
    sent = [("Invoice Sent", f"user_{order % 7}", order) for order in range(100)]
    assert arrived(letter_api) == once(*sent, ("Invoices Sent", "accounting", None))
    assert letter_api.repeated() == {}


def test_a_pool_of_forked_workers_that_is_not_closed(letter_api: Any, tmp_path: Path) -> None:
    """Its workers are killed at the end of the block. The others of their family send what they had queued."""
    cwd = copy_of("multiprocessing", tmp_path)
    code = (cwd / "batch.py").read_text()
    (cwd / "batch.py").write_text(code.replace("pool.close()", "pass").replace("pool.join()", "pass"))
    run(letter_api, cwd, "batch.py", "fork")
    sent = [("Invoice Sent", f"user_{order % 7}", order) for order in range(100)]
    assert arrived(letter_api) == once(*sent, ("Invoices Sent", "accounting", None))


@needs("joblib")
@pytest.mark.gate
def test_joblib(letter_api: Any, tmp_path: Path) -> None:
    run(letter_api, copy_of("joblib", tmp_path), "features.py")
    extracted = [("Features Extracted", f"user_{order % 7}", order) for order in range(60)]
    assert arrived(letter_api) == once(*extracted, ("Features Done", "analysts", None))
    assert letter_api.repeated() == {}


@needs("apscheduler")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_apscheduler_stopped(number: int, letter_api: Any, tmp_path: Path) -> None:
    env, cwd = settings(letter_api, late=True), copy_of("apscheduler", tmp_path)
    with Program([sys.executable, "reminders.py"], env, cwd) as program:
        assert eventually(lambda: program.output.count("reminded") >= 8, bool), program.output
        (program.signal_group if number == signal.SIGINT else program.signal)(number)
        finished = program.finish()
        assert not program.left_behind(), finished
        assert "letterapp:" not in finished.output, finished
    expected = once(("Scheduler Stopped", "operations", None))
    for user in range(4):
        expected["Reminder Sent", f"user_{user}", None] = finished.output.count(f"reminded user_{user}\n")
    assert arrived(letter_api) == expected, finished
    assert letter_api.repeated() == {}


@needs("PyInstaller")
def test_a_frozen_program(letter_api: Any, tmp_path: Path) -> None:
    cwd = copy_of("pyinstaller", tmp_path)
    command = [installed("pyinstaller"), "--onefile", "--log-level", "ERROR", "report.py"]
    with Program(command, settings(letter_api), cwd) as build:
        finished = build.finish(280)
        assert finished.code == 0, finished
    alone = tmp_path / "elsewhere"
    alone.mkdir()
    shutil.move(str(cwd / "dist" / "report"), alone / "report")
    env = settings(letter_api)
    del env["PYTHONPATH"]
    with Program([str(alone / "report")], env, alone) as program:
        quiet_end(program)
    counted = [("Order Counted", f"user_{order % 7}", order) for order in range(20)]
    assert arrived(letter_api) == once(*counted, ("Orders Counted", "analysts", None))
    assert letter_api.repeated() == {}


def test_a_job_of_cron_that_runs_twice(letter_api: Any, tmp_path: Path) -> None:
    """Its line is run as cron does it: by its SHELL, in an environment with next to nothing in it."""
    cwd = copy_of("cron", tmp_path)
    exports = f"LETTER_BASE_URL={letter_api.url} PYTHONPATH={ROOT}"
    (cwd / "letter.env").write_text(f"LETTER_API_KEY=lt_test_key\nexport {exports}\n")
    (cwd / "venv").symlink_to(sys.prefix)
    lines = [line for line in (cwd / "crontab").read_text().splitlines() if line and not line.startswith("#")]
    env = {"HOME": str(tmp_path), "LOGNAME": "root", "PATH": "/usr/bin:/bin"}
    for name, _, value in (line.partition("=") for line in lines[:-1]):
        env[name] = value
    assert env["APP"] == "/opt/report"
    env["APP"] = str(cwd)
    line = lines[-1].split(None, 5)[5]
    for _ in range(2):
        with Program([env["SHELL"], "-c", line], env, tmp_path) as program:
            assert quiet_end(program).output == ""  # else cron would send a mail
    assert arrived(letter_api) == once(*[("Report Sent", f"user_{order}", order) for order in range(20)])
    assert len(letter_api.repeated()) == 20


@needs("daemon")
@pytest.mark.gate
def test_a_daemon(letter_api: Any, tmp_path: Path) -> None:
    cwd = copy_of("python_daemon", tmp_path)
    run(letter_api, cwd, "packer.py")  # returns when the daemon has been started
    assert eventually((cwd / "ready").exists, bool)
    daemon = psutil.Process(int((cwd / "packer.pid").read_text()))
    try:
        assert letter_api.events == []
        daemon.terminate()
        assert eventually(lambda: is_over(daemon), bool)
    finally:
        if not is_over(daemon):
            daemon.kill()
    assert arrived(letter_api) == once(*[("Order Packed", f"user_{order}", order) for order in range(20)])
    assert letter_api.repeated() == {}
    assert not (cwd / "packer.pid").exists()


def is_over(process: psutil.Process) -> bool:
    """It has ended, whether or not its new parent has noticed."""
    try:
        return has_ended(process.as_dict(["status", "num_threads"]))
    except psutil.NoSuchProcess:
        return True


class Notebook:
    """The kernel that runs a copy of the notebook."""

    def __init__(self, api: Any, tmp_path: Path) -> None:
        jupyter_client = pytest.importorskip("jupyter_client.manager")
        notebook = json.loads((copy_of("jupyter", tmp_path) / "orders.ipynb").read_text())
        self.cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
        self.manager = jupyter_client.KernelManager(kernel_name="python3")
        self.manager.start_kernel(env=settings(api, late=True), cwd=str(tmp_path))
        self.client: Any = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(60)

    def run(self, source: str) -> str:
        reply = self.client.execute_interactive(source, timeout=60, output_hook=lambda message: None)
        return str(reply["content"]["status"])

    def run_all(self) -> None:
        for source in self.cells:
            assert self.run(source) == "ok"

    def __enter__(self) -> Notebook:
        return self

    def __exit__(self, *_: Any) -> None:
        self.client.stop_channels()
        if self.manager.has_kernel:
            self.manager.shutdown_kernel(now=True)


REVIEWED = once(*[("Order Reviewed", f"user_{order}", order) for order in range(20)])
LOOP = """
import time
done = 0
print("looping", flush=True)
while True:
    letter.track("user_42", "Order Looked At", {"order": done})
    done += 1
    time.sleep(0.001)
"""


@needs("ipykernel")
@pytest.mark.parametrize("restarted", [False, True], ids=["shut down", "restarted"])
def test_a_notebook_whose_kernel_is(restarted: bool, letter_api: Any, tmp_path: Path) -> None:
    with Notebook(letter_api, tmp_path) as notebook:
        notebook.run_all()
        assert letter_api.events == []
        if restarted:
            notebook.manager.restart_kernel()
            assert arrived(letter_api) == REVIEWED
            notebook.client.wait_for_ready(60)
            notebook.run_all()
        notebook.manager.shutdown_kernel()
    assert arrived(letter_api) == {event: 1 + restarted for event in REVIEWED}
    assert letter_api.repeated() == {}


@needs("ipykernel")
def test_a_notebook_whose_kernel_is_interrupted(letter_api: Any, tmp_path: Path) -> None:
    with Notebook(letter_api, tmp_path) as notebook:
        notebook.run_all()
        notebook.client.execute(LOOP, stop_on_error=False)  # else the next cell is aborted with this one
        while notebook.client.get_iopub_msg(timeout=60)["content"].get("text") != "looping\n":
            pass
        notebook.manager.interrupt_kernel()
        assert notebook.client.get_shell_msg(timeout=60)["content"]["ename"] == "KeyboardInterrupt"
        assert notebook.run("letter.track('user_42', 'Loop Ended', {'order': done}); assert letter.flush()") == "ok"
        found = arrived(letter_api)
        notebook.manager.shutdown_kernel()
    assert arrived(letter_api) == found
    assert letter_api.repeated() == {}
    [done] = [order for event, _, order in found if event == "Loop Ended"]
    looked_at = sorted(order for event, _, order in found if event == "Order Looked At")
    # If the interrupt came in the middle of a call, its event may have been queued or not.
    assert looked_at in (list(range(done)), list(range(done + 1)))
    assert REVIEWED.items() <= found.items()


@needs("nbclient")
@pytest.mark.gate
def test_a_notebook_that_is_executed_as_a_job(letter_api: Any, tmp_path: Path) -> None:
    cwd = copy_of("jupyter", tmp_path)
    command = [installed("jupyter"), "execute", "--kernel_name=python3", "orders.ipynb"]
    with Program(command, settings(letter_api, late=True), cwd) as program:
        finished = program.finish()
        assert finished.code == 0, finished
        assert not program.left_behind(), finished
    assert arrived(letter_api) == REVIEWED, finished
    assert letter_api.repeated() == {}
