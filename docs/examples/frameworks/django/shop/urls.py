"""The pages."""

from django.urls import path

from shop import views

urlpatterns = [
    path("order/<int:number>", views.complete_order),
    path("paid-order/<int:number>", views.complete_paid_order),
]
