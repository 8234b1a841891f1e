"""One kept-alive connection to the API: post a body, return the response or raise `Unreachable`.

Responsible for: one request and its response, its time-out, the TLS context, replacing a stale connection.
Not responsible for: retries, queues, threads, sockets (`deadline_socket`). Used by one thread at a time.

`ssl`, `http.client` and others are imported at the first request, by the thread that sends it. So importing the package
is cheap, and gevent may patch before that. They are imported all at once, in `load`: a child that is forked during an
import keeps a partially initialised module, so forks wait for `load`, and nothing is imported after it.
"""

from __future__ import annotations

import os
import sys

from .._runtime import outbox
from .._runtime.atfork import NETWORK, WORK, block_forks
from .._runtime.clock import monotonic
from .._runtime.signal_errors import reraise_signal_error
from .._runtime.threads import with_starters_signal_mask
from .._text import Secret, without_keys
from .._version import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl

    from .._config import Settings
    from .._sockets.deadline_socket import DeadlineSocket
    from .proxy import Proxy
    from .response import Response

MAX_ANSWER = 65_536  # bytes of a response's body that are read; the API sends much less
REQUEST_TIMEOUT = 408  # load balancers close an idle connection with it: it is not a response to a request


# Everything that a request, its response and its errors use, including the codec for host names. `ssl` comes before
# `http.client`, which would never use it in this process if importing it failed at that moment.
_NEEDED = (
    *("socket", "select", "ssl", "base64", "calendar", "email.utils", "encodings.idna", "http.client", "json"),
    "urllib.parse",
)
_OPEN_AT_ONCE = 8  # more files than an import, an extension module and its libraries have open at the same time


def load() -> None:
    """Import what the first request needs. Takes 30 ms the first time. Raises `OSError` if no file can be opened."""
    from . import proxy

    needed = (*_NEEDED, "urllib.request") if proxy.may_have_proxies() else _NEEDED
    if not all(name in sys.modules for name in needed):
        _try_descriptors()
    for name in needed:
        __import__(name)
    from .._sockets import deadline_socket  # noqa: F401  # used later
    from . import response  # noqa: F401  # used later


def _try_descriptors() -> None:
    """Raise `OSError` before the first import if there are not enough file descriptors for it.

    If an import failed, modules that catch `ImportError`, like `hashlib` and `http.client`, would stay incomplete for
    the application too, even when there are descriptors again.
    """
    opened: list[int] = []
    try:
        while len(opened) < _OPEN_AT_ONCE:
            opened.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        for descriptor in opened:
            os.close(descriptor)


class Answer:
    """An HTTP response, with at most `MAX_ANSWER` bytes of its body."""

    def __init__(
        self, status: int, body: str = "", retry_after: str | None = None, location: str | None = None
    ) -> None:
        self.status = status
        self.body = body
        self.retry_after = retry_after
        self.location = location


class Unreachable(Exception):
    """There was no complete response: refused, reset, timed out, truncated or invalid. The text says which."""


class Forbidden(Unreachable):
    """The process belongs to a test run, which sends nothing, and no test captures."""


FORBIDDEN = (
    "nothing is sent to {} while tests run: see events with the fixture `letter` or `letterapp.testing.capture()`, "
    "set base_url to a loopback server, or set `letterapp_allow_network` in pytest's configuration"
)
# What the API answers to the requests that a test run keeps.
_ANSWERS = {"batch": '{"ok":true}', "send": '{"id":"1","messageId":"m-1","status":"sent","replayed":false}'}


