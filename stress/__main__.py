"""``python -m stress``: the command line. Responsible for: arguments. Not responsible for: what the commands do."""

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
    # Either signal ends all started programs. A shell starts background programs with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        return _command(options)
    except ImportError as missing:
        if missing.name is None or missing.name.startswith(("stress", "letterapp")):
            raise
        parser.exit(2, f"{missing}; run pip install -e '.[stress]' first\n")
    except ValueError as wrong:
        parser.error(str(wrong))
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stress", description="Test letterapp under load, and compare it with other clients."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser("list", help="list the scenarios and what they do")

    run = commands.add_parser(
        "run",
        help="run scenarios: real servers, forks, faults and kills, and print a ledger",
        description="Run scenarios and compare the calls that returned with the events that arrived. "
        "The exit status is 1 unless this client balances in all of them.",
    )
    run.add_argument("scenarios", nargs="+", metavar="SCENARIO", help="a name or a pattern, such as 'gunicorn-*'")
    _add_run_options(run)
    _add_run_options(commands.add_parser("all", help="run every scenario"))

    bench = commands.add_parser(
        "bench",
        help="measure what a call, a batch, an import and a fork cost",
        description="Measure this checkout, other clients, and a floor. The exit status is 1 if a limit is missed.",
    )
    bench.add_argument(
        "peers",
        nargs="*",
        metavar="PEER",
        help="letterapp, posthog, segment or rudder, NAME==VERSION is possible (default: all four); or orjson: this "
        "checkout in an environment with orjson, with limits of its own",
    )
    bench.add_argument("--rounds", type=_positive, default=5, metavar="N", help="number of rounds (default: 5)")
    bench.add_argument(
        "--rows",
        default="",
        metavar="KEY,KEY",
        help="only these measures, such as shapes (flat events, lists and carts); all: see stress/metrics.py",
    )
    bench.add_argument("--json", type=Path, metavar="FILE", help="write all raw figures")
    bench.add_argument("--markdown", type=Path, metavar="FILE", help="write the table for docs/benchmarks.md")
    _add_environment_options(bench)

    cpython = commands.add_parser(
        "cpython",
        help="run CPython's own tests with a used client in every process",
        description="Run modules of CPython's own tests unchanged, with an idle thread and with a used client in every "
        "process, and print the differences. The exit status is 1 if only the client makes a test fail, for no known "
        "reason.",
    )
    cpython.add_argument(
        "tests",
        nargs="*",
        metavar="TEST",
        help="a module, or MODULE:PATTERN (default: those about forks, threads and exits)",
    )
    cpython.add_argument(
        "--python",
        default=sys.executable,
        metavar="PATH",
        help="the interpreter, with its tests installed (default: this one)",
    )
    cpython.add_argument(
        "--children", action="store_true", help="add a mode in which each forked child uses the client at once"
    )
    cpython.add_argument(
        "--again",
        type=int,
        default=3,
        metavar="N",
        help="number of times that a differing test is repeated (default: 3)",
    )
    cpython.add_argument(
        "--seconds", type=float, default=900.0, metavar="N", help="time limit for one module (default: 900)"
    )
    cpython.add_argument("--keep", type=Path, metavar="DIR", help="write the output of each run there")

    fuzz = commands.add_parser(
        "fuzz",
        help="feed unusual input to one interface, guided by coverage",
        description="Try unusual input for the given time, and keep in a corpus what reaches new code. The exit status "
        "is 1 if there are findings.",
    )
    fuzz.add_argument(
        "target",
        metavar="TARGET",
        help="call (any Python value), spool (a spool file), api (a response of the API), answer (a response of a "
        "relay), relay (requests to a relay)",
    )
    fuzz.add_argument("--seconds", type=float, default=600.0, metavar="N", help="duration (default: 600)")
    fuzz.add_argument("--seed", type=_positive, metavar="S", help="seed of the fuzzer (default: random)")
    fuzz.add_argument("--corpus", type=Path, metavar="DIR", help="corpus to start from and add to (default: in CACHE)")
    fuzz.add_argument(
        "--engine",
        choices=("atheris", "hypothesis"),
        help="what makes the inputs (default: atheris if it is installed)",
    )
    fuzz.add_argument(
        "--cache", type=Path, default=CACHE, metavar="DIR", help=f"directory of the corpora (default: {CACHE})"
    )

    instructions = commands.add_parser(
        "instructions",
        help="count the instructions of a call and of a fork, and compare them with stored figures",
        description="Count instructions with valgrind, on this interpreter. The exit status is 1 if a figure is more "
        "than 10 %% above the stored one (20 %% if another build of this version of Python has stored it), 2 if "
        "valgrind is missing or no figures of this version are stored.",
    )
    instructions.add_argument(
        "--update", action="store_true", help="store the figures of this version of Python instead of comparing them"
    )

    report = commands.add_parser(
        "report",
        help="make a page and a picture of the results of run, all and bench",
        description="Make a report from JSON files of run, all and bench; without FILE, from the newest of each.",
    )
    report.add_argument("files", nargs="*", type=Path, metavar="FILE", help="a file written by --json")
    report.add_argument(
        "--html", type=Path, metavar="FILE", help="write a self-contained page (default: letterapp-stress.html)"
    )
    report.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables")
    report.add_argument("--picture", type=Path, metavar="FILE", help="write the picture (SVG)")
    report.add_argument("--cache", type=Path, default=CACHE, metavar="DIR", help=argparse.SUPPRESS)
    return parser


def _add_run_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--client",
        action="append",
        dest="clients",
        metavar="NAME",
        help="this, relay (this client with relay=True), manager (this client with the queue of a SenderManager), "
        "redis (this client with a stream in a Redis server that is started for it), letterapp, posthog, segment or "
        "rudder; NAME==VERSION is possible; repeatable (all but relay, manager, redis)",
    )
    command.add_argument(
        "--seconds",
        type=float,
        default=20.0,
        metavar="N",
        help="duration of the scenarios soak and chaos (default: 20)",
    )
    command.add_argument(
        "--seed", type=int, metavar="S", help="repeat the random choices of an earlier run (default: random)"
    )
    command.add_argument(
        "--repeat",
        type=_positive,
        default=1,
        metavar="N",
        help="run each N times, with N seeds from --seed on; the ledger keeps the worst (default: 1)",
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="write the ledger")
    _add_environment_options(command)


def _add_environment_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--python", default=sys.executable, metavar="PATH", help="the interpreter of all clients (default: this one)"
    )
    command.add_argument(
        "--cache",
        type=Path,
        default=CACHE,
        metavar="DIR",
        help=f"directory where the clients are installed (default: {CACHE})",
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
    if options.command == "instructions":
        from .instructions import instructions

        return instructions(options)
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
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
