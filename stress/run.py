"""The commands ``run`` and ``all``: every chosen scenario with every chosen client, one after the other, and a ledger.

Responsible for: the order, the progress, the files, the exit status. Not responsible for: what a scenario does, how a
table looks.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .peers import KNOWN, OWN, Environments, Peer
from .report import results, tables
from .scenario_run import Scenario, run_scenario
from .scenarios import SCENARIOS, chosen

# Names of this client on the command line.
THIS, THROUGH_RELAY, THROUGH_MANAGER, THROUGH_REDIS = "this", "relay", "manager", "redis"
SEVERITY = ("balances", "reported", "failed", "red")
SERVERS = (
    *("gunicorn", "packaging", "gevent", "uvicorn", "celery", "pyuwsgi>=2.0.27; sys_platform != 'win32'"),
    *("rq>=2", "twisted", "python-daemon>=3"),
    *("pytest<9", "pytest-forked"),  # which reports every test as failed under pytest 9
)


def list_scenarios() -> int:
    for scenario in SCENARIOS.values():
        print(f"{scenario.name:24} {scenario.title}")
    return 0


def run(patterns: list[str], options: argparse.Namespace) -> int:
    """Run them, show the ledger, write the files. Returns 1 unless this client balances in every scenario."""
    scenarios = chosen(patterns)
    console = Console()
    environments = Environments(
        options.python, options.cache, lambda what: console.print(f"[dim]{what}[/dim]"), extras=SERVERS
    )
    names = options.clients or [THIS, *KNOWN]
    own = {
        THIS: environments.this_client,
        THROUGH_RELAY: environments.relay,
        THROUGH_MANAGER: environments.manager,
        THROUGH_REDIS: environments.redis,
    }
    peers = [own[name]() if name in own else environments.peer(name) for name in names]
    data: dict[str, Any] = {
        "kind": "ledger",
        "command": results.command(),
        "date": results.now(),
        "machine": results.machine(),
        "python": environments.python_version,
        "versions": {peer.column: peer.version for peer in peers},
        "seed": options.seed,
        "seconds": options.seconds,
        "columns": [peer.column for peer in peers],
        "scenarios": {scenario.name: scenario.title for scenario in scenarios},
        "entries": [],
    }
    try:
        _run_all(console, scenarios, peers, environments, options, data["entries"])
    except KeyboardInterrupt:
        console.print("stopped; these are the results so far")
    if not data["entries"]:
        return 130  # stopped at once: nothing to show, so the previous ledger is kept
    tables.show_ledger(console, data)
    results.keep(json.dumps(data, indent=1) + "\n", "ledger", options)
    return _status(console, data, len(scenarios))


def _run_all(
    console: Console,
    scenarios: list[Scenario],
    peers: list[Peer],
    environments: Environments,
    options: argparse.Namespace,
    entries: list[dict[str, Any]],
) -> None:
    with Progress(
        TextColumn("{task.description:40}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    ) as progress:
        task = progress.add_task("", total=len(scenarios) * len(peers) * options.repeat)
        for scenario in scenarios:
            for peer in peers:
                repeated = []
                for number in range(options.repeat):
                    progress.update(task, description=f"{scenario.name}: {peer.column}")
                    repeated.append(run_scenario(scenario, peer, environments, options.seconds, options.seed + number))
                    progress.advance(task)
                    progress.console.print(tables.ledger_line(repeated[-1]))
                entries.append(worst(repeated))


def worst(repeated: list[dict[str, Any]]) -> dict[str, Any]:
    """The entry of a repeated scenario that the ledger keeps, with a note on how many runs did not balance."""
    found = max(repeated, key=lambda entry: (SEVERITY.index(entry["verdict"]), entry["lost"]))
    if len(repeated) == 1:
        return found
    bad = sum(entry["verdict"] in ("red", "failed") for entry in repeated)
    lost = sum(entry["lost"] for entry in repeated)
    note = f"the worst of {len(repeated)} runs: {bad} did not balance, {lost:,} events lost in all"
    return {**found, "notes": [*found["notes"], note]}


def _status(console: Console, data: dict[str, Any], scenarios: int) -> int:
    balances = True
    for column in filter(OWN.__contains__, data["columns"]):
        own = [entry for entry in data["entries"] if entry["column"] == column]
        bad = [each["scenario"] for each in own if each["verdict"] in ("red", "failed") and not each["not_applicable"]]
        if bad:
            console.print(f"{column} does not balance: {', '.join(bad)}", style="red")
        balances = balances and not bad and len(own) == scenarios
    return 0 if balances else 1
