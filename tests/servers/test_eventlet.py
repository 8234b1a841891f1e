"""eventlet: patched before or after the client was created, signals in its hub, forks, gunicorn's worker.

Responsible for: what eventlet's hub does to a client, and the client to the hub. Not responsible for: TLS, of which
test_gevent.py has the same programs.
"""

from __future__ import annotations

import importlib.util
import signal
import sys
from pathlib import Path
from typing import Any, Callable

import harness
import pytest
from harness import DEADLINE, Program, WebServer, environment, eventually, first_is_quick, whose
from patched import BEFORE, BEGINNINGS, end, tracked_before
from programs import eventlet_programs

from letterapp.testing import Hold
from stress.ports import free_port

pytestmark = pytest.mark.skipif(importlib.util.find_spec("eventlet") is None, reason="eventlet is not installed")

each_beginning = first_is_quick("beginning", [*BEGINNINGS, "never patched"])


def start(
    program: Callable[..., None], api: Any, tmp_path: Path, *arguments: str, beginning: str = BEFORE, **env: str
) -> Program:
    env = {"TEST_GREENLETS": "eventlet", "TEST_BEGINNING": beginning, **env}
    # It says at each import that it is not for new projects.
    return harness.start(program, api.url, tmp_path, *arguments, PYTHONWARNINGS="ignore", **env)


def has_module(package: str, *names: str) -> bool:
    """True when that module is installed. Imports nothing: what eventlet patches is the whole process's."""
    spec = importlib.util.find_spec(package)
    return spec is not None and Path(str(spec.origin)).parent.joinpath(*names).with_suffix(".py").exists()


@each_beginning
def test_many_greenlets_track_at_once_and_all_events_arrive(beginning: str, letter_api: Any, tmp_path: Path) -> None:
    with start(eventlet_programs.many_greenlets, letter_api, tmp_path, beginning=beginning) as program:
        end(program)
    expected = {f"greenlet {number}": list(range(20)) for number in range(30)}
    assert whose(letter_api) == {**expected, **tracked_before(beginning), "at the end": [0, 1, 2]}
    assert letter_api.repeated() == {}


@pytest.mark.slow
def test_the_hub_runs_while_the_client_sends(letter_api: Any, tmp_path: Path) -> None:
    hold = Hold()
    letter_api.plan(hold)
    with start(eventlet_programs.ticks, letter_api, tmp_path) as program:
        assert hold.arrived.wait(DEADLINE), program.output
        ticks = program.output.count("tick\n")
        later = eventually(lambda: program.output.count("tick\n"), lambda count: count > ticks + 10)
        assert later > ticks + 10 and "settled" not in program.output, "the hub stood still"
        hold.release()
        end(program)
    assert whose(letter_api) == {"program": [0, 1, 2]}


# Signals. The handler runs in the hub, which must not wait there; and the wait that it interrupts continues after it.

HUBS = [None, "poll", "selects", "asyncio"]  # the first is the system's: epoll, kqueue


@first_is_quick("waits_for", ["nothing", "a request"])
@first_is_quick("hub", HUBS)
def test_exit_signals_deliver_and_call_the_applications_handler(
    hub: str | None, waits_for: str, letter_api: Any, tmp_path: Path
) -> None:
    if hub is not None and not has_module("eventlet", "hubs", hub):
        pytest.skip(f"this eventlet has no hub {hub}")
    _signalled("continues", waits_for, 0, letter_api, tmp_path, **({"EVENTLET_HUB": hub} if hub else {}))
    assert whose(letter_api) == {"greenlet": [0, 1, 2], "after the handler": [0, 1, 2]}


@pytest.mark.slow
@pytest.mark.parametrize(("handler", "code"), [("default", -signal.SIGTERM), ("exits", 7)])
@first_is_quick("waits_for", ["nothing", "a request"])
def test_exit_signals_deliver_before_a_program_ends(
    handler: str, code: int, waits_for: str, letter_api: Any, tmp_path: Path
) -> None:
    _signalled(handler, waits_for, code, letter_api, tmp_path)
    assert whose(letter_api) == {"greenlet": [0, 1, 2]}


def _signalled(handler: str, waits_for: str, code: int, letter_api: Any, tmp_path: Path, **env: str) -> None:
    hold = Hold()
    if waits_for == "a request":
        letter_api.plan(hold)
    with start(eventlet_programs.signalled, letter_api, tmp_path, handler, waits_for, **env) as program:
        if waits_for == "a request":
            assert hold.arrived.wait(DEADLINE), program.output
            (tmp_path / "arrived").touch()
        assert eventually(lambda: program.output, lambda text: "waits" in text)
        program.signal(signal.SIGTERM)
        if waits_for == "a request":
            hold.release()
        finished = program.finish(30)
    assert finished.code == code and "Traceback" not in finished.output, finished
    assert finished.output.count("mine") == (handler != "default"), finished


@pytest.mark.slow
def test_forks_of_a_patched_program(letter_api: Any, tmp_path: Path) -> None:
    with start(eventlet_programs.forks, letter_api, tmp_path) as program:
        end(program)
    whole = list(range(10))
    assert whose(letter_api) == {"parent": whole, "child by exit": whole, "child by _exit": whole}


def test_gunicorns_eventlet_worker(letter_api: Any, tmp_path: Path) -> None:
    if not has_module("gunicorn", "workers", "geventlet"):
        pytest.skip("no gunicorn with an eventlet worker (26 has none any more)")
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "gunicorn",
        "programs.greenlet_app:app",
        "-k",
        "eventlet",
        "--preload",
        "-b",
        f"127.0.0.1:{port}",
    ]
    with WebServer(command, environment(letter_api.url, PYTHONWARNINGS="ignore"), tmp_path, port) as server:
        for serial in range(10):
            server.get(f"/?{serial}")
        server.signal(signal.SIGTERM)
        end(server)
    assert whose(letter_api) == {"before the patch": list(range(5)), "request": list(range(10))}
