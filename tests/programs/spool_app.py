"""A WSGI application whose client has a spool, in TEST_SPOOL."""

from __future__ import annotations

import os
from typing import Any

from programs.common import make, work

letter = make(spool=os.environ["TEST_SPOOL"])


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    if environ["PATH_INFO"] == "/track":
        work(letter, 1, "asked")
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
