"""The client of the programs of test_gevent and test_eventlet."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from programs.greenlet_patch import BEGINNING, patch  # isort: skip  (before the library is imported)

from letterapp import Letter
from programs.common import make, work

if TYPE_CHECKING:
    import ssl


def context() -> ssl.SSLContext:
    import ssl

    return ssl.create_default_context(cafile=os.environ["TEST_CA"])


def begin() -> Letter:
    """A client of a program that is patched as TEST_BEGINNING says."""
    if os.environ.get("TEST_GREENLETS") == "gevent":
        import ssl  # noqa: F401  (a patch that comes late finds it there)

    tls: dict[str, Any] = {"ssl_context": context} if os.environ.get("TEST_CONTEXT") == "own" else {}
    letter = make(flush_interval=600, flush_at=10_000, exit_timeout=30, timeout=30, **tls)
    if BEGINNING == "patched under its idle sender":
        work(letter, 5, "before the patch")
        letter.flush(0)  # asks, and does not have the thread leave
        while letter.stats()["delivered"] < 5:
            time.sleep(0.01)
    elif BEGINNING == "patched after it was used":
        work(letter, 5, "before the patch")
        assert letter.flush() is True
    if BEGINNING not in ("patched before", "never patched"):
        patch()
    return letter
