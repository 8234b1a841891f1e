"""Modules that only annotations need.

Responsible for: `LazyModule`, a placeholder for a module until an attribute is used. Not responsible for: modules that
a call needs.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class LazyModule:
    """Imports a module when an annotation is evaluated: `typing` alone takes longer to import than this package."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        from importlib import import_module

        return getattr(import_module(self._name), name)
