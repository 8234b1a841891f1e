"""How hypothesis chooses the examples of a test: the same ones each time, and none is too slow for a busy machine.

Responsible for: these settings. Not responsible for: looking for examples that nobody has thought of (``stress fuzz``).
"""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings


def examples(most: int = 100, **more: Any) -> settings:
    """Settings with at most ``most`` examples, and ``more`` of them."""
    slow = [HealthCheck.too_slow]
    return settings(max_examples=most, derandomize=True, deadline=None, suppress_health_check=slow, **more)
