"""gunicorn: every class of worker, preloaded or not, however its workers end."""

from __future__ import annotations

import importlib.util
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness import PROGRAMS, WebServer, environment, eventually, first_is_quick, run, whose
from programs.spooled import aborted
from webapps import ASGI, WSGI, Gate, Visitor

from letterapp.testing import stall
from stress.ports import free_port

pytest.importorskip("gunicorn")

UVICORN = ("uvicorn_worker" if importlib.util.find_spec("uvicorn_worker") else "uvicorn.workers") + ".UvicornWorker"
GEVENT = pytest.param("gevent", id="gevent", marks=pytest.mark.slow)
UVICORN_WORKER = pytest.param(UVICORN, id="uvicorn worker")
WORKERS = ["sync", "gthread", GEVENT, UVICORN_WORKER]
OWN_ASGI = ["asgi"] if importlib.util.find_spec("gunicorn.workers.gasgi") else []  # gunicorn's own, since 24

each_worker = pytest.mark.parametrize("worker", WORKERS)
preloaded_or_not = first_is_quick("preload", [True, False], ids=["preloaded", "not preloaded"])


def serve(worker: str, preload: bool, api: Any, tmp_path: Path, *options: str, **env: str) -> WebServer:
    """Start gunicorn. An ASGI application closes its clients in its lifespan, unless ``TEST_ENDS`` says otherwise."""
    is_asgi = worker in (UVICORN, "asgi")
    app = ASGI if is_asgi else WSGI
    # The workers of ASGI say that they are ready in their lifespan: here it would be too early.
    hook = [] if is_asgi else ["-c", str(PROGRAMS / "gunicorn_ready.py")]
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", f"{app}:app", *hook, "-b", f"127.0.0.1:{port}", "-k", worker]
    command += ["--timeout", "60", "--threads", "4", *(["--preload"] if preload else []), *options]
    env = {"XDG_RUNTIME_DIR": str(tmp_path), "TEST_ENDS": "lifespan" if worker == UVICORN else "", **env}
    return WebServer(command, environment(api.url, **env), tmp_path, port)


def stop_and_check(server: WebServer, visitor: Visitor, api: Any, preload: bool) -> None:
    if server.process.poll() is None:
        server.signal(signal.SIGTERM)
    finished = server.finish()
    assert finished.code == 0, finished
    assert not server.left_behind(), server.left_behind()
    visitor.check(api, finished, [server.pid] if preload else visitor.ready())


def late_requests(api: Any) -> list[int]:
    return [item["properties"]["serial"] for item in list(api.events) if item["userId"] == "request, late"]


def gone(pids: set[int]) -> bool:
    return bool(eventually(lambda: not any(psutil.pid_exists(pid) for pid in pids), bool))


@first_is_quick("worker", [*WORKERS, *OWN_ASGI])
@preloaded_or_not
def test_a_graceful_stop_loses_nothing(worker: str, preload: bool, letter_api: Any, tmp_path: Path) -> None:
    with serve(worker, preload, letter_api, tmp_path, "-w", "2") as server:
        visitor = Visitor(server, workers=2)
        visitor.ask_many(24)
        assert late_requests(letter_api) == []  # they all wait in the workers, for the end
        stop_and_check(server, visitor, letter_api, preload)


# Not with threads: there each of the two signals takes the lock of the pool, and if the second comes while the first
# has it, gunicorn's worker stands still until it is killed.
@pytest.mark.slow
@pytest.mark.parametrize("worker", ["sync", GEVENT, UVICORN_WORKER])
def test_ctrl_c_that_reaches_a_worker_twice_loses_nothing(worker: str, letter_api: Any, tmp_path: Path) -> None:
    # From the terminal and from the master, and gunicorn exits at each. The second comes in the middle of the end.
    with serve(worker, False, letter_api, tmp_path, "-w", "1", "--threads", "1") as server:
        visitor = Visitor(server, workers=1)
        visitor.ask_many(8)
        letter_api.rule = lambda _: stall(1)
        server.signal_group(signal.SIGINT)
        finished = server.finish()
        assert not server.left_behind(), server.left_behind()
        visitor.check(letter_api, finished, visitor.ready())


