"""The relay with real servers: gunicorn, uWSGI, uvicorn and Celery, however they and their workers end.

Each is started with a client whose relay keeps everything until its clients have gone. So what arrives is what the
relay had and sent at the end, whether any exit handler ran or not.

A process writes a line after each call that has returned. What was written must arrive, once, however the process
ended; the servers have nothing to complain about; one relay serves at a time, and none is left.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Sequence

import psutil
import pytest
from harness import DEADLINE, eventually, first_is_quick, needs
from relayed import own_runtime, read_to_end  # noqa: F401  (the first is a fixture that is there for all)
from services import Load, Service, closed_gate, gone, start_programs  # noqa: F401  (two fixtures)
from uwsgi_server import LAUNCHER
from webapps import Gate

from letterapp.testing import Hold
from stress.ports import free_port

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Unix")


# Nothing leaves this client's relay before somebody asks for a flush or its last client is gone.
PATIENT: dict[str, Any] = {"relay": True, "flush_interval": 600, "flush_at": 10_000}


def client(**options: Any) -> dict[str, str]:
    """The environment that has an application's client made with these options."""
    return {"TEST_CLIENT": json.dumps(options)}


@pytest.fixture
def gunicorn(serve: Any) -> Callable[..., Service]:
    def start(worker: str = "gthread", preload: bool = True, *more: str) -> Service:
        port = free_port()
        flags = ["-b", f"127.0.0.1:{port}", "-k", worker, "-w", "2", "--threads", "4", "--timeout", "60", *more]
        flags += ["--preload"] if preload else []
        service: Service = serve("", "gunicorn", "programs.relay_wsgi", *flags, port=port, **client(**PATIENT))
        service.put_to_work()
        return service

    return start


# gunicorn.

each_worker = first_is_quick("worker", ["gthread", pytest.param("gevent", marks=needs("gevent"))])
preloaded_or_not = first_is_quick("preload", [True, False], ids=["preloaded", "not preloaded"])


@needs("gunicorn")
@each_worker
@preloaded_or_not
def test_gunicorns_graceful_stop(worker: str, preload: bool, gunicorn: Any) -> None:
    service = gunicorn(worker, preload)
    service.one_relay()
    with Load(service):
        service.program.signal(signal.SIGTERM)
        service.ended()


@pytest.mark.slow
@needs("gunicorn")
@each_worker
@preloaded_or_not
def test_gunicorns_reload_and_quick_stop(worker: str, preload: bool, gunicorn: Any) -> None:
    service = gunicorn(worker, preload)
    relay, old = service.one_relay(), service.at_work()
    with Load(service):
        service.program.signal(signal.SIGHUP)
        assert gone(old), service.output
        service.put_to_work(old=old)
        # Without preload there is a moment without any worker's lease, if all leave before the new ones have theirs.
        assert not preload or service.one_relay() == relay
        service.one_relay()
    service.put_to_work(old=old)
    service.program.signal(signal.SIGQUIT)
    service.ended()


@pytest.mark.slow
@needs("gunicorn")
@each_worker
@preloaded_or_not
def test_gunicorns_workers_are_killed_under_load(worker: str, preload: bool, gunicorn: Any) -> None:
    service = gunicorn(worker, preload)
    relay, old = service.one_relay(), service.at_work()
    with Load(service):
        for pid in old:
            service.program.signal(signal.SIGKILL, pid)
            service.wait_for_more(10)
        service.put_to_work(old=old)
    assert service.one_relay() == relay or not preload
    service.program.signal(signal.SIGTERM)
    service.ended()


def to_the_group(number: int) -> Callable[[Service], None]:
    return lambda service: service.program.signal_group(number)


def to_the_control_group(service: Service) -> None:
    """What systemd does to stop a service: SIGTERM to each process of it, and the relay's is one."""
    for process in [*service.program.descendants(), service.one_relay(), psutil.Process(service.program.pid)]:
        try:
            process.terminate()
        except psutil.NoSuchProcess:
            pass  # the master has ended it already


STOPS = {
    "SIGTERM to the group": to_the_group(signal.SIGTERM),
    "Ctrl-C": to_the_group(signal.SIGINT),
    "SIGTERM to all and the relay": to_the_control_group,
}
each_stop = first_is_quick("stop", STOPS.values(), ids=STOPS.keys())


@pytest.mark.slow
@needs("gunicorn")
@each_worker
@each_stop
def test_gunicorn_is_stopped_with_all_its_processes(worker: str, stop: Any, gunicorn: Any) -> None:
    # A gthread worker that gets two signals at once sometimes waits for itself forever, until its master kills it.
    service = gunicorn(worker, True, "--graceful-timeout", "3")
    service.one_relay()
    with Load(service):
        stop(service)
        service.ended(None)


