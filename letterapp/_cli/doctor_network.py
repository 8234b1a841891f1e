"""The way to the API: proxy, name, connection, TLS, the API's answer, its clock.

Responsible for: taking it step by step, so that the step that fails is known. Not responsible for: how the client sends
(`_http`), whose parts it uses.

The API accepts 1 to 100 events in a request, so it stores nothing of an empty one. That it refuses the request for this
reason shows that it has accepted the key only if it checks the key first. So it is asked again with a key that does not
exist: if that gets a 401 or 403, the first key was accepted.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import string
import time
from email.utils import mktime_tz, parsedate_tz
from secrets import choice
from typing import Any, NamedTuple

from .._config import DEFAULT_BATCH_BYTES, Settings
from .._encoding.events import Encoder
from .._http import transport
from .._http.proxy import Proxy, proxy_for
from .._runtime.clock import monotonic
from .._sockets import connect, deadline_socket
from .._text import Secret, clean, without_keys
from .findings import Finding, Level, failure, note, ok, said, warning, within

_SKEW = 5.0  # seconds between the clocks of this host and the API that are worth a warning; Date has whole seconds
_LARGE_SKEW = 300.0  # seconds
_SOON = 14  # days before its end in which a certificate is worth a note
_ADVICE_FOR_TUNNEL = "check its user and password (407), and whether it allows this host (403)"
_ADVICE_FOR_KEY = "--test-event shows it: it sends one event"
_EMPTY = b'{"batch":[]}'


class Route:
    """The way to the API, as far as it was tried. Each method is a check, and needs those before it."""

    def __init__(self, settings: Settings, timeout: float, has_key: bool, sends_event: bool) -> None:
        self._settings = settings
        self._timeout = timeout
        self._has_key = has_key
        self._sends_event = sends_event
        self._proxy: Proxy | None = None
        self._line: deadline_socket.DeadlineSocket | None = None

    def checks(self) -> list[Finding]:
        """All findings, up to the first step that fails."""
        found: list[Finding] = []
        steps: list[tuple[str, Any]] = [("proxy", self.proxy), ("dns", self.names), ("connection", self.connection)]
        if self._settings.secure:
            steps.append(("tls", self.tls))
        steps.append(("api", self.api))
        for name, step in steps:
            found += within(self._timeout + 1.0, name, step)
            if found[-1].level.name == "FAILURE":
                break
        if self._line is not None:
            self._line.hang_up()
        return found

    def proxy(self) -> list[Finding]:
        settings = self._settings
        try:
            self._proxy = proxy_for(settings.secure, settings.netloc)
        except ValueError as problem:
            return [
                failure("proxy", clean(str(problem)), "correct HTTP_PROXY or HTTPS_PROXY, or add the host to NO_PROXY")
            ]
        if self._proxy is None:
            return [ok("proxy", f"none for {settings.netloc}")]
        return [ok("proxy", f"{self._proxy.host}:{self._proxy.port}, from the environment")]

    @property
    def _peer(self) -> tuple[str, int]:
        proxy = self._proxy
        return (proxy.host, proxy.port) if proxy else (self._settings.host, self._settings.port)

    def names(self) -> list[Finding]:
        host, port = self._peer
        began = monotonic()
        try:
            places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as problem:
            return [
                failure(
                    "dns", f"{host} has no address: {said(problem)}",
                    "check the host name, /etc/resolv.conf, and whether this host must use a proxy (HTTPS_PROXY)",
                )
            ]  # fmt: skip
        addresses = list(dict.fromkeys(str(place[4][0]) for place in connect.interleaved(places)))
        more = f" and {len(addresses) - 3} more" if len(addresses) > 3 else ""
        milliseconds = (monotonic() - began) * 1000
        return [ok("dns", f"{host} is {', '.join(addresses[:3])}{more} ({milliseconds:.0f} ms)")]

    def connection(self) -> list[Finding]:
        host, port = self._peer
        began = monotonic()
        deadline = began + self._timeout
        who = "the proxy" if self._proxy else "the API"
        try:
            self._line = deadline_socket.open_socket(host, port, deadline)
        except OSError as problem:
            text = f"no answer within {self._timeout:g} s" if isinstance(problem, socket.timeout) else said(problem)
            return [failure("connection", f"{host}:{port}: {text}", _advice_for_connection(problem, who))]
        found = [ok("connection", f"to {who} at {host}:{port} ({(monotonic() - began) * 1000:.0f} ms)")]
        if self._proxy and self._settings.secure:
            try:
                transport.open_tunnel(self._line, self._settings.authority, self._proxy.secrets)
            except (OSError, http.client.HTTPException) as problem:
                text = f"the proxy {host}:{port} does not connect to {self._settings.authority}: {clean(said(problem))}"
                return [failure("connection", text, _ADVICE_FOR_TUNNEL)]
        return found

    def tls(self) -> list[Finding]:
        assert self._line is not None
        context = ssl.create_default_context()
        self._line.deadline = monotonic() + self._timeout
        try:
            self._line.start_tls(context, self._settings.host)
        except (OSError, ValueError) as problem:  # SSLError is an OSError
            return [failure("tls", _tls_problem(problem, self._timeout), _advice_for_tls(problem, context))]
        session = self._line.tls()
        version, cipher = session.version(), session.cipher()
        days = _days_left(session.getpeercert())
        text = f"{version}, {cipher[0] if cipher else 'no cipher'}, certificate valid for {days:,} more days"
        if days < _SOON:
            return [warning("tls", text, "have it renewed")]
        return [ok("tls", text)]

    def api(self) -> list[Finding]:
        assert self._line is not None
        deadline = monotonic() + self._timeout
        try:
            answer = self._ask(self._line, self._settings.api_key)
        except (OSError, http.client.HTTPException) as problem:
            text = (
                f"no answer within {self._timeout:g} s" if isinstance(problem, socket.timeout) else clean(said(problem))
            )
            return [
                failure(
                    "api",
                    f"{self._settings.base_url}: {text}",
                    "events are tried again, and then lost, unless there is a spool",
                )
            ]
        finding = _judged(self._settings, answer, self._has_key, self._sends_event)
        if finding.level is Level.OK and not self._sends_event:
            finding = self._compared(answer, deadline)
        return [finding, *_clock(answer)]

    def _compared(self, answer: Answer, deadline: float) -> Finding:
        """The key was accepted if a key that does not exist is refused. ``answer``: to an empty batch with the key."""
        where, status = self._settings.base_url, answer.status
        said = f"{where} answered {status} to an empty batch"
        other = self._status_without_key(deadline)
        if other in (401, 403):
            how = f"{status} for an empty batch, {other} with a key that does not exist"
            return ok("api", f"{where} accepts the key ({how}; {answer.took * 1000:.0f} ms)")
        if other == status:
            return note("api", f"{said}, whatever the key: it may be accepted or not", _ADVICE_FOR_KEY)
        return note("api", f"{said}: the key was probably accepted", _ADVICE_FOR_KEY)

    def _status_without_key(self, deadline: float) -> int | None:
        """What the API answers to a key that does not exist; None if it does not by ``deadline``."""
        steps = 3  # each of them takes so long at most
        other = Route(self._settings, max(0.0, deadline - monotonic()) / steps, True, False)
        other._proxy = self._proxy
        try:
            ways = [other.connection(), *([other.tls()] if self._settings.secure else [])]
            if any(found[-1].level is Level.FAILURE for found in ways) or other._line is None:
                return None
            return other._ask(other._line, _invented(self._settings.api_key)).status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            if other._line is not None:
                other._line.hang_up()

    def _ask(self, line: deadline_socket.DeadlineSocket, key: Secret) -> Answer:
        settings = self._settings
        line.deadline = monotonic() + self._timeout
        prefix = settings.path
        secrets = f"Authorization: Bearer {key.reveal()}\r\n" if self._has_key else ""
        if self._proxy and not settings.secure:
            prefix = f"http://{settings.authority}{prefix}"
            secrets += self._proxy.secrets.reveal()
        body = _test_event() if self._sends_event else _EMPTY
        head = transport.request_head(prefix, settings.host_header) % (b"/v1/batch", len(body))
        began = time.time()
        line.send(head, Secret(secrets), body)
        response = transport.response_on(line)
        took = time.time() - began
        data = response.read(transport.MAX_ANSWER)
        if response.length and len(data) < transport.MAX_ANSWER:
            raise http.client.IncompleteRead(data, response.length)
        text = data.decode("utf-8", "replace")
        return Answer(
            response.status,
            without_keys(text),
            response.headers.get("Location"),
            response.headers.get("Date"),
            began,
            took,
        )


class Answer(NamedTuple):
    """The API's answer."""

    status: int
    body: str
    location: str | None
    date: str | None
    began: float  # when the request was sent, by this host's clock
    took: float  # seconds until the answer


