"""``python -m letterapp``: the commands.

Responsible for: which there are, and the arguments of some. Not responsible for: what they do.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from ._version import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# Commands whose modules have their arguments too.
_MODULES = {
    "doctor": ("._cli.doctor", "check whether this host can send events, and say what to do if not"),
    "import": ("._cli.import_command", "send events of the past, from lines of JSON or CSV"),
    "spool": ("._cli.spool_command", "show what waits in a spool's directory, or deliver it"),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m letterapp", description="Tools of letter.app's Python client.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    _add_demo(commands)
    _add_inbox(commands)
    _add_relay(commands)
    given = sys.argv[1:] if arguments is None else arguments
    for name, (module, text) in _MODULES.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if name in given[:1]:  # it is imported only if it runs
            importlib.import_module(module, __package__).add_arguments(command)

    _open_standard_files()
    options = parser.parse_args(given)
    if options.command in _MODULES:
        status: int = importlib.import_module(_MODULES[options.command][0], __package__).run(options)
        return status
    if options.command == "demo":
        from ._cli.demo import demo as run_demo

        return run_demo(options.workers, options.events, options.base_url)
    if options.command == "inbox":
        from ._cli.inbox import Options
        from ._cli.inbox import inbox as run_inbox

        return run_inbox(
            Options(
                options.port,
                options.keep,
                options.max_events,
                options.max_bytes,
                options.json,
                options.troubled,
                options.quiet,
            )
        )
    if options.command == "relay":
        return _run_relay(parser, options)
    parser.print_help()
    return 2


def _run_relay(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    if options.metrics and (options.status or options.for_manager or options.for_clients):
        parser.error("--metrics is for a relay that is run separately")
    if options.for_manager:
        from ._relay_server.manager_program import run_for_manager

        return run_for_manager()
    if _reads_stream(parser, options):
        from ._redis_server.program import relay_from

        return relay_from(options)
    if options.manager:
        if options.socket or options.group:
            parser.error("--manager cannot be combined with --socket or --group")
        from ._relay_server.manager_program import run_kept

        return run_kept(options)
    if options.authkey_file:
        parser.error("--authkey-file needs --manager")
    from ._relay_server.socket_program import relay as run_relay

    return run_relay(options)


def _reads_stream(parser: argparse.ArgumentParser, options: argparse.Namespace) -> bool:
    """True if the relay reads a stream in Redis. Ends the program if other options do not fit."""
    if not (options.from_url or options.from_file):
        for name in ("claim_after", "consumer"):
            if getattr(options, name):
                parser.error(f"--{name.replace('_', '-')} needs --from")
        return False
    if options.from_url and options.from_file:
        parser.error("--from cannot be combined with --from-file")
    for name in ("socket", "group", "manager", "authkey_file", "spool", "metrics"):
        if getattr(options, name):
            parser.error(f"--from cannot be combined with --{name.replace('_', '-')}")
    return True


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser(
        "demo", help="send from processes of every kind; prints a ledger and exits with 1 if an event is lost"
    )
    demo.add_argument("--workers", type=_positive, default=4, metavar="N", help="forked workers (default 4)")
    demo.add_argument("--events", type=_positive, default=500, metavar="N", help="events per process (default 500)")
    demo.add_argument("--base-url", metavar="URL", help="use a real API, one event per process; needs LETTER_API_KEY")


def _add_inbox(commands: Any) -> None:
    inbox = commands.add_parser("inbox", help="run a local ingestion API with a page that shows what arrives")
    inbox.add_argument("--port", type=_port, default=8025, metavar="N", help="default 8025; 0 is a free one")
    inbox.add_argument("--keep", metavar="FILE", help="an SQLite file that keeps what arrives (default: memory)")
    inbox.add_argument(
        "--max-events", type=_positive, default=100_000, metavar="N", help="the oldest go beyond it (default 100000)"
    )
    inbox.add_argument(
        "--max-bytes", type=_positive, default=256_000_000, metavar="N", help="the same in bytes (default 256000000)"
    )
    inbox.add_argument("--json", action="store_true", help="print each event as a line of JSON, and nothing else")
    inbox.add_argument("--troubled", action="store_true", help="refuse, reset or delay some requests")
    inbox.add_argument("--quiet", action="store_true", help="print only the URL, and stop when stdin closes")


def _add_relay(commands: Any) -> None:
    relay = commands.add_parser("relay", help="run one process that sends the events of all others on this host")
    relay.add_argument("--socket", metavar="PATH", help="the path of its socket, for Letter(..., relay=PATH)")
    relay.add_argument("--group", metavar="NAME", help="a group whose users may connect (default: only this user)")
    relay.add_argument(
        "--api-key-file", metavar="FILE", help="file with the API key (default: the variable LETTER_API_KEY)"
    )
    relay.add_argument("--base-url", metavar="URL", help="URL of the API (default: letter.app)")
    relay.add_argument(
        "--spool", metavar="DIR", help="keep waiting events in files: none is lost if the relay is killed"
    )
    relay.add_argument("--status", action="store_true", help="print a line of JSON per relay with this key, and exit")
    relay.add_argument(
        "--manager",
        metavar="ADDRESS",
        help="run a manager's server instead, at PATH or HOST:PORT, for SenderManager(address=...)",
    )
    relay.add_argument(
        "--metrics", type=_address, metavar="HOST:PORT", help="serve /metrics, /healthz and /readyz there over HTTP"
    )
    relay.add_argument("--authkey-file", metavar="FILE", help="file with the secret that the manager's clients use")
    relay.add_argument(
        "--from",
        dest="from_url",
        metavar="URL",
        help="read a stream in Redis instead, to which clients on any number of hosts append: Letter(..., relay=URL)",
    )
    relay.add_argument("--from-file", metavar="FILE", help="file with that URL, if it contains a password")
    relay.add_argument(
        "--claim-after",
        type=_positive_seconds,
        metavar="SECONDS",
        help="another relay that was silent for so long counts as dead, and its events are sent (default 15)",
    )
    relay.add_argument(
        "--consumer",
        type=_name,
        metavar="NAME",
        help="the name of this relay, which it keeps over restarts: it takes at once what a killed one has left",
    )
    relay.add_argument("--for-manager", action="store_true", help=argparse.SUPPRESS)  # how a manager starts its server
    relay.add_argument("--for-clients", action="store_true", help=argparse.SUPPRESS)  # how a client starts one


def _open_standard_files() -> None:
    """Open descriptors 0, 1 and 2 if they are closed: after ``2>&-`` the next socket would get 2, and the log lines."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one


def _address(text: str) -> tuple[str, int]:
    host, separator, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not (separator and host and port.isdigit()) or (":" in host and f"[{host}]" not in text):
        raise argparse.ArgumentTypeError("must be HOST:PORT, for example 127.0.0.1:9464, 0.0.0.0:9464 or [::1]:9464")
    return host, _port(port)


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError("must be from 0 to 65535")
    return number


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _name(text: str) -> str:
    if not (text.isascii() and text.isprintable() and 0 < len(text) <= 100) or " " in text:
        raise argparse.ArgumentTypeError("must be 1 to 100 printable ASCII characters without spaces")
    return text


def _positive_seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError("must be more than 0")
    return number


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        from ._cli.console import end_by_ctrl_c

        end_by_ctrl_c()
