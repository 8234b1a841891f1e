"""Run them with `python manage.py test`, or with `python manage.py test --parallel`."""

from django.db import IntegrityError
from django.test import TestCase

from letterapp.testing import capture


class OrderTest(TestCase):
    def test_an_order_is_tracked(self) -> None:
        with capture() as letter:
            self.client.get("/order/1")
            letter.assert_tracked("Order Completed", user_id="user_42", number=1)


class PaidOrderTest(TestCase):
    def test_a_paid_order_is_tracked(self) -> None:
        # A TestCase never commits its transaction: this calls what `on_commit` has been given.
        with capture() as letter, self.captureOnCommitCallbacks(execute=True):
            self.client.get("/paid-order/1")
        letter.assert_tracked("Order Completed", user_id="user_42", number=1)

    def test_a_failed_order_is_not_tracked(self) -> None:
        self.client.get("/paid-order/1")
        with capture() as letter, self.captureOnCommitCallbacks(execute=True), self.assertRaises(IntegrityError):
            self.client.get("/paid-order/1")
        assert letter.events == []
