"""Flask under every WSGI server. The examples of the servers are the same application."""

from __future__ import annotations

import signal
import sys

import pytest
from applications import Start, ended, installed
from harness import eventually, needs

pytestmark = needs("flask")

LISTEN = "127.0.0.1:{port}"
GUNICORN = ("-m", "gunicorn", "-b", LISTEN, "shop:app")
GRANIAN = ("-m", "granian", "--interface", "wsgi", "--workers", "2", "--port", "{port}", "shop:app")
HYPERCORN = ("-m", "hypercorn", "-b", LISTEN, "wsgi:shop:app")
UWSGI = (installed("pyuwsgi"), "uwsgi.ini", "--http-socket", LISTEN, "--binary-path", sys.executable)
HOOKS = ["Server Started", "Worker Started", "Worker Started", "Worker Ended", "Worker Gone", "Worker Gone"]


@pytest.mark.gate
@needs("gunicorn")
def test_gunicorn_and_its_hooks(letter_api: object, start: Start) -> None:
    shop = start("gunicorn", *GUNICORN)
    shop.orders(20)
    shop.waits()
    shop.stop(code=0)
    shop.all_arrived()
    assert shop.others() == sorted([*HOOKS, "Worker Ended", "Server Ended"])


@needs("gunicorn")
def test_gunicorn_sends_what_a_killed_worker_has_left(start: Start) -> None:
    shop = start("gunicorn", *GUNICORN)
    workers = eventually(shop.workers, lambda found: len(found) == 2)
    shop.orders(20)
    shop.waits()
    for worker in workers:
        worker.kill()
    assert ended(workers), shop.output
    assert eventually(shop.order, bool), shop.output
    shop.orders(5)
    shop.stop(code=0)
    shop.all_arrived(once=False)


@needs("gunicorn")
@pytest.mark.parametrize("example", ["gunicorn", "flask"], ids=["preloaded", "not preloaded"])
def test_gunicorn_reloads(example: str, start: Start) -> None:
    shop = start(example, *GUNICORN, "--workers", "2")
    old = eventually(shop.workers, lambda found: len(found) == 2)
    shop.orders(20)
    shop.waits()
    shop.program.signal(signal.SIGHUP)
    assert ended(old), shop.output
    assert eventually(shop.order, bool), shop.output
    shop.stop(code=0)
    shop.all_arrived()


@needs("gunicorn")
def test_ctrl_c_with_gunicorn(start: Start) -> None:
    shop = start("gunicorn", *GUNICORN)
    shop.orders(20)
    shop.waits()
    shop.program.signal_group(signal.SIGINT)
    shop.program.finish()  # it may log a SystemExit in the middle of a request, with any application
    shop.all_arrived()


@pytest.mark.gate
@needs("pyuwsgi")
def test_uwsgi_at_sigterm(start: Start) -> None:
    shop = start("uwsgi", *UWSGI)
    shop.orders(20)
    shop.waits()
    shop.stop(code=0)
    shop.all_arrived()


@needs("pyuwsgi")
def test_uwsgi_reloads(start: Start) -> None:
    shop = start("uwsgi", *UWSGI)
    old = eventually(shop.workers, lambda found: len(found) == 2)
    shop.orders(20)
    shop.waits()
    shop.program.signal(signal.SIGHUP)
    assert ended(old), shop.output
    assert eventually(shop.order, bool), shop.output
    shop.stop(code=0)
    shop.all_arrived()


@pytest.mark.parametrize(
    "command",
    [pytest.param(GRANIAN, marks=needs("granian")), pytest.param(HYPERCORN, marks=needs("hypercorn"))],
    ids=["granian", "hypercorn"],
)
def test_nothing_has_to_be_written_for(command: tuple[str, ...], start: Start) -> None:
    shop = start("flask", *command)
    if command is GRANIAN:
        shop.wait_for("Started worker", 2)
    shop.orders(20)
    shop.waits()
    shop.stop(code=0)
    shop.all_arrived()


WAITRESS = [("serve.py",), ("-m", "waitress", "--listen", LISTEN, "shop:app")]


@pytest.mark.gate
@needs("waitress")
@pytest.mark.parametrize("command", WAITRESS, ids=["serve", "waitress-serve"])
def test_waitress(command: tuple[str, ...], start: Start) -> None:
    shop = start("waitress", *command, listens=True)
    shop.orders(20)
    shop.waits()
    shop.stop(code=-signal.SIGTERM)
    shop.all_arrived()


@needs("waitress")
def test_waitress_loses_events_without_exit_signals(start: Start) -> None:
    shop = start("waitress", "serve.py", listens=True, without="exit_signals=(signal.SIGTERM,)")
    shop.orders(20)
    shop.stop()
    assert shop.arrived() == []