def _test_event() -> bytes:
    event = Encoder(DEFAULT_BATCH_BYTES, None).track("letterapp-doctor", "letterapp doctor", {"test": True}, None, None)
    assert event is not None
    return b'{"batch":[' + event + b"]}"


def _invented(key: Secret) -> Secret:
    """A key that does not exist, of the same form: random letters and digits after the prefix of ``key``."""
    prefix, separator, rest = key.reveal().rpartition("_")
    kinds = (string.digits, string.ascii_lowercase, string.ascii_uppercase)
    pools = [next((kind for kind in kinds if each in kind), each) for each in rest or "x" * 32]
    invented = Secret(prefix + separator + "".join(map(choice, pools)))
    return invented if invented != key else Secret(f"{invented.reveal()}x")


def _judged(settings: Settings, answer: Answer, has_key: bool, sends_event: bool) -> Finding:
    status, where = answer.status, settings.base_url
    explained = _explained(answer)
    time_taken = f"{answer.took * 1000:.0f} ms"
    if not has_key:
        return note("api", f"{where} answers ({status}, {time_taken}); without a key, nothing more can be asked")
    if 200 <= status < 300:
        if not _is_json(answer.body):
            return warning(
                "api",
                f"{where} answered {status}, but no JSON",
                "check base_url: a login page would accept everything too",
            )
        what = "the test event" if sends_event else "the key"
        return ok("api", f"{where} accepts {what} ({status}, {time_taken})")
    if status in (400, 422) and not sends_event:
        return ok("api", f"{where} accepts the key ({status}, {time_taken})")
    if status in (401, 403):
        return failure("api", f"{where} refuses the key: {explained}", "take the key of this account and environment")
    if 300 <= status < 400:
        target = clean(answer.location or "nowhere")
        return failure("api", f"{where} redirects to {target}, which is not followed", "set base_url to the final URL")
    if status in (404, 405):
        return failure("api", f"there is no API at {where}: {explained}", "correct base_url or LETTER_BASE_URL")
    if status == 429:
        return warning("api", f"{where} limits requests at present: {explained}", "try again later")
    if status >= 500:
        return failure(
            "api",
            f"{where} fails at present: {explained}",
            "events are tried again, and then lost, unless there is a spool",
        )
    return failure("api", f"{where} refuses requests: {explained}", "ask the support of letter.app")


