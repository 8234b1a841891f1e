"""``python -m letterapp doctor``: whether this host can send, and what to do if it cannot.

Responsible for: its arguments, the order of the checks, the API key's form. Not responsible for: the checks themselves.
"""

from __future__ import annotations

import os
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Callable

from .._client import settings_of
from .._storage.spool_header import NAME_OF_KEY
from .._text import Secret
from .._version import __version__
from ..errors import LetterError
from . import console, doctor_host, doctor_network, doctor_places
from .findings import Check, Finding, Level, failure, note, ok, warning, within

if TYPE_CHECKING:
    import argparse

    from .._config import Settings

_QUOTES = "\"'`"
_EXAMPLES = ("your-key", "your_key", "changeme", "xxx", "<", "${")  # what documents and templates write for a key
_NO_KEY = "letterapp-doctor-without-a-key"  # for settings whose key is not used


def add_arguments(parser: argparse.ArgumentParser) -> None:
    console.add_api_options(parser)
    add = parser.add_argument
    add("--spool", metavar="DIR", help="check the directory of spool=DIR too")
    add("--relay", nargs="?", const=True, metavar="PATH", help="check relay=PATH, or the relays of relay=True, too")
    add("--manager", metavar="ADDRESS", help="check a manager's server at PATH or HOST:PORT too")
    add("--authkey-file", metavar="FILE", help="with --manager: file with the secret that its clients use")
    add("--test-event", action="store_true", help="send one event, and not an empty request: it will be counted")
    add("--timeout", type=console.seconds, default=5.0, metavar="SECONDS", help="of each check (default 5)")
    add("--json", action="store_true", help="print a line of JSON")


def run(options: argparse.Namespace) -> int:
    """Returns 0; 1 if something will lose events or fails."""
    report = _Report(options.json)
    checks = _Checks(options)
    checks.run(report)
    return report.end()


class _Report:
    """Prints findings as they come, or all of them at the end."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._found: list[Finding] = []

    def add(self, found: list[Finding]) -> None:
        self._found += found
        if not self._as_json:
            for finding in found:
                console.show(str(finding))

    def end(self) -> int:
        failures = sum(finding.level is Level.FAILURE for finding in self._found)
        warnings = sum(finding.level is Level.WARNING for finding in self._found)
        if self._as_json:
            found = [finding.as_json() for finding in self._found]
            console.show_json({"ok": not failures, "version": __version__, "checks": found})
        else:
            weak = f"; {console.count(warnings, 'warning')}" if warnings else ""
            console.show(f"{f'{failures} of {len(self._found)} checks failed' if failures else 'all is well'}{weak}")
        return int(bool(failures))


class _Checks:
    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._host = doctor_host.Host()
        self._settings: Settings | None = None
        self._has_key = False

    def run(self, report: _Report) -> None:
        options = self._options
        host: list[tuple[str, Check]] = [
            ("descriptors", doctor_host.descriptors),
            ("workers", doctor_host.start_method),
            ("memfd", doctor_host.memfd),
            ("semaphores", doctor_host.semaphores),
        ]
        report.add(_guarded("python", doctor_host.python))
        report.add(_guarded("fork", doctor_host.fork))  # before there is a thread
        report.add(_guarded("threads", lambda: doctor_host.threads(self._host)))
        for name, check in host:
            report.add(within(options.timeout, name, check))
        report.add(_guarded("key", self._key))
        settings = self._settings
        if settings is None:
            return
        later: list[tuple[str, Callable[[], Any]]] = [("memory", lambda: doctor_host.memory(self._host, settings))]
        later.append(("mode", lambda: doctor_host.mode(self._host, settings, options.manager)))
        if settings.spool:
            later.append(("spool", lambda: doctor_places.spool(settings, self._has_key)))
        if settings.relay:
            later.append(("relay", lambda: doctor_places.relay(settings)))
        if options.manager:
            later.append(("manager", lambda: doctor_places.manager(settings, options.manager, options.authkey_file)))
        for name, check in later:
            report.add(within(options.timeout + 1.0, name, check))
        route = doctor_network.Route(settings, options.timeout, self._has_key, options.test_event)
        report.add(route.checks())

    def _key(self) -> list[Finding]:
        """The key and the options. Without valid ones there is nothing more to check."""
        options = self._options
        source = options.api_key_file or "the variable LETTER_API_KEY"
        found: list[Finding] = []
        try:
            key = console.api_options(options)["api_key"] or Secret(os.environ.get("LETTER_API_KEY", ""))
        except LetterError as problem:
            key = Secret("")
            found.append(failure("key", str(problem), "correct --api-key-file"))
        if not key and not found:
            found.append(failure("key", "there is none", "set the variable LETTER_API_KEY, or pass it to Letter"))
        given: dict[str, Any] = {"spool": options.spool, "relay": options.relay or False}
        if options.base_url:
            given["base_url"] = options.base_url
        if key:
            try:
                self._settings = settings_of(api_key=key, **given)
                self._has_key = True
                found.append(_form_of(key, source))
            except LetterError as problem:
                if str(problem).startswith("api_key"):
                    found.append(failure("key", f"{source}: {problem}"))
        if self._settings is None:
            try:
                self._settings = settings_of(api_key=_NO_KEY, **given)
            except LetterError as problem:
                return [*found, failure("options", str(problem))]
        return [*found, *_address(self._settings)]


def _form_of(key: Secret, source: str) -> Finding:
    text = key.reveal()
    about = f"from {source}: {len(text)} characters, fingerprint {sha256(text.encode()).hexdigest()[:NAME_OF_KEY]}"
    if text[0] in _QUOTES or text[-1] in _QUOTES:
        return failure("key", f"{about}, in quotes", "remove them: they are part of the value")
    if text.lower().startswith("bearer"):
        return failure("key", f"{about}, beginning with Bearer", "remove that: the client adds it")
    if any(example in text.lower() for example in _EXAMPLES):
        return failure("key", f"{about}, which looks like an example", "set the key of your account")
    return ok("key", about)


def _address(settings: Settings) -> list[Finding]:
    url = settings.base_url
    if settings.exposed:
        return [
            warning(
                "base_url", f"{url} is not encrypted: the key and all events can be read on the way", "use https://"
            )
        ]
    if settings.loopback:
        return [
            note(
                "base_url", f"{url} is this machine: nothing reaches letter.app", "unset LETTER_BASE_URL to send there"
            )
        ]
    return [ok("base_url", url)]


def _guarded(name: str, check: Check) -> list[Finding]:
    """The same as `within`, in this thread."""
    try:
        return check()
    except Exception as problem:  # the host may be broken in any way
        return [failure(name, f"could not be checked: {type(problem).__name__}: {problem}")]
