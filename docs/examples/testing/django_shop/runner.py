"""Django's test runner, without the network for letterapp's clients, in its parallel processes too."""

from typing import Any

from django.test.runner import DiscoverRunner

from letterapp.testing import no_network


class Runner(DiscoverRunner):
    def run_tests(self, *args: Any, **kwargs: Any) -> Any:
        with no_network():
            return super().run_tests(*args, **kwargs)
