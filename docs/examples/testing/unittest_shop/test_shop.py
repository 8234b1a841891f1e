"""Run it with `python -m unittest`."""

import os
import unittest

import shop

from letterapp.testing import capture, no_network

_network = no_network()


def setUpModule() -> None:
    _network.__enter__()  # from Python 3.11 on: unittest.enterModuleContext(no_network())
    unittest.addModuleCleanup(_network.__exit__, None, None, None)


class OrderTest(unittest.TestCase):
    def test_an_order_is_tracked(self) -> None:
        with capture() as letter:
            shop.complete_order("user_42", amount=99)
            letter.assert_tracked("Order Completed", user_id="user_42", amount=99)

    @unittest.skipUnless(hasattr(os, "fork"), "needs os.fork")
    def test_a_forked_child_tracks(self) -> None:
        with capture() as letter:
            child = os.fork()
            if not child:
                shop.complete_order("user_42", amount=99)
                os._exit(0)
            os.waitpid(child, 0)
            letter.assert_tracked("Order Completed")
