"""A stream in Redis with real servers: gunicorn, uWSGI, Celery and a pool.

A process writes a line after each call that has returned. What was written must arrive, once as the API counts, however
the process ended, and although one of two relays is killed meanwhile.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from harness import eventually, first_is_quick, needs, run, whose
from programs import redis_clients
from redis_relays import KEY, Relays, Stream, started_relays  # noqa: F401
from redis_server import RedisServer, needs_redis, started_redis  # noqa: F401
from services import Load, Service, closed_gate, start_programs  # noqa: F401  (two fixtures)
from test_relay_servers import STARTS, stop_uwsgi
from uwsgi_server import LAUNCHER

from stress.ports import free_port

pytestmark = [needs_redis, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Unix"), pytest.mark.slow]


@pytest.fixture
def server(redis_server: Callable[..., RedisServer]) -> RedisServer:
    return redis_server("--appendonly", "yes")


# The name that `services` gives to the fixture of relays.
@pytest.fixture(name="runtime")
def stream(server: RedisServer, relays: Relays) -> Iterator[Stream]:
    yield Stream(server, relays)


def ended(service: Service, runtime: Stream, code: int | None = 0) -> None:
    """The service ends in order, and what its processes had appended arrives."""
    finished = service.program.finish()
    assert code is None or finished.code == code, finished
    assert not service.program.left_behind(), finished
    runtime.settle()
    service.left_nothing()


@needs("gunicorn")
@first_is_quick("worker", ["gthread", pytest.param("gevent", marks=needs("gevent"))])
@first_is_quick("preload", [True, False], ids=["preloaded", "not preloaded"])
def test_gunicorn_whose_workers_and_one_relay_are_killed(
    worker: str, preload: bool, serve: Any, runtime: Stream
) -> None:
    port = free_port()
    flags = ["-b", f"127.0.0.1:{port}", "-k", worker, "-w", "2", "--threads", "4", "--timeout", "60"]
    flags += ["--preload"] if preload else []
    service: Service = serve("", "gunicorn", "programs.relay_wsgi", *flags, port=port, **runtime.client)
    old = service.put_to_work()
    with Load(service):
        runtime.kill_a_relay()
        service.wait_for_more(50)
        if preload:  # else a killed worker has no family, and what it had not appended is lost
            for pid in old:
                service.program.signal(signal.SIGKILL, pid)
                service.wait_for_more(10)
            service.put_to_work(old=old)
    service.program.signal(signal.SIGTERM)
    ended(service, runtime)


@needs("pyuwsgi")
@first_is_quick("start", ["no flags", "lazy-apps", "without threads"])
def test_uwsgi_one_of_whose_relays_is_killed(
    start: str, serve: Any, runtime: Stream, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    package = request.getfixturevalue("threadless") if start == "without threads" else ""
    (tmp_path / "launcher.py").write_text(LAUNCHER)
    port = free_port()
    flags = ["--http-socket", f"127.0.0.1:{port}", "--die-on-term", "--master", "--processes", "2", "--need-app"]
    flags += ["--binary-path", sys.executable, "--module", "programs.relay_wsgi", *STARTS[start]]
    service: Service = serve("", "launcher.py", *flags, port=port, package=package, run=(), **runtime.client)
    service.put_to_work()
    with Load(service):
        runtime.kill_a_relay()
        service.wait_for_more(50)
    tracked = set(service.tracked())

    def has_arrived() -> bool:
        if start == "without threads":
            service.ask()  # the calls send, so the last events wait for the next one
        return tracked <= came(service)

    # uWSGI runs no exit handlers in a worker that is busy, so all has to be there before it ends.
    assert eventually(has_arrived, bool), service.output
    if start != "without threads":
        stop_uwsgi(service)
        ended(service, runtime, None)


def came(service: Service) -> set[tuple[str, int]]:
    return {(who, serial) for who, serials in whose(service._api).items() for serial in serials}


@needs("celery")
def test_celery_one_of_whose_relays_is_killed(serve: Any, runtime: Stream, tmp_path: Path) -> None:
    (tmp_path / "queue").mkdir()
    flags = ["-A", "programs.relay_tasks", "worker", "--loglevel", "WARNING", "--concurrency", "2"]
    flags += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    service: Service = serve("", "celery", *flags, TEST_STAYING="0", TEST_ENDLESS="0", **runtime.client)
    runtime.kill_a_relay()
    assert eventually(lambda: len([who for who, _ in service.tracked() if who == "task"]), lambda n: n == 20) == 20
    service.program.signal(signal.SIGTERM)
    ended(service, runtime)


def test_a_pool_that_is_terminated(runtime: Stream, letter_api: Any, tmp_path: Path) -> None:
    finished = run(redis_clients.pool, letter_api.url, tmp_path, runtime.server.url, KEY)
    assert finished.code == 0 and finished.output == "tracked\n", finished
    runtime.settle()
    assert {who: sorted(serials) for who, serials in whose(letter_api).items()} == {
        f"pool {serial}": list(range(10)) for serial in range(50)
    }
