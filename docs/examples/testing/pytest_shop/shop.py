"""An application that tracks events, with a client that is created when it is imported."""

from letterapp import Letter

letter = Letter()


def complete_order(user_id: str, amount: float) -> None:
    letter.track(user_id, "Order Completed", {"amount": amount, "currency": "EUR"})
