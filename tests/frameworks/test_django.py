"""Django: under WSGI and ASGI servers, its own server with and without the reloader, transactions, its test runner."""

from __future__ import annotations

import signal
import sys

import pytest
from applications import Application, Start, ended, installed
from harness import eventually, needs

pytestmark = needs("django")

EXIT_SIGNALS = "exit_signals=(signal.SIGTERM,)"
LISTEN, WSGI, ASGI = "127.0.0.1:{port}", "shop.wsgi:application", "shop.asgi:application"
GRACEFULLY = ("--hook-master-start", "unix_signal:15 gracefully_kill_them_all", "--binary-path", sys.executable)
SERVERS = {
    "gunicorn": ("gunicorn", "-w", "2", "-b", LISTEN, WSGI),
    "gunicorn --preload": ("gunicorn", "-w", "2", "--preload", "-b", LISTEN, WSGI),
    "uWSGI": ("pyuwsgi", "--http-socket", LISTEN, "--module", "shop.wsgi", "--master", "--processes", "2", *GRACEFULLY),
    "daphne": ("daphne", "-b", "127.0.0.1", "-p", "{port}", ASGI),
    "hypercorn": ("hypercorn", "-b", LISTEN, ASGI),
    "granian": ("granian", "--interface", "asginl", "--workers", "2", "--port", "{port}", ASGI),
}
UVICORN = {
    "uvicorn": ("uvicorn", "--port", "{port}", ASGI),
    "uvicorn --workers": ("uvicorn", "--workers", "2", "--port", "{port}", ASGI),
    "gunicorn with uvicorn's worker": ("gunicorn", "-k", "uvicorn.workers.UvicornWorker", "-b", LISTEN, ASGI),
}
RUNSERVER = ("manage.py", "runserver", "--skip-checks", LISTEN)


def serve(start: Start, command: tuple[str, ...], without: str = "") -> Application:
    pytest.importorskip(command[0])
    command = (installed("pyuwsgi"), *command[1:]) if command[0] == "pyuwsgi" else ("-m", *command)
    shop = start("django", *command, without=without)
    if "granian" in command:
        shop.wait_for("Started worker", 2)
    return shop


@pytest.mark.parametrize("server", SERVERS)
def test_nothing_has_to_be_written_for(server: str, start: Start) -> None:
    shop = serve(start, SERVERS[server], without=EXIT_SIGNALS)
    shop.orders(20)
    shop.waits()
    shop.stop()
    shop.all_arrived()


OTHERS = {"hypercorn -w 2": ("hypercorn", "-w", "2", "-b", LISTEN, ASGI)}


@pytest.mark.parametrize("server", [*SERVERS, *UVICORN, *OTHERS])
def test_exit_signals_are_right_for(server: str, start: Start) -> None:
    shop = serve(start, {**SERVERS, **UVICORN, **OTHERS}[server])
    shop.orders(20)
    shop.waits()
    shop.stop()
    shop.all_arrived()


@pytest.mark.parametrize("server", UVICORN)
def test_without_exit_signals_events_are_lost_with(server: str, start: Start) -> None:
    shop = serve(start, UVICORN[server], without=EXIT_SIGNALS)
    shop.orders(20)
    shop.stop()
    assert shop.arrived() == []


@needs("gunicorn")
def test_preloaded_workers_share_a_client(start: Start) -> None:
    """What they had not sent when they were killed is sent by the others."""
    shop = serve(start, SERVERS["gunicorn --preload"])
    workers = eventually(shop.workers, lambda found: len(found) == 2)
    shop.orders(20)
    shop.waits()
    for worker in workers:
        worker.kill()
    assert ended(workers), shop.output
    assert eventually(shop.order, bool), shop.output
    shop.stop()
    shop.all_arrived(once=False)


def test_uvicorn_sends_meanwhile(start: Start) -> None:
    """Only what waits at the end needs `exit_signals`."""
    shop = start("django", "-m", *UVICORN["uvicorn"], late=False)
    shop.orders(20)
    assert eventually(shop.arrived, lambda arrived: len(arrived) == 20) == shop.answered
    shop.stop()
    shop.all_arrived()


@pytest.mark.gate
def test_runserver_reloads(start: Start) -> None:
    shop = start("django", *RUNSERVER)
    shop.orders(10)
    shop.waits()
    shop.reload("shop/views.py", shop.workers())
    assert shop.arrived() == shop.answered  # by the process that was replaced
    assert eventually(shop.order, bool), shop.output
    shop.orders(10)
    shop.ctrl_c()
    shop.all_arrived()


def test_runserver_without_the_reloader_at_sigterm(start: Start) -> None:
    shop = start("django", *RUNSERVER, "--noreload")
    shop.orders(20)
    shop.waits()
    shop.stop(code=-signal.SIGTERM)
    shop.all_arrived()


@pytest.mark.gate
def test_a_transaction_that_is_rolled_back_tracks_nothing(start: Start) -> None:
    assert start("django", "manage.py", "migrate").program.finish().code == 0
    shop = start("django", *RUNSERVER, "--noreload")
    shop.orders(3, "/paid-order/{}")
    assert not shop.order("/paid-order/1")  # there is one
    shop.waits()
    shop.program.signal(signal.SIGINT)
    shop.program.finish()
    assert len(shop.arrived()) == 3
    shop.all_arrived()


@pytest.mark.parametrize("options", [(), ("--parallel", "2")], ids=["one process", "parallel"])
def test_its_test_runner_sends_nothing(options: tuple[str, ...], start: Start) -> None:
    alone = {"LETTER_API_KEY": "", "LETTER_BASE_URL": "", "https_proxy": "http://127.0.0.1:9"}
    tests = start("django", "manage.py", "test", *options, **alone)
    finished = tests.ended(0)
    assert "Ran 3 tests" in finished.output
    assert tests.arrived() == []
