"""The fuzz targets: each takes any bytes, and raises if the client violates an invariant.

Responsible for: the inputs (a call, a spool file, responses of the API and of a relay, requests to a relay) and what
must hold afterwards, one module for each. Not responsible for: where the bytes come from. The real classes run on real
files and sockets; only threads are left out, so that an input always has the same effect.
"""

from __future__ import annotations

from typing import Callable, ContextManager

from . import api_responses, calls, relay_requests, relay_responses, spool_files
from .common import Run

TARGETS: dict[str, Callable[[], ContextManager[Run]]] = {
    "call": calls.call,
    "spool": spool_files.spool,
    "api": api_responses.api,
    "answer": relay_responses.answer,
    "relay": relay_requests.relay,
}

# The initial corpus of each target: inputs that already reach much of the code.
SEEDS: dict[str, list[bytes]] = {
    "call": calls.SEEDS,
    "spool": spool_files.SEEDS,
    "api": api_responses.SEEDS,
    "answer": relay_responses.SEEDS,
    "relay": relay_requests.SEEDS,
}
