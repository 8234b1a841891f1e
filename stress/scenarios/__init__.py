"""The scenarios: each file has its inner part, played in the client's interpreter, and its outer part, played here.

A module has ``TITLES``, the names it answers to and what they are; ``outside(run)``, which asks ``run.name``; and
``inside(...)``, which imports nothing of this package, because where it runs there is none. Order is the table's.
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
    descriptors,
    soak,
    chaos,
)

SCENARIOS = {name: Scenario(name, title, module) for module in MODULES for name, title in module.TITLES.items()}


def chosen(patterns: Iterable[str]) -> list[Scenario]:
    """The scenarios whose names match any of ``patterns``, as a shell matches; in the table's order."""
    names: set[str] = set()
    for pattern in patterns:
        matching = fnmatch.filter(SCENARIOS, pattern)
        if not matching:
            raise ValueError(f"no scenario {pattern!r}: see `python -m stress list`")
        names.update(matching)
    return [scenario for name, scenario in SCENARIOS.items() if name in names]
