"""``python -m stress``: the commands. Lives here: their arguments. Never here: what they do."""

from __future__ import annotations

import argparse
import random
import signal
import sys
from pathlib import Path

CACHE = Path.home() / ".cache" / "letterapp-stress"


def main() -> int:
    parser = _parser()
    options = parser.parse_args()
    # Both end what has been started. A shell gives programs in the background an ignored Ctrl-C.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        return _command(options)
    except ImportError as missing:
        if missing.name is None or missing.name.startswith(("stress", "letterapp")):
            raise
        parser.exit(2, f"{missing}: pip install -e '.[stress]' first\n")
    except ValueError as wrong:
        parser.error(str(wrong))
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m stress", description="letterapp under load, beside other clients.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser("list", help="the scenarios and what they do")

    run = commands.add_parser(
        "run",
        help="play scenarios: real servers, forks, faults and kills, and a ledger",
        description="Play scenarios and balance what the calls returned for against what came. "
        "Exit 1 unless this client balances in all of them.",
    )
    run.add_argument("scenarios", nargs="+", metavar="SCENARIO", help="a name, or a pattern: 'gunicorn-*'")
    _playing(run)
    _playing(commands.add_parser("all", help="play every scenario"))

    bench = commands.add_parser(
        "bench",
        help="what a call, a batch, an import, a fork cost, as ratios",
        description="Measure this checkout beside other clients and a floor. Exit 1 when a limit is missed.",
    )
    bench.add_argument(
        "peers", nargs="*", metavar="PEER", help="letterapp, posthog, segment, rudder; NAME==VERSION too (all)"
    )
    bench.add_argument("--rounds", type=_positive, default=5, metavar="N", help="times that everything is measured (5)")
    bench.add_argument("--rows", default="", metavar="KEY,KEY", help="only these measures (stress/rows.py names them)")
    bench.add_argument("--json", type=Path, metavar="FILE", help="write every raw figure")
    bench.add_argument("--markdown", type=Path, metavar="FILE", help="write the table for docs/benchmarks.md")
    _environments(bench)

    cpython = commands.add_parser(
        "cpython",
        help="CPython's own tests with a used client in every process",
        description="Run modules of CPython's own tests without anything, with an idle thread and with a used client "
        "in every process, and print what differs. Exit 1 when the client makes a test fail, for no known reason.",
    )
    cpython.add_argument("tests", nargs="*", metavar="TEST", help="a module, or MODULE:PATTERN (all that fork or end)")
    cpython.add_argument(
        "--python", default=sys.executable, metavar="PATH", help="whose tests, which must be installed (this one)"
    )
    cpython.add_argument("--children", action="store_true", help="a fourth time: each forked child uses it at once")
    cpython.add_argument("--again", type=int, default=3, metavar="N", help="times that what differs is repeated (3)")
    cpython.add_argument("--seconds", type=float, default=900.0, metavar="N", help="that one module may take (900)")
    cpython.add_argument("--keep", type=Path, metavar="DIR", help="write there what each run printed")

    fuzz = commands.add_parser(
        "fuzz",
        help="odd input into one way in, guided by coverage",
        description="Try odd input for as long as it is given, and keep what reaches something new in a corpus. Exit 1 "
        "when something was found.",
    )
    fuzz.add_argument(
        "target",
        metavar="TARGET",
        help="call (any Python value), spool (a file's bytes), api (an answer of the API), answer (of a relay), "
        "relay (a client's lines to one)",
    )
    fuzz.add_argument("--seconds", type=float, default=600.0, metavar="N", help="how long (600)")
    fuzz.add_argument("--seed", type=_positive, metavar="S", help="of the fuzzer's own choices (a new one)")
    fuzz.add_argument("--corpus", type=Path, metavar="DIR", help="what it begins with and adds to (of CACHE)")
    fuzz.add_argument("--engine", choices=("atheris", "hypothesis"), help="what makes the inputs (atheris)")
    fuzz.add_argument("--cache", type=Path, default=CACHE, metavar="DIR", help=f"where the corpora are ({CACHE})")

    report = commands.add_parser(
        "report",
        help="one page and one picture of what run, all and bench found",
        description="Make a report of JSON files that run, all and bench wrote; without FILE, of the newest of each.",
    )
    report.add_argument("files", nargs="*", type=Path, metavar="FILE", help="what --json wrote")
    report.add_argument("--html", type=Path, metavar="FILE", help="one self-contained page (letterapp-stress.html)")
    report.add_argument("--markdown", type=Path, metavar="FILE", help="the tables")
    report.add_argument("--picture", type=Path, metavar="FILE", help="the picture, SVG")
    report.add_argument("--cache", type=Path, default=CACHE, metavar="DIR", help=argparse.SUPPRESS)
    return parser


def _playing(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--client",
        action="append",
        dest="clients",
        metavar="NAME",
        help="this, relay (this one with relay=True), manager (this one with the queue of a SenderManager), letterapp, "
        "posthog, segment, rudder; NAME==VERSION too; may be given again (all but relay and manager)",
    )
    command.add_argument(
        "--seconds", type=float, default=20.0, metavar="N", help="length of those without an end: soak, chaos (20)"
    )
    command.add_argument("--seed", type=int, metavar="S", help="play the same choices again (a new one)")
    command.add_argument(
        "--repeat",
        type=_positive,
        default=1,
        metavar="N",
        help="play each N times, with N seeds from --seed on; the ledger keeps the worst (1)",
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="write the ledger")
    _environments(command)


def _environments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--python", default=sys.executable, metavar="PATH", help="what all clients run on (this one)")
    command.add_argument(
        "--cache", type=Path, default=CACHE, metavar="DIR", help=f"where the clients are installed, once ({CACHE})"
    )


def _command(options: argparse.Namespace) -> int:
    if options.command == "bench":
        from .bench import bench

        return bench(options)
    if options.command == "cpython":
        from .cpython import compare

        return compare(options)
    if options.command == "fuzz":
        from .fuzz import fuzz

        return fuzz(options)
    if options.command == "report":
        from .report import from_options

        return from_options(options)
    from .run import list_scenarios, run

    if options.command == "list":
        return list_scenarios()
    if options.seed is None:
        options.seed = random.randrange(10_000)
    return run(["*"] if options.command == "all" else options.scenarios, options)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