@pytest.mark.slow
@each_worker
@preloaded_or_not
def test_a_reload_loses_nothing(worker: str, preload: bool, letter_api: Any, tmp_path: Path) -> None:
    with serve(worker, preload, letter_api, tmp_path, "-w", "1") as server:
        visitor = Visitor(server, workers=1)
        visitor.ask_many(16)
        old = visitor.ready()
        assert late_requests(letter_api) == []
        server.signal(signal.SIGHUP)
        assert gone(old), server.output
        assert sorted(late_requests(letter_api)) == list(range(16))  # before the server stops
        visitor.wait_until_ready(2)
        visitor.ask_many(8)
        stop_and_check(server, visitor, letter_api, preload)


@pytest.mark.slow
@each_worker
@preloaded_or_not
def test_recycling_workers_loses_nothing(worker: str, preload: bool, letter_api: Any, tmp_path: Path) -> None:
    with serve(worker, preload, letter_api, tmp_path, "-w", "1", "--max-requests", "5") as server:
        visitor = Visitor(server, workers=1)
        eventually(visitor.ask, lambda _: len(set(visitor.answered.values())) >= 2)
        answered_by = list(visitor.answered.values())
        assert len(set(answered_by)) >= 2, server.output
        first = {answered_by[0]}
        assert gone(first), server.output
        came = set(late_requests(letter_api))
        assert {serial for serial, pid in visitor.answered.items() if pid in first} <= came
        stop_and_check(server, visitor, letter_api, preload)


@first_is_quick("worker", WORKERS)
def test_requests_in_flight_when_the_server_stops_lose_nothing(worker: str, letter_api: Any, tmp_path: Path) -> None:
    requests = 1 if worker == "sync" else 4
    with Gate() as gate, serve(worker, True, letter_api, tmp_path, "-w", "1", **gate.environment) as server:
        visitor = Visitor(server, workers=1)
        with ThreadPoolExecutor(requests) as visitors:
            answers = [visitors.submit(visitor.ask, "/gate") for _ in range(requests)]
            gate.wait_for(requests)
            server.signal(signal.SIGTERM)
            assert eventually(lambda: server.output, lambda text: "Handling signal: term" in text)
            gate.open()
            assert None not in [answer.result() for answer in answers], server.output
        stop_and_check(server, visitor, letter_api, preload=True)


@first_is_quick("worker", ["sync", GEVENT, UVICORN_WORKER])
@preloaded_or_not
def test_exit_signals_lose_nothing_at_a_graceful_stop(
    worker: str, preload: bool, letter_api: Any, tmp_path: Path
) -> None:
    # A uvicorn worker needs them, or a lifespan; with the others they must do no harm. gunicorn gives each worker other
    # handlers than those that a preloaded application installed in the master.
    with serve(worker, preload, letter_api, tmp_path, "-w", "2", TEST_ENDS="exit_signals SIGTERM") as server:
        visitor = Visitor(server, workers=2)
        visitor.ask_many(24)
        assert late_requests(letter_api) == []
        stop_and_check(server, visitor, letter_api, preload)


def test_spooled_events_are_sent_by_the_first_worker_with_an_event_and_the_master_has_no_thread(
    letter_api: Any, tmp_path: Path
) -> None:
    spool = str(tmp_path / "spool")
    finished = run(aborted, letter_api.url, tmp_path, spool)
    assert finished.code == -signal.SIGABRT, finished
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "programs.spool_app:app", "-b", f"127.0.0.1:{port}", "--preload"]
    command += ["--timeout", "60"]
    # Newer versions would have a separate thread in the master.
    (tmp_path / "gunicorn.conf.py").write_text("control_socket_disable = True")
    with WebServer(command, environment(letter_api.url, TEST_SPOOL=spool), tmp_path, port) as server:
        assert server.get("/") == "ok"
        assert psutil.Process(server.pid).num_threads() == 1 and letter_api.requests == []
        assert server.get("/track") == "ok"
        assert letter_api.wait_for(6), server.output
        server.signal(signal.SIGTERM)
        assert server.finish().code == 0
    assert whose(letter_api) == {"left": [0, 1, 2, 3, 4], "asked": [0]}
