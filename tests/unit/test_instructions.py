"""The comparison of counted instructions with stored figures: what makes it fail, and when nothing is compared."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from stress import instructions
from stress.instructions import CALLS, FIGURES, NOT_MEASURED, STORED, compare, figures, main_thread_totals, report

KEPT = dict.fromkeys(FIGURES, 0.5)


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file of stored figures, without any; valgrind counts `KEPT`, and is there."""
    path = tmp_path / "instructions.json"
    path.write_text("{}")
    monkeypatch.setattr(instructions, "STORED", path)
    monkeypatch.setattr("sys.version_info", (3, 10))
    monkeypatch.setattr(instructions, "counts", lambda _: {})
    monkeypatch.setattr(instructions, "figures", lambda _: KEPT)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    return path


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [(1.11, 1, "HIGHER"), (1.09, 0, ""), (0.91, 0, ""), (0.89, 0, "--update")],
)
@pytest.mark.parametrize("key", FIGURES)
def test_a_figure_may_differ_by_a_tenth(capsys: Any, key: str, change: float, status: int, said: str) -> None:
    assert report(compare({**KEPT, key: KEPT[key] * change}, KEPT)) == status
    printed = capsys.readouterr().out
    assert said in printed and ("--update" in printed) == bool(said)


def test_a_lower_figure_does_not_hide_a_higher_one() -> None:
    assert report(compare({**KEPT, "flat": 0.1, "cart": 0.6}, KEPT)) == 1


def test_without_valgrind_nothing_is_compared(capsys: Any, monkeypatch: pytest.MonkeyPatch, stored: Path) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert instructions.instructions(Namespace(update=True)) == NOT_MEASURED
    assert "valgrind is not installed" in capsys.readouterr().err


def test_figures_are_compared_with_those_of_the_same_python(capsys: Any, stored: Path) -> None:
    other = {"build": "another", "figures": dict.fromkeys(FIGURES, 0.4)}
    stored.write_text(json.dumps({"3.11": other, "3.9": other}))
    assert instructions.instructions(Namespace(update=False)) == NOT_MEASURED
    assert "no figures of Python 3.10" in capsys.readouterr().err
    assert instructions.instructions(Namespace(update=True)) == 0
    kept = json.loads(stored.read_text())
    assert list(kept) == ["3.9", "3.10", "3.11"] and kept["3.10"]["figures"] == KEPT
    assert instructions.instructions(Namespace(update=False)) == 0


@pytest.mark.parametrize(("before", "status"), [(0.44, 0), (0.4, 1)])  # 14 and 25 % lower
def test_another_build_is_compared_less_strictly(capsys: Any, stored: Path, before: float, status: int) -> None:
    stored.write_text(json.dumps({"3.10": {"build": "another", "figures": dict.fromkeys(FIGURES, before)}}))
    assert instructions.instructions(Namespace(update=False)) == status
    assert "compared with another" in capsys.readouterr().out


def test_stored_figures_are_complete() -> None:
    for version, kept in json.loads(STORED.read_text()).items():
        assert kept["build"].startswith(version) and list(kept["figures"]) == list(FIGURES)


def test_figures_are_ratios_of_one_run() -> None:
    counted = {
        **{f"{shape} floor": [100 * CALLS] for shape in ("flat", "list", "cart")},
        **{f"{shape} track": [ratio * CALLS] for shape, ratio in {"flat": 70, "list": 80, "cart": 90}.items()},
        "fork without, parent": [30, 20, 20],
        "fork without, child": [90, 80, 80],
        "fork with, parent": [530, 30, 480],
        "fork with, child": [120, 90, 90],
        "use, parent": [30],
        "use, child": [690],
    }
    expected = {"flat": 0.7, "list": 0.8, "cart": 0.9, "fork": 0.2, "search": 5.0, "first_call": 6.0}
    assert figures(counted) == expected


def test_only_the_main_thread_is_counted() -> None:
    parts = [(1, 1, 534), (2, 1, 10), (3, 1, 6), (3, 2, 999)]
    written = "".join(
        f"part: {part}\nthread: {thread}\n\nevents: Ir\nfn=(1)\n0 7\n\ntotals: {total}\n"
        for part, thread, total in parts
    )
    assert main_thread_totals(written) == [534, 10, 6]
