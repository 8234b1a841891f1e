"""``python -m stress``: the commands. Lives here: their arguments. Never here: what they do."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m stress", description="letterapp under load, beside other clients.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    bench = commands.add_parser(
        "bench",
        help="what a call, a batch, an import, a fork cost, as ratios",
        description="Measure this checkout beside other clients and a floor. Exit 1 when a limit is missed.",
    )
    bench.add_argument("peers", nargs="*", metavar="PEER", help="letterapp, posthog, segment; NAME==VERSION too (all)")
    bench.add_argument("--rounds", type=_positive, default=5, metavar="N", help="times that everything is measured (5)")
    bench.add_argument("--rows", default="", metavar="KEY,KEY", help="only these measures (stress/rows.py names them)")
    bench.add_argument("--json", type=Path, metavar="FILE", help="write every raw figure")
    bench.add_argument("--markdown", type=Path, metavar="FILE", help="write the table for docs/benchmarks.md")
    bench.add_argument("--python", default=sys.executable, metavar="PATH", help="what all clients run on (this one)")
    bench.add_argument(
        "--cache",
        type=Path,
        default=Path.home() / ".cache" / "letterapp-stress",
        metavar="DIR",
        help="where the clients are installed, once (~/.cache/letterapp-stress)",
    )

    options = parser.parse_args()
    try:
        from .bench import bench as run_bench
    except ImportError as missing:
        parser.exit(2, f"{missing}: pip install -e '.[stress]' first\n")
    try:
        return run_bench(options)
    except ValueError as wrong:
        parser.error(str(wrong))
    except KeyboardInterrupt:
        return 130


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
