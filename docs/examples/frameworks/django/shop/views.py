"""Views that track an event."""

from functools import partial

from django.db import transaction
from django.http import HttpRequest, HttpResponse

from shop.analytics import letter
from shop.models import Order


def complete_order(request: HttpRequest, number: int) -> HttpResponse:
    letter.track("user_42", "Order Completed", {"number": number})
    return HttpResponse("thank you")


@transaction.atomic
def complete_paid_order(request: HttpRequest, number: int) -> HttpResponse:
    # Not before the transaction is committed: it may still be rolled back.
    transaction.on_commit(partial(letter.track, "user_42", "Order Completed", {"number": number}))
    Order.objects.create(number=number)  # fails if there is one with this number
    return HttpResponse("thank you")
