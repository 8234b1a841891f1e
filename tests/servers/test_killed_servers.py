"""Killed workers of gunicorn, uWSGI and Celery: a new worker, or another process at its end, delivers their events."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness import ROOT, WebServer, environment, eventually, first_is_quick, whose

from stress.ports import free_port

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the guarantees are weaker on other systems")

APPLICATION = "programs.killed_gunicorn:app"
CONFIGURATION = ROOT / "tests" / "programs" / "killed_gunicorn_conf.py"


class Gunicorn(WebServer):
    """A preloaded application, whose workers are ready when the constructor returns."""

    def __init__(self, api: Any, cwd: Path, workers: int) -> None:
        pytest.importorskip("gunicorn")
        port = free_port()
        command = [sys.executable, "-m", "gunicorn", APPLICATION, "--preload", "-c", str(CONFIGURATION)]
        command += ["-b", f"127.0.0.1:{port}", "-w", str(workers)]
        super().__init__(command, environment(api.url, XDG_RUNTIME_DIR=str(cwd)), cwd, port)
        self._workers = 0
        self.have_begun(workers)

    def have_begun(self, workers: int) -> None:
        self._workers += workers
        ready = eventually(lambda: self.output.count("ready "), lambda count: count >= self._workers)
        assert ready == self._workers, self.output

    def kill_workers(self) -> set[int]:
        """Kill all workers, and wait until the master has replaced them."""
        workers = {process.pid for process in psutil.Process(self.pid).children()}
        for pid in workers:
            self.signal(signal.SIGKILL, pid)
        self.have_begun(len(workers))
        return workers

    def ask(self, requests: int, first: int = 0) -> set[int]:
        return {int(self.get(f"/?{serial}")) for serial in range(first, first + requests)}

    def is_single_threaded(self) -> bool:
        return bool(psutil.Process(self.pid).num_threads() == 1)

    def stop(self) -> None:
        self.signal(signal.SIGTERM)
        finished = self.finish()
        assert finished.code == 0 and "Traceback" not in finished.output, finished
        assert not self.left_behind(), finished


def requests_came(api: Any, count: int) -> None:
    assert {who: sorted(serials) for who, serials in whose(api).items()} == {"request": list(range(count))}
    assert api.repeated() == {}


def test_gunicorn_a_new_worker_delivers_with_its_first_request(letter_api: Any, tmp_path: Path) -> None:
    with Gunicorn(letter_api, tmp_path, 1) as server:
        before = server.ask(20)
        assert server.kill_workers() == before
        assert letter_api.events == []
        assert not server.ask(1, first=20) & before
        assert letter_api.wait_for(20), server.output
        assert server.is_single_threaded()
        server.stop()
    requests_came(letter_api, 21)


@first_is_quick("workers", [1, 3])
def test_gunicorn_the_master_delivers_at_its_end(workers: int, letter_api: Any, tmp_path: Path) -> None:
    with Gunicorn(letter_api, tmp_path, workers) as server:
        server.ask(20)
        server.kill_workers()
        assert server.is_single_threaded()
        server.stop()
    requests_came(letter_api, 20)


def test_gunicorn_a_sibling_delivers_at_its_end(letter_api: Any, tmp_path: Path) -> None:
    with Gunicorn(letter_api, tmp_path, 2) as server:
        asked = 0
        workers: set[int] = set()
        while len(workers) < 2:
            workers |= server.ask(1, first=asked)
            asked += 1
        server.signal(signal.SIGKILL, min(workers))
        server.have_begun(1)
        server.stop()
    requests_came(letter_api, asked)


def kill_a_uwsgi_worker(server: Any) -> None:
    old = server.become_idle()
    server.signal(signal.SIGKILL, old[0])
    eventually(server.become_idle, lambda pids: old[0] not in pids)


def all_of_uwsgi_arrived(server: Any) -> None:
    came = {who: sorted(serials) for who, serials in whose(server.api).items()}
    assert len(came.pop("quick at import")) == len(came.pop("slow at import")) == 1
    assert came == {"quick": server.tracked, "slow": server.tracked}, server.output
    # A worker may have been killed between the server's answer and the note of it.
    again = {item["userId"] for item in server.api.events if item["messageId"] in server.api.repeated()}
    assert again <= {"quick"}, server.output


@pytest.mark.slow
def test_uwsgi_a_new_worker_delivers_with_its_first_request(letter_api: Any, tmp_path: Path) -> None:
    pytest.importorskip("pyuwsgi")
    from uwsgi_server import Uwsgi

    with Uwsgi(letter_api, tmp_path, processes=1) as server:
        server.track(20)
        kill_a_uwsgi_worker(server)
        assert "slow" not in whose(letter_api)
        server.track(1)
        assert letter_api.wait_until(lambda: len(whose(letter_api).get("slow", [])) >= 20), server.output
        assert server.quick_has_arrived()
        server.stop()
        all_of_uwsgi_arrived(server)


def test_uwsgi_a_sibling_delivers_at_its_end(letter_api: Any, tmp_path: Path) -> None:
    pytest.importorskip("pyuwsgi")
    from uwsgi_server import Uwsgi

    with Uwsgi(letter_api, tmp_path) as server:
        server.track_in_every_worker()
        assert server.quick_has_arrived()
        kill_a_uwsgi_worker(server)
        server.stop()
        all_of_uwsgi_arrived(server)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [1, 2], ids=["one of two", "both"])
def test_celery_a_new_child_delivers_with_its_first_task(killed: int, letter_api: Any, tmp_path: Path) -> None:
    # They are killed in the middle of a task. A Celery whose idle child is killed may hang, with or without a client.
    pytest.importorskip("celery")
    from celery_worker import Celery

    with Celery(letter_api, tmp_path) as worker:
        assert letter_api.wait_until(lambda: len(worker.workers()) == 2), worker.output
        assert "slow" not in whose(letter_api)
        for path in worker.workers()[:killed]:
            worker.signal(signal.SIGKILL, int(path.split("/")[2]))
        assert letter_api.wait_until(lambda: len({0, 1}.intersection(whose(letter_api).get("slow", []))) >= killed)
        worker.hold.release()
