"""Modules that only annotations name.

Responsible for: `LazyModule`, a module's stand-in until somebody asks for what it has. Not responsible for: what a call
needs.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class LazyModule:
    """Imports the module when an annotation is evaluated: `typing` alone costs more than this whole package."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        from importlib import import_module

        return getattr(import_module(self._name), name)
