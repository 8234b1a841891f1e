"""A configuration of gunicorn whose workers print when they are ready."""

from __future__ import annotations

from typing import Any


def post_worker_init(worker: Any) -> None:
    from programs.web_clients import ready

    ready()
