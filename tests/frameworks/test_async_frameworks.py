"""Frameworks that have a server of their own: aiohttp, Tornado, Sanic, Twisted."""

from __future__ import annotations

import re
import signal

import psutil
import pytest
from applications import Start, ended, installed
from harness import eventually, needs

AIOHTTP = ("-m", "aiohttp.web", "-H", "127.0.0.1", "-P", "{port}", "shop:create_app")
GUNICORN = (
    "-m",
    "gunicorn",
    "-w",
    "2",
    "-k",
    "aiohttp.GunicornWebWorker",
    "-b",
    "127.0.0.1:{port}",
    "shop:create_app()",
)
SANIC = ("-m", "sanic", "shop", "--port", "{port}")
TWISTD = (installed("twistd"), "--nodaemon", "--pidfile=", "--python", "shop.py")

each_end = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])


@pytest.mark.gate
@needs("aiohttp")
@each_end
def test_aiohttp(number: int, start: Start) -> None:
    shop = start("aiohttp", *AIOHTTP)
    shop.orders(20)
    shop.waits()
    shop.stop(number)
    shop.all_arrived()


@needs("aiohttp")
@needs("gunicorn")
@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["not preloaded", "preloaded"])
def test_aiohttp_under_gunicorn(options: tuple[str, ...], start: Start) -> None:
    shop = start("aiohttp", *GUNICORN, *options)
    shop.orders(20)
    shop.waits()
    shop.stop(code=0)
    shop.all_arrived()


@pytest.mark.gate
@needs("tornado")
@each_end
def test_tornado_with_forked_processes(number: int, start: Start) -> None:
    shop = start("tornado", "shop.py", listens=True)
    shop.orders(20)
    shop.waits()
    workers = shop.workers()
    shop.program.signal_group(number)  # as systemd and a terminal do: Tornado's parent does not pass signals on
    assert len(workers) == 2 and ended(workers), shop.output
    shop.program.finish()
    shop.all_arrived()


@needs("tornado")
def test_tornado_replaces_a_killed_process(start: Start) -> None:
    shop = start("tornado", "shop.py", listens=True)
    shop.orders(20)
    shop.waits()
    killed = shop.workers()[0]
    killed.kill()
    assert ended([killed]) and eventually(shop.order, bool), shop.output
    eventually(shop.workers, lambda found: len(found) == 2)
    shop.orders(10)
    workers = shop.workers()
    shop.program.signal_group(signal.SIGINT)
    assert ended(workers), shop.output
    shop.program.finish()
    shop.all_arrived(once=False)


@needs("sanic")
@each_end
def test_sanic(number: int, start: Start) -> None:
    shop = start("sanic", *SANIC, "--single-process")
    shop.orders(20)
    shop.waits()
    shop.stop(number)
    shop.all_arrived()


@needs("sanic")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_sanic_with_workers(number: int, start: Start) -> None:
    shop = start("sanic", *SANIC, "--workers", "2")
    shop.wait_for("Worker ready", 2)
    shop.orders(20)
    shop.waits()
    workers = [psutil.Process(int(pid)) for pid in re.findall(r"Worker ready \[(\d+)\]", shop.output)]
    shop.program.signal(number)
    assert ended(workers), shop.output  # its main process itself may hang: see docs/frameworks/index.md
    shop.all_arrived()


@pytest.mark.gate
@needs("twisted")
@each_end
def test_twisted(number: int, start: Start) -> None:
    shop = start("twisted", *TWISTD, listens=True)
    shop.orders(20)
    shop.waits()
    shop.stop(number, code=-number)
    shop.all_arrived()
