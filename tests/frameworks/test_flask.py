"""Flask's own server, with and without its reloader."""

from __future__ import annotations

import pytest
from applications import Start, ended
from harness import eventually, needs

pytestmark = needs("flask")


@pytest.mark.gate
def test_ctrl_c(start: Start) -> None:
    shop = start("flask", "-m", "flask", "--app", "shop", "run", "--port", "{port}")
    shop.orders(20)
    shop.waits()
    shop.ctrl_c()
    shop.all_arrived()


def test_the_debug_reloader(start: Start) -> None:
    shop = start("flask", "-m", "flask", "--app", "shop", "run", "--debug", "--port", "{port}")
    shop.orders(10)
    shop.waits()
    old = shop.workers()
    shop.touch("shop.py")
    assert ended(old), shop.output
    assert eventually(shop.order, bool), shop.output
    assert len(shop.arrived()) == 10  # of the process that was replaced
    shop.orders(10)
    shop.ctrl_c()
    shop.all_arrived()
