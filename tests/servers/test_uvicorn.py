"""uvicorn: alone and with workers, plain ASGI and FastAPI, in every way that it ends.

On SIGTERM uvicorn shuts down gracefully and then raises the signal once more, so no `atexit` runs. Either the lifespan
closes the client, or `exit_signals` names the signal.
"""

from __future__ import annotations

import inspect
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness import Finished, WebServer, environment, eventually, first_is_quick
from webapps import ASGI, FASTAPI, Gate, Visitor

from stress.ports import free_port

config = pytest.importorskip("uvicorn.config")

# uvicorn kills a worker that does not answer it for 5 s, which a busy machine alone may bring about.
PATIENT = "timeout_worker_healthcheck" in inspect.signature(config.Config).parameters
PATIENCE = ["--timeout-worker-healthcheck", "60"] if PATIENT else []

ENDS = {"the lifespan": "lifespan", "exit_signals": "exit_signals SIGTERM"}

each_app = first_is_quick("app", [ASGI, FASTAPI], ids=["plain", "FastAPI"])
alone_and_with_workers = first_is_quick("workers", [0, 2], ids=["alone", "two workers"])
each_end = pytest.mark.parametrize("ends", ENDS.values(), ids=ENDS.keys())


def serve(app: str, workers: int, ends: str, api: Any, tmp_path: Path, *options: str, **env: str) -> WebServer:
    """Start uvicorn; 0 ``workers`` is uvicorn alone, in one process."""
    if app == FASTAPI:
        pytest.importorskip("fastapi")
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", f"{app}:app", "--port", str(port), "--no-access-log", *options]
    command += ["--workers", str(workers), *PATIENCE] if workers else []
    return WebServer(command, environment(api.url, TEST_ENDS=ends, **env), tmp_path, port)


def check(server: WebServer, visitor: Visitor, api: Any) -> Finished:
    finished = server.finish()
    assert not server.left_behind(), server.left_behind()
    visitor.check(api, finished, importers=visitor.ready())
    return finished


def late_requests(api: Any) -> list[int]:
    return [item["properties"]["serial"] for item in list(api.events) if item["userId"] == "request, late"]


@each_app
@alone_and_with_workers
@each_end
def test_sigterm_loses_nothing_with(ends: str, workers: int, app: str, letter_api: Any, tmp_path: Path) -> None:
    with serve(app, workers, ends, letter_api, tmp_path) as server:
        visitor = Visitor(server, workers=workers or 1)
        visitor.ask_many(24)
        assert late_requests(letter_api) == []  # they all wait for the end
        server.signal(signal.SIGTERM)
        finished = check(server, visitor, letter_api)
        assert workers or finished.code == -signal.SIGTERM  # what the signal does has been left as it was


@pytest.mark.parametrize(
    ("app", "workers"),
    [
        pytest.param(ASGI, 0, id="plain, alone"),
        pytest.param(ASGI, 2, id="plain, two workers", marks=pytest.mark.slow),
        pytest.param(FASTAPI, 0, id="FastAPI, alone", marks=pytest.mark.slow),
    ],
)
@each_end
def test_requests_in_flight_at_sigterm_lose_nothing_with(
    ends: str, workers: int, app: str, letter_api: Any, tmp_path: Path
) -> None:
    with Gate() as gate, serve(app, workers, ends, letter_api, tmp_path, **gate.environment) as server:
        visitor = Visitor(server, workers=workers or 1)
        with ThreadPoolExecutor(4) as visitors:
            answers = [visitors.submit(visitor.ask, "/gate") for _ in range(4)]
            gate.wait_for(4)
            server.signal(signal.SIGTERM)
            assert eventually(lambda: server.output, lambda text: "Waiting for connections to close" in text)
            gate.open()
            assert None not in [answer.result() for answer in answers], server.output
        check(server, visitor, letter_api)


@alone_and_with_workers
@first_is_quick("ends", ["lifespan", "exit_signals SIGTERM SIGINT"], ids=["the lifespan", "exit_signals"])
def test_ctrl_c_loses_nothing_with(ends: str, workers: int, letter_api: Any, tmp_path: Path) -> None:
    with serve(ASGI, workers, ends, letter_api, tmp_path) as server:
        visitor = Visitor(server, workers=workers or 1)
        visitor.ask_many(24)
        assert late_requests(letter_api) == []
        server.signal_group(signal.SIGINT)  # as a terminal does
        check(server, visitor, letter_api)


def test_ctrl_c_with_uvicorn_needs_no_configuration(letter_api: Any, tmp_path: Path) -> None:
    with serve(ASGI, 0, "", letter_api, tmp_path) as server:
        visitor = Visitor(server, workers=1)
        visitor.ask_many(8)
        server.signal(signal.SIGINT)
        check(server, visitor, letter_api)


def test_limit_max_requests_needs_no_configuration(letter_api: Any, tmp_path: Path) -> None:
    with serve(ASGI, 0, "", letter_api, tmp_path, "--limit-max-requests", "5") as server:
        visitor = Visitor(server, workers=1)
        eventually(visitor.ask, lambda _: server.process.poll() is not None)
        check(server, visitor, letter_api)


@pytest.mark.slow
@each_end
def test_a_reload_of_the_workers_loses_nothing_with(ends: str, letter_api: Any, tmp_path: Path) -> None:
    with serve(ASGI, 2, ends, letter_api, tmp_path) as server:
        visitor = Visitor(server, workers=2)
        visitor.ask_many(16)
        old = visitor.ready()
        assert late_requests(letter_api) == []
        server.signal(signal.SIGHUP)
        assert eventually(lambda: not any(psutil.pid_exists(pid) for pid in old), bool), server.output
        assert sorted(late_requests(letter_api)) == list(range(16))  # before the server stops
        visitor.wait_until_ready(4)
        visitor.ask_many(8)
        server.signal(signal.SIGTERM)
        check(server, visitor, letter_api)
