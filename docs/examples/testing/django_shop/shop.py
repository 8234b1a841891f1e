"""The application: a view that tracks an event, with a client that is created when the module is imported."""

from django.http import HttpRequest, HttpResponse
from django.urls import path

from letterapp import Letter

letter = Letter("lt_live_key")


def complete_order(request: HttpRequest) -> HttpResponse:
    letter.track(request.GET["user"], "Order Completed", {"amount": int(request.GET["amount"])})
    return HttpResponse("thank you")


urlpatterns = [path("order", complete_order)]
