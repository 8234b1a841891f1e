"""The application's configuration. Django finds it by itself."""

from django.apps import AppConfig


class ShopConfig(AppConfig):
    name = "shop"

    def ready(self) -> None:
        # Views are imported at the first request, perhaps in a thread, and after a preloading server has forked.
        from shop import analytics  # noqa: F401