@needs("gunicorn")
@each_worker
@preloaded_or_not
def test_gunicorns_master_is_killed_and_its_workers_end(worker: str, preload: bool, gunicorn: Any) -> None:
    service = gunicorn(worker, preload)
    with Load(service):
        service.program.signal(signal.SIGKILL)
        service.ended(-signal.SIGKILL)


@needs("gunicorn")
def test_a_relay_that_is_still_sending_keeps_no_port_of_the_server_open(gunicorn: Any, letter_api: Any) -> None:
    service = gunicorn()
    relay = service.one_relay()
    hold = Hold()
    letter_api.plan(hold)
    service.program.signal_group(signal.SIGKILL)
    service.program.finish()
    assert not service.program.left_behind()
    assert hold.arrived.wait(DEADLINE)
    service.port_is_free()
    assert relay.is_running()
    hold.release()
    service.left_nothing()


# uWSGI.

# Each is one line of uWSGI's documentation, but the last, which is a version whose workers run no threads.
STARTS: dict[str, Sequence[str]] = {
    "no flags": (),
    "threads 2": ("--threads", "2"),
    "lazy-apps": ("--lazy-apps",),
    "without threads": (),
}
every_start = first_is_quick("start", STARTS)


@pytest.fixture
def uwsgi(serve: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., Service]:
    def start(start: str = "no flags", *more: str) -> Service:
        (tmp_path / "launcher.py").write_text(LAUNCHER)
        port = free_port()
        package = request.getfixturevalue("threadless") if start == "without threads" else ""
        flags = ["--http-socket", f"127.0.0.1:{port}", "--die-on-term", "--master", "--processes", "2", "--need-app"]
        # A reload executes what uWSGI takes for its binary, which may know nothing of this environment's packages.
        flags += ["--binary-path", sys.executable, "--module", "programs.relay_wsgi", *STARTS[start], *more]
        service: Service = serve("", "launcher.py", *flags, port=port, package=package, run=(), **client(**PATIENT))
        service.put_to_work()
        return service

    return start


def stop_uwsgi(service: Service) -> None:
    """Send SIGTERM until uWSGI says that it stops: it ignores the signal until its master's loop runs."""
    for _ in range(60):
        service.program.signal(signal.SIGTERM)
        if eventually(lambda: "received...killing workers" in service.output, bool, 1.0):
            return
    raise AssertionError(service.output)