class Transport:
    """Posts to the API over one connection, opened when needed and kept."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._line: DeadlineSocket | None = None  # the connection
        self._head = b""  # of the requests over it, see `_request_head`
        self._secrets = Secret(
            ""
        )  # further header lines, so that no variable of a frame shows them to a crash reporter
        self._context: ssl.SSLContext | None = None
        self._context_type: type | None = None

    def prepare(self) -> None:
        """Do what has to be done once before the first request: imports, the TLS context. May raise anything."""
        if self._settings.captured:
            return
        block_forks(WORK, load)
        if self._settings.secure:
            block_forks(WORK, self._tls)

    def post(self, path: str, body: bytes, timeout: float) -> Answer:
        """Post ``body`` and return the response, whatever its status. Raises `Unreachable` if there is none.

        ``timeout`` limits the request as a whole, in seconds, except for the lookup of the host name, which cannot be
        limited. If a kept connection turns out to be closed by the server, the request is repeated at once, over a new
        connection: every body that is posted over a kept connection may be sent twice. In a test run it is kept, or
        `Forbidden` raised.
        """
        if self._settings.captured:
            return self._keep(path.rpartition("/")[2], body)
        try:
            return self._post(path, body, monotonic() + timeout)
        except Exception as error:
            self.close()
            reraise_signal_error(error)
            if _is_distrust(error):
                # The certificate file may have been unreadable when the context was created, which OpenSSL does not
                # report, or may have been renewed since.
                self._context = None
            raise Unreachable(_reason(error, timeout)) from error
        except BaseException:
            self.close()  # a KeyboardInterrupt: the connection's state is unknown
            raise

    def _keep(self, kind: str, body: bytes) -> Answer:
        try:
            is_kept = outbox.keep(kind, body)
        except OSError as problem:
            reraise_signal_error(problem)
            raise Unreachable(f"the test run cannot keep the request: {problem.strerror or problem}") from problem
        if not is_kept:
            raise Forbidden(FORBIDDEN.format(self._settings.host))
        return Answer(200, _ANSWERS[kind])

    def _post(self, path: str, body: bytes, deadline: float) -> Answer:
        if self._line is not None and self._line.is_stale():
            self.close()
        is_kept = self._line is not None
        try:
            answer = self._exchange(path, body, deadline)
        except OSError as error:
            reraise_signal_error(error)
            if not is_kept or _is_timeout(error):
                raise
        else:
            if not is_kept or answer.status != REQUEST_TIMEOUT:
                return answer
        self.close()
        return self._exchange(path, body, deadline)

    def close(self) -> None:
        """Close the connection, if there is one. The next `post` opens another."""
        line, self._line = self._line, None
        if line is not None:
            line.hang_up()

    def _exchange(self, path: str, body: bytes, deadline: float) -> Answer:
        line = self._opened(deadline)
        import http.client

        line.deadline = deadline
        try:
            line.send(self._head % (path.encode("ascii"), len(body)), self._secrets, body)
        except ConnectionError as error:
            # A server may refuse a large body and close before it has read it all; its response can still be read.
            try:
                response = _response_on(line)
            except (OSError, http.client.HTTPException) as problem:
                reraise_signal_error(problem)
                raise error from None
        else:
            response = _response_on(line)
        if line.ended:
            raise http.client.IncompleteRead(b"")  # in the headers, which `http.client` does not notice
        if response.status < 200:
            raise http.client.BadStatusLine(f"status {response.status}")
        # Read beyond the limit by the length of the API key, so that a key that crosses the limit is removed entirely.
        beyond = len(self._settings.api_key)
        data = response.read(MAX_ANSWER + beyond + 1)
        is_cut = len(data) > MAX_ANSWER
        if response.length and not is_cut:
            raise http.client.IncompleteRead(data, response.length)
        headers = response.headers
        if response.will_close or not response.isclosed() or response.status == REQUEST_TIMEOUT:
            self.close()  # the server closes it, or there is more than we read
        text = without_keys((data[: MAX_ANSWER + beyond] if is_cut else data).decode("utf-8", "replace"))
        if is_cut:
            text = text[: max(0, len(text) - beyond)]
        return Answer(response.status, text, headers.get("Retry-After"), headers.get("Location"))

    def _opened(self, deadline: float) -> DeadlineSocket:
        if self._line is None:
            self.prepare()
            from .._sockets.deadline_socket import open_socket

            settings = self._settings
            proxy = block_forks(WORK, self._proxy)
            host, port = (proxy.host, proxy.port) if proxy else (settings.host, settings.port)
            prefix = settings.path
            self._secrets = Secret(f"Authorization: Bearer {settings.api_key.reveal()}\r\n")
            line = self._line = open_socket(host, port, deadline)
            if settings.secure:
                if proxy:
                    _open_tunnel(line, settings.authority, proxy.secrets)
                block_forks(NETWORK, line.start_tls, self._tls(), settings.host)
            elif proxy:
                prefix = f"http://{settings.authority}{settings.path}"
                self._secrets = Secret(self._secrets.reveal() + proxy.secrets.reveal())
            self._head = _request_head(prefix, settings.host_header)
        return self._line

    def _proxy(self) -> Proxy | None:
        from .proxy import proxy_for

        return proxy_for(self._settings.secure, self._settings.netloc)

    def _tls(self) -> ssl.SSLContext:
        import ssl

        given = self._settings.ssl_context
        if given is not None and not callable(given):
            return given
        # When gevent patches, it replaces the class, and a context of the original class would fail from then on.
        if self._context is None or self._context_type is not ssl.SSLContext:
            self._context = with_starters_signal_mask(given) if given is not None else ssl.create_default_context()
            self._context_type = ssl.SSLContext
        return self._context


def _request_head(prefix: str, host: str) -> bytes:
    """The head of a request, with places for the path after ``prefix`` and the length of the body."""
    return (
        f"POST {prefix.replace('%', '%%')}%s HTTP/1.1\r\nHost: {host.replace('%', '%%')}\r\n"
        "Accept-Encoding: identity\r\nContent-Length: %d\r\nContent-Type: application/json\r\n"
        f"User-Agent: letterapp-python/{__version__}\r\n"
    ).encode("ascii")


def _response_on(line: DeadlineSocket) -> Response:
    """The response to the request that was sent last, read up to its body."""
    from .response import Response

    response = Response(line, method="POST")  # type: ignore[arg-type]
    try:
        response.begin()
    except BaseException:
        response.close()
        raise
    return response


def _open_tunnel(line: DeadlineSocket, authority: str, secrets: Secret) -> None:
    """Let an HTTP proxy connect ``line`` to ``authority`` (RFC 9110, 9.3.6). ``secrets``: header lines."""
    from .response import TunnelResponse

    line.send(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n".encode("ascii"), secrets)
    response = TunnelResponse(line, method="CONNECT")  # type: ignore[arg-type]
    response.begin()
    response.close()
    if response.status != 200:
        raise OSError(f"the proxy refused the connection: {response.status} {response.reason}")
    if line.has_surplus:
        raise OSError("the proxy sent data after its response")


def _is_timeout(error: Exception) -> bool:
    socket = sys.modules.get("socket")  # its import may have failed
    return socket is not None and isinstance(error, getattr(socket, "timeout", ()))


def _is_distrust(error: Exception) -> bool:
    ssl = sys.modules.get("ssl")
    return ssl is not None and isinstance(error, getattr(ssl, "SSLCertVerificationError", ()))


def _reason(error: Exception, timeout: float) -> str:
    if _is_timeout(error):
        return f"no answer within {timeout:g} s"
    return f"{error} ({type(error).__name__})" if str(error) else type(error).__name__
