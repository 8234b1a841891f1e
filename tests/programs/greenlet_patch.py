"""Patches at its import, if TEST_BEGINNING is "patched before". A program imports it before anything of the library.

TEST_GREENLETS names what patches: gevent or eventlet.
"""

from __future__ import annotations

import os


def patch() -> None:
    if os.environ["TEST_GREENLETS"] == "gevent":
        from gevent import monkey

        monkey.patch_all()
    else:
        import eventlet

        eventlet.monkey_patch()


BEGINNING = os.environ.get("TEST_BEGINNING", "never patched")
if BEGINNING == "patched before":
    patch()