def _explained(answer: Answer) -> str:
    try:
        error = json.loads(answer.body)["error"]
        text = str(error["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        text = answer.body.strip()[:100]
    return clean(f"{answer.status} {text}".strip(), 200)


def _is_json(body: str) -> bool:
    try:
        json.loads(body or "{}")
    except (ValueError, RecursionError):
        return False
    return True


def _clock(answer: Answer) -> list[Finding]:
    """How far this host's clock is from the API's."""
    try:
        parsed = parsedate_tz(answer.date or "")
        theirs = None if parsed is None else mktime_tz(parsed)
    except (IndexError, OverflowError, TypeError, ValueError):
        theirs = None
    if theirs is None:
        return [note("clock", "the API sent no date to compare with")]
    # The date is cut to whole seconds, and may be of any moment of the exchange.
    ahead = answer.began - (theirs + 1.0)
    behind = theirs - (answer.began + answer.took)
    skew = max(ahead, behind, 0.0)
    if skew < _SKEW:
        return [ok("clock", "agrees with the API's")]
    text = f"{_duration(skew)} {'ahead of' if ahead > behind else 'behind'} the API's"
    advice = "set it by NTP: it is the timestamp of events"
    return [failure("clock", text, advice) if skew >= _LARGE_SKEW else warning("clock", text, advice)]


def _duration(seconds: float) -> str:
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {name}"
    return f"{seconds:.0f} seconds"


def _days_left(certificate: Any) -> int:
    try:
        return int((ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()) // 86400)
    except (KeyError, TypeError, ValueError):
        return 0


def _advice_for_connection(problem: OSError, who: str) -> str:
    if isinstance(problem, ConnectionRefusedError):
        return f"check the host and the port: nothing listens there, or a firewall refuses ({who})"
    if isinstance(problem, socket.timeout):
        return f"check the firewall, and whether this host must use a proxy (HTTPS_PROXY) to reach {who}"
    return "check the network, its routes and limits"


def _tls_problem(problem: Exception, timeout: float) -> str:
    if isinstance(problem, socket.timeout):
        return f"no handshake within {timeout:g} s"
    return clean(getattr(problem, "verify_message", "") or said(problem))


def _advice_for_tls(problem: Exception, context: ssl.SSLContext) -> str:
    text = _tls_problem(problem, 0.0).lower()
    paths = ssl.get_default_verify_paths()
    if isinstance(problem, ssl.SSLCertVerificationError):
        if "expired" in text or "not yet valid" in text:
            return "check the clock of this host; otherwise the server's certificate has to be renewed"
        if "match" in text or "hostname" in text:
            return "correct the host in base_url: the certificate is another host's"
        if not context.get_ca_certs() and not paths.capath:
            return f"install the system's certificates (ca-certificates): {paths.openssl_cafile} has none"
        return "if a proxy inspects TLS here, or the server is your own, set SSL_CERT_FILE to its CA's certificate"
    if "wrong version" in text or "http request" in text or "record layer" in text:
        return "the server does not speak TLS at this port: correct the port, or use http:// for a local server"
    return "the server may not speak TLS at this port, or a firewall, a proxy or an old OpenSSL breaks it"
