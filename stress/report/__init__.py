"""Reports of a run's results, for people and for programs.

Responsible for: what the commands call, and which files a report reads and writes. Not responsible for: the contents
of the files (`results.py`), the tables (`tables.py`), the page (`html_report.py`) and the charts (`charts.py`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console

from . import results, tables
from .results import Bench, Ledger, Origin, Result, machine

__all__ = ["Result", "as_json", "as_markdown", "from_options", "machine", "report", "show"]


def show(console: Console, result: Result) -> None:
    tables.show_bench(console, _bench(result))


def as_markdown(result: Result) -> str:
    return tables.bench_markdown(_bench(result))


def as_json(result: Result) -> str:
    return json.dumps(results.bench_content(result), indent=1) + "\n"


def from_options(options: argparse.Namespace) -> int:
    """The command. The default input is the results of the last runs in the cache, the default output a page."""
    kept = options.cache / "results"
    paths = options.files or [path for path in (kept / "ledger.json", kept / "bench.json") if path.exists()]
    html = options.html
    if not (html or options.markdown or options.picture):
        html = Path("letterapp-stress.html")
    return report(paths, html, options.markdown, options.picture, Console())


def report(paths: list[Path], html: Path | None, markdown: Path | None, picture: Path | None, console: Console) -> int:
    """Write a report of result files. Returns the exit status. Raises ValueError, with the name of an invalid file."""
    if not paths:
        raise ValueError("no result files: run `bench` or `all` first")
    bench, ledger = results.read(paths, lambda note: console.print(note, highlight=False, markup=False))
    written = []
    if html:
        from .html_report import html_report

        written.append((html, html_report(bench, ledger)))
    if markdown:
        written.append((markdown, _markdown(bench, ledger)))
    if picture:
        from .overview import overview  # matplotlib takes a second to import

        written.append((picture, overview(bench, ledger)))
    for path, text in written:
        path.write_text(text, encoding="utf-8")
        console.print(f"wrote {path}", highlight=False, markup=False)
    if not written:
        _show(bench, ledger, console)
    return 0


def _bench(result: Result) -> Bench:
    """Show the same as a report that reads the file later."""
    return results.bench(results.bench_content(result))


def _show(bench: Bench | None, ledger: Ledger | None, console: Console) -> None:
    if ledger:
        tables.show_ledger(console, ledger)
    if bench:
        tables.show_bench(console, bench)


def _markdown(bench: Bench | None, ledger: Ledger | None) -> str:
    parts = []
    if ledger:
        parts += ["## What arrives", _command_block(ledger.origin), tables.ledger_markdown(ledger)]
    if bench:
        parts += ["## What it costs", _command_block(bench.origin), tables.bench_markdown(bench)]
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"


def _command_block(origin: Origin) -> str:
    return f"```\n{origin.command}\n```" if origin.command else ""
