"""``python -m letterapp``: the commands. Lives here: their arguments. Never here: what they do."""

from __future__ import annotations

import argparse
import sys

from ._version import __version__


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m letterapp", description="letter.app's Python client, by hand.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    demo = commands.add_parser(
        "demo", help="fork in every way, lose nothing: ends in a ledger, exit 1 if it does not balance"
    )
    demo.add_argument("--workers", type=_positive, default=4, metavar="N", help="preload-style workers (default 4)")
    demo.add_argument("--events", type=_positive, default=500, metavar="N", help="events of each process (default 500)")
    demo.add_argument("--base-url", metavar="URL", help="a real API instead, one event a process; needs LETTER_API_KEY")

    inbox = commands.add_parser("inbox", help="an ingestion server on loopback that prints what arrives")
    inbox.add_argument("--port", type=int, default=0, metavar="N", help="default: a free one")
    inbox.add_argument("--troubled", action="store_true", help="refuse, reset and stall now and then")
    inbox.add_argument("--quiet", action="store_true", help="print the address alone, and stop when stdin closes")

    options = parser.parse_args(arguments)
    if options.command == "demo":
        from ._demo import demo as run_demo

        return run_demo(options.workers, options.events, options.base_url)
    if options.command == "inbox":
        from ._inbox import inbox as run_inbox

        return run_inbox(options.port, options.troubled, options.quiet)
    parser.print_help()
    return 2


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
