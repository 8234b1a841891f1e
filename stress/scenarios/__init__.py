"""The scenarios: each module has a part that runs in the client's interpreter, and a part that runs in the harness.

A module has ``TITLES``, the names and descriptions of its scenarios; ``outside(run)``, the part in the harness, where
``run.name`` is the scenario; and ``inside(...)``, the part in the client's interpreter, which must not import anything
of this package, because it is not installed there. The order is that of the tables.
"""

from __future__ import annotations

import fnmatch
from typing import Iterable

from ..scenario_run import Scenario
from . import (
    celery_workers,
    chaos,
    clock,
    descriptors,
    exits,
    faults,
    forking_server,
    forks,
    kill_timing,
    kills,
    manager,
    memory,
    outages,
    pools,
    redis_stream,
    relay,
    rq_workers,
    single,
    soak,
    spool,
    twisted_web,
    uwsgi_workers,
    web,
)

MODULES = (
    single,
    forks,
    pools,
    web,
    uwsgi_workers,
    celery_workers,
    rq_workers,
    forking_server,
    twisted_web,
    exits,
    outages,
    faults,
    clock,
    memory,
    kills,
    kill_timing,
    spool,
    relay,
    manager,
    redis_stream,
    descriptors,
    soak,
    chaos,
)

SCENARIOS = {name: Scenario(name, title, module) for module in MODULES for name, title in module.TITLES.items()}


def chosen(patterns: Iterable[str]) -> list[Scenario]:
    """The scenarios whose names match any of the shell-style ``patterns``, in the order of the tables."""
    names: set[str] = set()
    for pattern in patterns:
        matching = fnmatch.filter(SCENARIOS, pattern)
        if not matching:
            raise ValueError(f"no scenario {pattern!r}; see `python -m stress list`")
        names.update(matching)
    return [scenario for name, scenario in SCENARIOS.items() if name in names]
