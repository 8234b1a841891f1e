"""The site of ``twistd web``: it tracks while it is imported, and in each request, on the reactor's thread.

A resource rather than a WSGI application: when such a server is stopped at work, the pool's thread may wait for the
reactor and the reactor's end for the pool, for ever (Twisted 26.10, seen without any client).
"""

from __future__ import annotations

import os
from typing import Any

import tracker
from twisted.web.resource import Resource

AT_IMPORT, A_REQUEST = 5, 3  # events

tracker.track(AT_IMPORT)


class Site(Resource):
    isLeaf = True

    def render_GET(self, request: Any) -> bytes:
        tracker.track(A_REQUEST)
        return b"%d" % os.getpid()
