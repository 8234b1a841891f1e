"""Running ``python -m letterapp import FILE``, and the rows of its files.

Responsible for: the process, rows, what was refused. Not responsible for: any knowledge of what is right.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Callable

import pytest
from harness import Finished, Program, environment

from letterapp.testing import IngestionServer

KEY = "lt_test_secret_of_the_import"
WHEN = "2026-01-31T12:00:00Z"
Import = Callable[..., Finished]


def command(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "letterapp", "import", *map(str, arguments)]


def env_for(url: str, **env: str) -> dict[str, str]:
    return environment(url, **{"LETTER_API_KEY": KEY, "LETTER_BASE_URL": url, **env})


@pytest.fixture(name="importing")
def run_import(tmp_path: Path, letter_api: IngestionServer) -> Import:
    """Runs the command to its end, in the folder of the test."""

    def run(*arguments: Any, url: str = letter_api.url, **env: str) -> Finished:
        with Program(command(*arguments), env_for(url, **env), tmp_path) as program:
            finished = program.finish()
        assert KEY not in finished.output
        return finished

    return run


def row(number: int, **more: Any) -> dict[str, Any]:
    made = {"userId": f"u{number % 7}", "event": "E", "timestamp": WHEN, "properties": {"n": number}}
    return {**made, **more}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in rows))
    return path


def numbers(api: IngestionServer) -> list[int]:
    """The rows that arrived, once for each id."""
    return sorted({item["messageId"]: item["properties"]["n"] for item in api.events}.values())


def refused(path: Path) -> list[tuple[int, str]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["line"], line["reason"]) for line in lines]
