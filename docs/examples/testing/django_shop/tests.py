"""Run it with `python manage.py test`, or with `python manage.py test --parallel`."""

from django.test import SimpleTestCase

from letterapp.testing import capture


class OrderTest(SimpleTestCase):
    def test_an_order_is_tracked(self) -> None:
        with capture() as letter:
            self.client.get("/order?user=user_42&amount=99")
            letter.assert_tracked("Order Completed", user_id="user_42", amount=99)


class AccountTest(SimpleTestCase):
    def test_another_order_is_tracked(self) -> None:
        with capture() as letter:
            self.client.get("/order?user=user_43&amount=1")
            assert [item["userId"] for item in letter.events] == ["user_43"]
