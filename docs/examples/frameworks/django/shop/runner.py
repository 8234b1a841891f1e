"""Django's test runner, with which no client sends to another machine."""

from typing import Any

from django.test.runner import DiscoverRunner

from letterapp.testing import no_network


class Runner(DiscoverRunner):
    def run_tests(self, *args: Any, **kwargs: Any) -> Any:
        with no_network():
            return super().run_tests(*args, **kwargs)
