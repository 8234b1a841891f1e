"""Flask's own server, with and without its reloader. Under other servers: test_wsgi_servers.py."""

from __future__ import annotations

import pytest
from applications import Start
from harness import eventually, needs

pytestmark = needs("flask")

RUN = ("-m", "flask", "--app", "shop", "run", "--port", "{port}")


@pytest.mark.gate
def test_ctrl_c(start: Start) -> None:
    shop = start("flask", *RUN)
    shop.orders(20)
    shop.waits()
    shop.ctrl_c()
    shop.all_arrived()


def test_the_debug_reloader(start: Start) -> None:
    shop = start("flask", *RUN, "--debug")
    shop.orders(10)
    shop.waits()
    shop.reload("shop.py", shop.workers())
    assert shop.arrived() == shop.answered  # by the process that was replaced
    assert eventually(shop.order, bool), shop.output
    shop.orders(10)
    shop.ctrl_c()
    shop.all_arrived()


@pytest.mark.parametrize("options", [(), ("--debug",)], ids=["alone", "with the reloader"])
def test_sigterm_loses_what_waits(options: tuple[str, ...], start: Start) -> None:
    """It is a server for development. In a container it would need `exit_signals`, or a server for production."""
    shop = start("flask", *RUN, *options)
    shop.orders(20)
    shop.stop()
    assert shop.arrived() == []