def requests_in_progress(stats: Path) -> int:
    """How many requests uWSGI's workers have not finished, as its stats server says."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(DEADLINE)
        sock.connect(str(stats))
        workers = json.loads(read_to_end(sock))["workers"]
    return sum(core["in_request"] for worker in workers for core in worker["cores"])


@needs("pyuwsgi")
@every_start
def test_uwsgi_is_stopped_under_load(start: str, uwsgi: Any) -> None:
    service = uwsgi(start)
    service.one_relay()
    with Load(service):
        stop_uwsgi(service)
        service.ended()


@pytest.mark.slow
@needs("pyuwsgi")
@every_start
def test_uwsgi_is_stopped_right_after_a_response(start: str, uwsgi: Any) -> None:
    service = uwsgi(start)
    service.one_relay()
    assert service.ask()
    stop_uwsgi(service)
    service.ended()


@pytest.mark.slow
@needs("pyuwsgi")
@every_start
def test_uwsgi_is_stopped_in_the_middle_of_requests(start: str, uwsgi: Any, gate: Gate) -> None:
    service = uwsgi(start)
    with ThreadPoolExecutor(2) as visitors:
        answers = [visitors.submit(service.ask, "/stay") for _ in range(2)]
        gate.wait_for(2)
        stop_uwsgi(service)
        service.ended()
        assert [answer.result() for answer in answers] == [False, False]


@pytest.mark.slow
@needs("pyuwsgi")
@every_start
def test_uwsgis_reload(start: str, uwsgi: Any) -> None:
    service = uwsgi(start)
    old = service.at_work()
    for _ in range(2):
        with Load(service):
            service.program.signal(signal.SIGHUP)
            assert gone(old), service.output
            service.put_to_work(old=old)
        service.one_relay()  # the first has left, or was joined by who came after it
        old = service.at_work()
    stop_uwsgi(service)
    service.ended()


@pytest.mark.slow
@needs("pyuwsgi")
@every_start
@pytest.mark.parametrize("by", ["SIGKILL", pytest.param("harakiri", marks=pytest.mark.slow)])
def test_uwsgis_workers_are_killed_in_the_middle_of_requests(
    by: str, start: str, uwsgi: Any, gate: Gate, tmp_path: Path
) -> None:
    stats = tmp_path / "stats.sock"
    service = uwsgi(start, *(["--harakiri", "1", "--stats", str(stats)] if by == "harakiri" else []))
    old = service.at_work()
    if by == "harakiri":
        # A thread removes the time limit of its whole worker shortly after it has answered a request.
        assert not eventually(lambda: requests_in_progress(stats), lambda count: not count), service.output
    with ThreadPoolExecutor(2) as visitors:
        answers = [visitors.submit(service.ask, "/stay") for _ in range(2)]
        gate.wait_for(2)
        if by == "SIGKILL":
            for pid in old:
                service.program.signal(signal.SIGKILL, pid)
        assert [answer.result() for answer in answers] == [False, False], service.output
    killed = old if by == "SIGKILL" else service.last_at_work(2)
    assert killed and gone(killed), service.output
    gate.open()
    service.put_to_work(old=killed)
    service.one_relay()
    stop_uwsgi(service)
    service.ended()


@pytest.mark.slow
@needs("pyuwsgi")
@each_stop
def test_uwsgi_is_stopped_with_all_its_processes(stop: Any, uwsgi: Any) -> None:
    service = uwsgi()
    with Load(service):
        stop(service)
        service.ended(None)


@needs("pyuwsgi")
def test_the_relay_of_uwsgi_keeps_no_port_open(uwsgi: Any, letter_api: Any) -> None:
    service = uwsgi()
    relay = service.one_relay()
    assert "executable" in service.output
    hold = Hold()
    letter_api.plan(hold)
    service.program.signal_group(signal.SIGKILL)
    service.program.finish()
    assert not service.program.left_behind()
    assert hold.arrived.wait(DEADLINE)
    service.port_is_free()
    assert relay.is_running()
    hold.release()
    service.left_nothing()


# uvicorn, on whose SIGTERM no exit handler of Python runs, and no lifespan closes the client here.


@needs("uvicorn")
@first_is_quick("workers", [1, 2], ids=["alone", "two workers"])
@first_is_quick("stop", [to_the_group(signal.SIGTERM), to_the_group(signal.SIGINT)], ids=["SIGTERM", "Ctrl-C"])
def test_uvicorn(stop: Any, workers: int, serve: Any) -> None:
    port = free_port()
    flags = ["--port", str(port), "--no-access-log", "--lifespan", "off", "--workers", str(workers)]
    service = serve("", "uvicorn", "programs.relay_asgi:application", *flags, port=port, **client(**PATIENT))
    service.put_to_work(workers)
    service.one_relay()
    with Load(service):
        stop(service)
        service.ended(None)


# Celery.


@pytest.fixture
def celery(serve: Any, tmp_path: Path) -> Callable[..., Service]:
    def start(options: dict[str, Any] = PATIENT, staying: int = 0, endless: int = 0) -> Service:
        (tmp_path / "queue").mkdir()
        flags = ["-A", "programs.relay_tasks", "worker", "--loglevel", "CRITICAL", "--concurrency", "2"]
        flags += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        env = {"TEST_STAYING": str(staying), "TEST_ENDLESS": str(endless), **client(**options)}
        service: Service = serve("", "celery", *flags, **env)
        return service

    return start


def have_worked(service: Service, tasks: int = 20) -> set[int]:
    done = lambda: len([who for who, _ in service.tracked() if who == "task"])  # noqa: E731
    assert eventually(done, lambda count: count >= tasks) == tasks, service.output
    return service.at_work()


@pytest.mark.slow
@needs("celery")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT, signal.SIGINT], ids=["warm", "cold", "Ctrl-C"])
def test_a_shutdown_of_celery(number: int, celery: Any) -> None:
    service = celery()
    have_worked(service)
    service.one_relay()
    (service.program.signal_group if number == signal.SIGINT else service.program.signal)(number)
    service.ended(None)


@pytest.mark.slow
@needs("celery")
def test_a_child_of_celery_is_killed_in_the_middle_of_a_task(celery: Any, gate: Gate) -> None:
    service = celery(staying=2)
    gate.wait_for(2)
    children = service.at_work()
    assert len(children) == 2
    service.program.signal(signal.SIGKILL, min(children))
    gate.open()
    have_worked(service)
    service.program.signal_group(signal.SIGKILL)  # a Celery whose child was killed may hang, with or without a client
    service.program.finish()
    assert not service.program.left_behind()
    service.left_nothing()


# Celery raises it in a signal handler, wherever the task is.
@pytest.mark.slow
@needs("celery")
@pytest.mark.parametrize("options", [{"relay": True}, {}], ids=["relay", "without a relay"])
def test_a_soft_time_limit_in_the_middle_of_a_call(options: dict[str, Any], celery: Any) -> None:
    service = celery(options, endless=6)
    have_worked(service)
    # Nothing orders the last of these before the tasks of the other child.
    assert eventually(lambda: service.output.count("stopped"), lambda count: count >= 6) == 6, service.output
    service.program.signal(signal.SIGTERM)
    service.ended()
