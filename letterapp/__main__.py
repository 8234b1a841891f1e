"""``python -m letterapp``: the commands. Responsible for: their arguments. Not responsible for: what they do."""

from __future__ import annotations

import argparse
import os
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
    inbox.add_argument("--port", type=_port, default=0, metavar="N", help="default: a free one")
    inbox.add_argument("--troubled", action="store_true", help="refuse, reset and stall now and then")
    inbox.add_argument("--quiet", action="store_true", help="print the address alone, and stop when stdin closes")

    relay = commands.add_parser("relay", help="one process that sends the events of many; see docs/processes.md")
    relay.add_argument("--socket", metavar="PATH", help="where clients find it: Letter(..., relay=PATH)")
    relay.add_argument("--group", metavar="NAME", help="a group whose users may connect too (default: this user alone)")
    relay.add_argument(
        "--api-key-file", metavar="FILE", help="holds the API key (default: the variable LETTER_API_KEY)"
    )
    relay.add_argument("--base-url", metavar="URL", help="another API than letter.app's")
    relay.add_argument(
        "--spool", metavar="DIR", help="keep what waits in files: nothing is lost if the relay is killed"
    )
    relay.add_argument("--status", action="store_true", help="print a line of JSON a relay that this key fits, and end")
    relay.add_argument(
        "--manager",
        metavar="ADDRESS",
        help="be a manager's server instead: PATH or HOST:PORT, for SenderManager(address=)",
    )
    relay.add_argument("--authkey-file", metavar="FILE", help="holds the secret that the manager's clients have too")
    relay.add_argument("--for-manager", action="store_true", help=argparse.SUPPRESS)  # how a manager starts its server
    relay.add_argument("--for-clients", action="store_true", help=argparse.SUPPRESS)  # how a client starts one

    _open_standard_files()
    options = parser.parse_args(arguments)
    if options.command == "demo":
        from ._cli.demo import demo as run_demo

        return run_demo(options.workers, options.events, options.base_url)
    if options.command == "inbox":
        from ._cli.inbox import inbox as run_inbox

        return run_inbox(options.port, options.troubled, options.quiet)
    if options.command == "relay" and options.for_manager:
        from ._relay_server.manager_program import run_for_manager

        return run_for_manager()
    if options.command == "relay" and options.manager:
        if options.socket or options.group:
            parser.error("--manager has an address, and no --socket and no --group")
        from ._relay_server.manager_program import run_kept

        return run_kept(options)
    if options.command == "relay":
        if options.authkey_file:
            parser.error("--authkey-file goes with --manager")
        from ._relay_server.socket_program import relay as run_relay

        return run_relay(options)
    parser.print_help()
    return 2


def _open_standard_files() -> None:
    """Open 0, 1 and 2 if they are closed: after ``2>&-`` the next file or socket would get 2, and what is logged."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError("from 0 to 65535")
    return number


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
