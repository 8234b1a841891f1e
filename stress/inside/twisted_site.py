"""The site of ``twistd web``: it tracks when it is imported, and in each request, on the reactor's thread.

A resource instead of a WSGI application: if such a server is stopped under load, the thread pool and the reactor may
wait for each other forever (Twisted 26.10, with any application).
"""

from __future__ import annotations

import os
from typing import Any

import tracker
from twisted.web.resource import Resource

AT_IMPORT, PER_REQUEST = 5, 3  # events

tracker.track(AT_IMPORT)


class Site(Resource):
    isLeaf = True

    def render_GET(self, request: Any) -> bytes:
        tracker.track(PER_REQUEST)
        return b"%d" % os.getpid()
