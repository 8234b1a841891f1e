"""FastAPI and Starlette with a lifespan, under every ASGI server. Their examples are the same application."""

from __future__ import annotations

import signal

import psutil
import pytest
from applications import Application, Start, ended, runs
from harness import eventually

from letterapp.testing import IngestionServer

LISTEN = "127.0.0.1:{port}"
UVICORN_WORKER = "uvicorn.workers.UvicornWorker"
UVICORN = ("uvicorn", "--port", "{port}", "shop:app")
SERVERS = {
    "uvicorn": UVICORN,
    "uvicorn --workers": (*UVICORN, "--workers", "2"),
    "gunicorn with uvicorn's worker": (
        "gunicorn",
        "-w",
        "2",
        "-k",
        "uvicorn.workers.UvicornWorker",
        "-b",
        LISTEN,
        "shop:app",
    ),
    "hypercorn": ("hypercorn", "-b", LISTEN, "shop:app"),
    "granian": ("granian", "--interface", "asgi", "--workers", "2", "--port", "{port}", "shop:app"),
}
NEEDS_THE_LIFESPAN = [name for name in SERVERS if "uvicorn" in name]

each_framework = pytest.mark.parametrize("framework", ["fastapi", "starlette"])


def serve(start: Start, framework: str, command: tuple[str, ...], without: str = "", instead: str = "") -> Application:
    pytest.importorskip(framework)
    pytest.importorskip(command[0])
    shop = start(framework, "-m", *command, without=without, instead=instead)
    if command[0] == "granian":
        shop.wait_for("Started worker", 2)
    return shop


@each_framework
@pytest.mark.parametrize("server", SERVERS)
def test_sigterm(framework: str, server: str, start: Start) -> None:
    shop = serve(start, framework, SERVERS[server])
    shop.orders(20)
    shop.waits()
    shop.stop()
    shop.all_arrived()


@each_framework
@pytest.mark.gate
def test_sigterm_of_uvicorn(framework: str, start: Start) -> None:
    shop = serve(start, framework, UVICORN)
    shop.orders(20)
    shop.waits()
    shop.stop(code=-signal.SIGTERM)
    shop.all_arrived()


TWICE = """\
import os
import signal

import shop
from starlette.testclient import TestClient

for number in range(2):
    with TestClient(shop.app) as client:
        assert client.get(f"/order/{number}").status_code == 200
os.kill(os.getpid(), signal.SIGTERM)  # no exit callback runs: it was the lifespan that waited
"""


@each_framework
def test_an_application_may_start_twice_in_a_process(framework: str, start: Start) -> None:
    pytest.importorskip("httpx2", reason="starlette.testclient needs it")
    pytest.importorskip(framework)
    shop = start(framework, "-c", TWICE)
    shop.ended(-signal.SIGTERM)
    assert shop.arrived() == [0, 1]


@pytest.mark.parametrize("server", SERVERS)
def test_ctrl_c(server: str, start: Start) -> None:
    shop = serve(start, "fastapi", SERVERS[server])
    shop.orders(20)
    shop.waits()
    shop.program.signal_group(signal.SIGINT)
    shop.program.finish()  # some print a traceback of a KeyboardInterrupt, with any application
    shop.all_arrived()


@pytest.mark.parametrize("server", [name for name in SERVERS if name not in NEEDS_THE_LIFESPAN])
def test_without_the_lifespan_nothing_is_lost_with(server: str, start: Start) -> None:
    shop = serve(start, "fastapi", SERVERS[server], without="lifespan=lifespan")
    shop.orders(20)
    shop.stop()
    shop.all_arrived()


@pytest.mark.parametrize("server", NEEDS_THE_LIFESPAN)
def test_without_the_lifespan_events_are_lost_with(server: str, start: Start) -> None:
    shop = serve(start, "fastapi", SERVERS[server], without="lifespan=lifespan")
    shop.orders(20)
    shop.stop()
    assert shop.arrived() == []


def test_uvicorn_reloads(start: Start) -> None:
    shop = serve(start, "fastapi", (*UVICORN, "--reload"))
    shop.orders(10)
    shop.waits()
    shop.reload("shop.py", shop.workers("spawn_main"))
    assert shop.arrived() == shop.answered  # by the process that was replaced
    assert eventually(shop.order, bool), shop.output
    shop.orders(10)
    shop.stop()
    shop.all_arrived()


@pytest.mark.parametrize("server", ["uvicorn --workers", "gunicorn with uvicorn's worker", "granian"])
def test_a_reload_by_sighup(server: str, start: Start) -> None:
    shop = serve(start, "fastapi", SERVERS[server])
    shop.orders(20)
    shop.waits()
    old = shop.workers("spawn_main" if server.startswith("uvicorn") else "")
    shop.program.signal(signal.SIGHUP)
    assert old and ended(old), shop.output
    assert eventually(shop.order, bool), shop.output
    shop.stop()
    shop.all_arrived()


@pytest.mark.parametrize("server", ["uvicorn --workers", "gunicorn with uvicorn's worker"])
def test_with_a_spool_what_a_killed_worker_has_left_is_sent(server: str, start: Start) -> None:
    shop = serve(start, "fastapi", SERVERS[server], without="Letter()", instead='Letter(spool="waiting")')
    shop.orders(20)
    shop.waits()
    workers = shop.workers("spawn_main" if server.startswith("uvicorn") else "")
    for worker in workers:
        worker.kill()
    assert workers and ended(workers), shop.output
    assert eventually(shop.order, bool), shop.output  # by a worker that replaces one of them
    shop.program.signal(signal.SIGTERM)
    shop.program.finish()
    shop.all_arrived(once=False)


HYPERCORN = ("hypercorn", "-w", "2", "-b", LISTEN, "shop:app")


def stop_hypercorn(shop: Application, api: IngestionServer) -> list[psutil.Process]:
    """Stop it while a worker has an event for an API that does not answer, and the other worker has none.

    Hypercorn waits for the first worker that ends, and then sends SIGTERM to the others, which have no handler.
    """
    workers = eventually(lambda: shop.workers("spawn_main"), lambda found: len(found) == 2)
    shop.wait_for("Running on", 2)
    api.hold()
    shop.orders(1)
    shop.program.signal(signal.SIGTERM)
    eventually(lambda: [one for one in workers if runs(one)], lambda left: len(left) < 2)
    return workers


def test_hypercorn_kills_workers_that_end_later_than_the_first(letter_api: IngestionServer, start: Start) -> None:
    shop = serve(start, "fastapi", HYPERCORN)
    assert ended(stop_hypercorn(shop, letter_api)), shop.output
    # Otherwise it would have waited for the API, and have reported the event when its time was over.
    assert shop.arrived() == [] and "letterapp:" not in shop.output, shop.output
    letter_api.release()
    shop.program.finish()


def test_exit_signals_are_enough_for_hypercorns_workers(letter_api: IngestionServer, start: Start) -> None:
    new = "import signal\n\nletter = Letter(exit_signals=(signal.SIGTERM,))"
    shop = serve(start, "fastapi", HYPERCORN, without="letter = Letter()", instead=new)
    workers = stop_hypercorn(shop, letter_api)
    assert not ended(workers, 0.5), shop.output  # it waits for the API
    letter_api.release()
    assert ended(workers), shop.output
    shop.program.finish()
    shop.all_arrived()
