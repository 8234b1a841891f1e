"""The application that uWSGI serves. "/hold" tracks, and stays in the request until the test lets it go.

What `slow` holds leaves only when something makes it leave: its count, or the end of the worker.
"""

from __future__ import annotations

import json
import os
import urllib.request
from typing import Any, Callable

import letterapp  # a test may have replaced it with its own class instead of its `Letter`


def create() -> Callable[..., list[bytes]]:
    """One application, with two separate clients, which are made where it is imported."""
    import uwsgi  # noqa: F401

    api = os.environ["TEST_API"]
    flush_at = int(os.environ["TEST_FLUSH_AT"])
    letters = {
        "quick": letterapp.Letter("k", api, flush_interval=0.02, exit_timeout=25),
        "slow": letterapp.Letter("k", api, flush_interval=3600, exit_timeout=25, flush_at=flush_at),
    }
    for name, letter in letters.items():
        letter.track(f"{name} at import", "Imported", {"serial": os.getpid()})

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        for serial in json.loads(f"[{environ['QUERY_STRING']}]"):
            for name, letter in letters.items():
                letter.track(name, "Worked", {"serial": serial})
        if environ["PATH_INFO"] == "/hold":
            urllib.request.urlopen(f"{api}/hold/{os.getpid()}", b"{}", timeout=60).read()
        modes = {name: letter.stats()["mode"] for name, letter in letters.items()}
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps({"pid": os.getpid(), "modes": modes}).encode()]

    return application
