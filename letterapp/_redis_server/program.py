"""``python -m letterapp relay --from URL``: a relay that reads a stream in Redis, as a program.

Responsible for: its options, its signals, its messages. Not responsible for: what it does (`consumer`).

It serves until SIGTERM or SIGINT. Then it sends what it has, within `exit_timeout`, and gives the rest to other relays.
"""

from __future__ import annotations

import json
import signal

from .._client import settings_of
from .._redis.location import Location
from .._redis.stream import key_of
from .._relay_server import daemon
from ..errors import LetterError
from .consumer import Consumer
from .group import Group
from .identity import Identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from .._config import Settings

CLAIM_AFTER = 15.0  # seconds without a heartbeat after which a relay counts as dead: longer than a pause of a busy host


def relay_from(options: argparse.Namespace) -> int:
    """Run a relay, or print its stream's status. Returns the exit status."""
    try:
        location = _location(options)
        settings = _settings(options)
        if options.status:
            return _show_status(location, settings)
        return _run(location, settings, Identity(options.consumer or ""), options.claim_after or CLAIM_AFTER)
    except LetterError as problem:
        _log(str(problem))
    except OSError as problem:
        _log(f"{problem.filename or '--from'}: {problem.strerror or problem}")
    return 1


def _location(options: argparse.Namespace) -> Location:
    if options.from_file:
        return Location(daemon.read_secret("--from-file", options.from_file).decode("utf-8", "replace"))
    return Location(options.from_url)


def _settings(options: argparse.Namespace) -> Settings:
    given: dict[str, Any] = {"api_key": daemon.read_api_key(options.api_key_file)}
    if options.base_url:
        given["base_url"] = options.base_url
    return settings_of(**given)


def _run(location: Location, settings: Settings, identity: Identity, claim_after: float) -> int:
    daemon.protect_memory()
    daemon.keep_stderr_from_blocking()
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
    key = key_of(settings.api_key, settings.base_url)
    place = repr(location)
    consumer = Consumer(settings, lambda: Group(location, key, identity), identity, place, claim_after, _log)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: consumer.stop())
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, lambda *_: _log(json.dumps(consumer.status())))
    consumer.open()
    _log(f"reading {location!r} for {settings.base_url} as {identity.name}")
    daemon.notify("READY=1")
    consumer.run()
    daemon.notify("STOPPING=1")
    status = consumer.status()
    lost = sum(status["lost"].values())
    _log(f"{status['delivered']:,} delivered, {lost:,} lost, {status['waiting']:,} left to others")
    return 0


def _show_status(location: Location, settings: Settings) -> int:
    group = Group(location, key_of(settings.api_key, settings.base_url), Identity())
    try:
        print(json.dumps(group.status()))
    finally:
        group.close()
    return 0


def _log(text: str) -> None:
    daemon.write_log("relay", text)
