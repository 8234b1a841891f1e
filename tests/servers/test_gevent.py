"""gevent: patched before or after the client was created, in a plain program and in gunicorn's worker.

Locks, sockets and TLS contexts made before the patch freeze the hub or fail every request after it; gunicorn patches
in the worker, when the application has long been imported.
"""

from __future__ import annotations

import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

import harness
import pytest
from harness import DEADLINE, Program, WebServer, environment, eventually, first_is_quick, whose
from patched import AFTER_USE, BEFORE, BEGINNINGS, end, tracked_before
from programs import gevent_programs

from letterapp.testing import Hold, IngestionServer
from stress.ports import free_port

pytest.importorskip("gevent")
pytest.importorskip("trustme")

# How the API is reached: its scheme, and the client's TLS context.
LINES = {"http": "", "https, a context made by a function": "own", "https, the default context": "default"}

each_beginning = first_is_quick("beginning", [*BEGINNINGS, AFTER_USE])
each_line = first_is_quick("line", LINES.values(), ids=LINES.keys())


class Reached:
    """An ingestion server, and what a program must have in its environment to reach it."""

    def __init__(self, api: IngestionServer, **env: str) -> None:
        self.api = api
        self.env = {"TEST_GREENLETS": "gevent", **env}


@pytest.fixture
def reached(line: str, letter_api: Any, request: pytest.FixtureRequest) -> Reached:
    if not line:
        return Reached(letter_api)
    known_as = "TEST_CA" if line == "own" else "SSL_CERT_FILE"
    env = {known_as: request.getfixturevalue("ca_file")}
    return Reached(request.getfixturevalue("tls_api"), TEST_CONTEXT=line, **env)


def start(program: Callable[..., None], reached: Reached, tmp_path: Path, beginning: str = BEFORE) -> Program:
    return harness.start(program, reached.api.url, tmp_path, **reached.env, TEST_BEGINNING=beginning)


@each_beginning
@each_line
def test_many_greenlets_track_at_once_and_all_events_arrive(
    line: str, beginning: str, reached: Reached, tmp_path: Path
) -> None:
    with start(gevent_programs.many_greenlets, reached, tmp_path, beginning) as program:
        end(program)
    expected = {f"greenlet {number}": list(range(20)) for number in range(50)}
    assert whose(reached.api) == {**expected, **tracked_before(beginning), "at the end": [0, 1, 2]}
    assert reached.api.repeated() == {}


@each_beginning
@each_line
def test_the_hub_runs_while_the_client_sends(line: str, beginning: str, reached: Reached, tmp_path: Path) -> None:
    hold = Hold()
    reached.api.rule = lambda request: hold if b'"program"' in request.body else None
    with start(gevent_programs.ticks, reached, tmp_path, beginning) as program:
        assert hold.arrived.wait(DEADLINE), program.output
        ticks = program.output.count("tick\n")
        later = eventually(lambda: program.output.count("tick\n"), lambda count: count > ticks + 10, 20)
        assert "settled" not in program.output
        hold.release()
        assert later > ticks + 10, "the hub stood still while the request was on the wire"
        end(program)
    assert whose(reached.api) == {**tracked_before(beginning), "program": [0, 1, 2]}


@pytest.mark.parametrize("line", [""], ids=["http"])
def test_exit_signals_deliver_while_every_greenlet_waits(line: str, reached: Reached, tmp_path: Path) -> None:
    # The handler then runs in the hub, which must not wait for anything.
    with start(gevent_programs.waits_for_a_signal, reached, tmp_path) as program:
        assert eventually(lambda: program.output, lambda text: "waits" in text)
        program.signal(signal.SIGTERM)
        finished = program.finish()
    assert finished.code == -signal.SIGTERM, finished
    assert "Traceback" not in finished.output, finished
    assert whose(reached.api) == {"greenlet": [0, 1, 2]}


@pytest.mark.slow
@each_line
def test_a_preloaded_gunicorn_serves_while_its_gevent_worker_sends(line: str, reached: Reached, tmp_path: Path) -> None:
    pytest.importorskip("gunicorn")
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "gunicorn",
        "programs.greenlet_app:app",
        "-k",
        "gevent",
        "--preload",
        "-b",
        f"127.0.0.1:{port}",
    ]
    env = environment(reached.api.url, **reached.env, XDG_RUNTIME_DIR=str(tmp_path))
    hold = Hold()
    reached.api.rule = lambda request: hold if b'"request"' in request.body else None
    with WebServer([*command, "--timeout", "60"], env, tmp_path, port) as server:
        server.get("/?0")
        with ThreadPoolExecutor(1) as visitor:
            flushed = visitor.submit(server.get, "/flush")
            assert hold.arrived.wait(DEADLINE), server.output
            for serial in range(1, 10):
                server.get(f"/?{serial}")  # the only worker's hub is free
            assert not flushed.done()
            reached.api.rule = None
            hold.release()
            assert flushed.result() == "ok"
        server.get("/?10")
        server.signal(signal.SIGTERM)
        end(server)
    assert whose(reached.api) == {"before the patch": list(range(5)), "request": list(range(11))}
    assert reached.api.repeated() == {}
