"""``run`` and ``all``: every chosen scenario with every chosen client, one after the other, and the ledger of it.

Lives here: the order, the progress, the files, the exit status. Never here: what a scenario does, how a table looks.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .peers import KNOWN, OWN, Environments, Peer
from .report import results, tables
from .scenarios import SCENARIOS, chosen
from .stage import Scenario, perform

THIS, THROUGH_RELAY, THROUGH_MANAGER = "this", "relay", "manager"  # what this client is called on the command line
BADNESS = ("balances", "told", "failed", "red")
SERVERS = (
    *("gunicorn", "packaging", "gevent", "uvicorn", "celery", "pyuwsgi>=2.0.27; sys_platform != 'win32'"),
    *("rq>=2", "twisted", "python-daemon>=3"),
    *("pytest<9", "pytest-forked"),  # which says of each test under pytest 9 that it failed
)


def list_scenarios() -> int:
    for scenario in SCENARIOS.values():
        print(f"{scenario.name:24} {scenario.title}")
    return 0


def run(patterns: list[str], options: argparse.Namespace) -> int:
    """Play them, show the ledger, write the files. Returns 1 unless this client's ledger balances everywhere."""
    scenarios = chosen(patterns)
    console = Console()
    environments = Environments(
        options.python, options.cache, lambda what: console.print(f"[dim]{what}[/dim]"), beside=SERVERS
    )
    names = options.clients or [THIS, *KNOWN]
    own = {THIS: environments.this_client, THROUGH_RELAY: environments.relay, THROUGH_MANAGER: environments.manager}
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
        _play(console, scenarios, peers, environments, options, data["entries"])
    except KeyboardInterrupt:
        console.print("stopped; this is what there is so far")
    if not data["entries"]:
        return 130  # stopped at once: nothing to show, and no reason to forget the ledger before
    tables.show_ledger(console, data)
    results.keep(json.dumps(data, indent=1) + "\n", "ledger", options)
    return _status(console, data, len(scenarios))


def _play(
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
                played = []
                for number in range(options.repeat):
                    progress.update(task, description=f"{scenario.name}: {peer.column}")
                    played.append(perform(scenario, peer, environments, options.seconds, options.seed + number))
                    progress.advance(task)
                    progress.console.print(tables.ledger_line(played[-1]))
                entries.append(worst(played))


def worst(played: list[dict[str, Any]]) -> dict[str, Any]:
    """The one of several performances that a ledger keeps, with a note of how many were bad."""
    found = max(played, key=lambda entry: (BADNESS.index(entry["verdict"]), entry["lost"]))
    if len(played) == 1:
        return found
    bad = sum(entry["verdict"] in ("red", "failed") for entry in played)
    lost = sum(entry["lost"] for entry in played)
    note = f"the worst of {len(played)} times: {bad} did not balance, {lost:,} events lost in all"
    return {**found, "notes": [*found["notes"], note]}


def _status(console: Console, data: dict[str, Any], scenarios: int) -> int:
    balances = True
    for column in filter(OWN.__contains__, data["columns"]):
        own = [entry for entry in data["entries"] if entry["column"] == column]
        bad = [each["scenario"] for each in own if each["verdict"] in ("red", "failed") and not each["elsewhere"]]
        if bad:
            console.print(f"{column} does not balance: {', '.join(bad)}", style="red")
        balances = balances and not bad and len(own) == scenarios
    return 0 if balances else 1
