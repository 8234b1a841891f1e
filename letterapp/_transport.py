"""One kept-alive connection to the API: post a body, get an answer or a mapped error.

Lives here: HTTP, TLS, proxies, time-outs of one request, and what becomes of a connection after a fork. Never here:
whether to try again, queues, threads. Used by one thread at a time; `abandon` alone may be called in a forked child.

`ssl`, `http.client` and the like are imported at the first request, by whichever thread sends it, so importing the
package stays cheap and gevent may patch before. All of it at once, in `load`: a fork in the middle of an import leaves
the child a half-made module for ever, so `_forks` has forks wait for that moment, and none must follow it.
"""

from __future__ import annotations

import io
import os
import sys
import time

from ._forks import inherits, undisturbed
from ._version import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    import http.client
    import socket
    import ssl
    from typing import Any, Callable

    from ._settings import Settings

MAX_ANSWER = 65_536  # bytes of an answer's body that are read; what the API says fits many times over


# All that a request, its answer and its failures make use of, the codec of host names included.
_NEEDED = (
    *("base64", "calendar", "email.utils", "encodings.idna", "http.client", "json", "select", "socket", "ssl"),
    "urllib.parse",
)


def load() -> None:
    """Import what the first request needs. Takes some 30 ms; cheap when done."""
    for name in (*_NEEDED, "urllib.request") if _may_have_proxies() else _NEEDED:
        __import__(name)


class Answer:
    """An HTTP answer, its body read up to `MAX_ANSWER`."""

    def __init__(
        self, status: int, body: str = "", retry_after: str | None = None, location: str | None = None
    ) -> None:
        self.status = status
        self.body = body
        self.retry_after = retry_after
        self.location = location


class Unreachable(Exception):
    """No whole answer came: refused, reset, timed out, cut short, garbage. The text says which."""


class Transport:
    """Posts to the API over one connection, opened when needed and kept."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connection: http.client.HTTPConnection | None = None
        self._line: _Line | None = None  # the socket under it
        self._prefix = settings.path  # what stands before the path in the request line
        self._headers: dict[str, str] = {
            "Host": settings.host_header,
            "Authorization": f"Bearer {settings.api_key}",
            "Content-Type": "application/json",
            "User-Agent": f"letterapp-python/{__version__}",
        }
        self._context: ssl.SSLContext | None = None
        self._context_type: type | None = None

    def prepare(self) -> None:
        """Do what the first request does once: the imports, and the TLS context."""
        undisturbed(load)
        if self._settings.secure:
            try:
                undisturbed(self._tls)
            except Exception:
                pass  # `post` meets it again, and says what it is

    def post(self, path: str, body: bytes, timeout: float) -> Answer:
        """Post ``body`` and return the answer, whatever its status; raise `Unreachable` when none came.

        ``timeout`` bounds the request as a whole, in seconds (looking up the host's name excepted: the system allows
        no bound there). A kept connection that turns out to be closed by the server is replaced at once, once: every
        body posted over a kept connection is safe to send twice.
        """
        deadline = time.monotonic() + timeout
        try:
            if self._line is not None and self._line.is_stale():
                self.close()
            kept = self._line is not None
            try:
                return self._exchange(path, body, deadline)
            except OSError as error:
                if not kept or _is_timeout(error):
                    raise
                self.close()
                return self._exchange(path, body, deadline)
        except Exception as error:
            self.close()
            raise Unreachable(_reason(error, timeout)) from error
        except BaseException:
            self.close()  # a KeyboardInterrupt in the middle: the connection's state is unknown
            raise

    def close(self) -> None:
        """Close the connection, if there is one. The next `post` opens another."""
        line, self._line, self._connection = self._line, None, None
        if line is not None:
            line.hang_up()

    def abandon(self) -> None:
        """In a forked child, when no hook did: give back its copy of the descriptor, without a word to the peer."""
        if self._line is not None:
            self._line.abandon_late()

    def _exchange(self, path: str, body: bytes, deadline: float) -> Answer:
        import http.client

        connection, line = self._opened(deadline)
        line.deadline = deadline
        try:
            line.send(lambda: connection.request("POST", self._prefix + path, body, self._headers))
        except ConnectionError as error:
            # A server may refuse a large body before it has read it, and close; the answer is there all the same.
            try:
                response = connection.getresponse()
            except (OSError, http.client.HTTPException):
                raise error from None
        else:
            response = connection.getresponse()
        if line.ended:
            raise http.client.IncompleteRead(b"")  # in the headers, which `http.client` takes for their end
        if response.status < 200:
            raise http.client.BadStatusLine(f"status {response.status}")
        data = response.read(MAX_ANSWER + 1)
        if response.length and len(data) <= MAX_ANSWER:
            raise http.client.IncompleteRead(data, response.length)
        headers = response.headers
        if response.will_close or not response.isclosed():
            self.close()  # the server closes, or there is more to read than is worth reading
        text = data[:MAX_ANSWER].decode("utf-8", "replace")
        return Answer(response.status, text, headers.get("Retry-After"), headers.get("Location"))

    def _opened(self, deadline: float) -> tuple[http.client.HTTPConnection, _Line]:
        if self._connection is None or self._line is None:
            import http.client
            from socket import IPPROTO_TCP, TCP_NODELAY

            settings = self._settings
            proxy = undisturbed(_proxy, settings.secure, settings.host, settings.port)
            address = (proxy.host, proxy.port) if proxy else (settings.host, settings.port)
            self._prefix = settings.path
            self._headers.pop("Proxy-Authorization", None)
            sock = _connected(undisturbed(_places, *address), deadline)
            sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
            # From here on every wait ends at the request's own deadline, and a child that is forked finds the socket.
            line = self._line = _Line(sock, deadline)
            if settings.secure:
                if proxy:
                    line.ask_for_tunnel(settings.authority, proxy.headers)
                undisturbed(line.secure, self._tls(), settings.host)
            elif proxy:
                self._prefix = f"http://{settings.authority}{settings.path}"
                self._headers.update(proxy.headers)
            self._connection = http.client.HTTPConnection(settings.host, settings.port)
            self._connection.sock = line
        return self._connection, self._line

    def _tls(self) -> ssl.SSLContext:
        import ssl

        given = self._settings.ssl_context
        if given is not None and not callable(given):
            return given
        # gevent replaces the class, and a context of the class before fails at every request after that.
        if self._context is None or self._context_type is not ssl.SSLContext:
            self._context = given() if given is not None else ssl.create_default_context()
            self._context_type = ssl.SSLContext
        return self._context


class _Line:
    """A connected socket, as `http.client` uses one, whose every wait ends at one ``deadline``.

    A socket's own time-out starts anew with each byte that trickles in.
    """

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._detach = _detach(sock)
        self._inode = os.fstat(sock.fileno()).st_ino
        self._base = _socket_class()
        self.deadline = deadline
        self.ended = False  # the peer has closed its side
        self._held: list[bytes] | None = None  # what is to leave in one piece
        inherits(self)

    # Opening.

    def ask_for_tunnel(self, authority: str, headers: dict[str, str]) -> None:
        """Have an HTTP proxy connect this line to ``authority`` (RFC 9110, 9.3.6)."""
        import http.client

        lines = [
            f"CONNECT {authority} HTTP/1.1",
            f"Host: {authority}",
            *(f"{name}: {headers[name]}" for name in headers),
        ]
        self.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("ascii"))
        response = http.client.HTTPResponse(self, method="CONNECT")  # type: ignore[arg-type]
        response.begin()
        if response.status != 200:
            raise OSError(f"the proxy refused: {response.status} {response.reason}")

    def secure(self, context: ssl.SSLContext, host: str) -> None:
        # In two steps, because a socket in the middle of `wrap_socket`'s own handshake is in nobody's hands, and a
        # child forked then could not give it back.
        secured = context.wrap_socket(self._sock, server_hostname=host, do_handshake_on_connect=False)
        self._sock, self._detach = secured, _detach(secured)
        self._armed()
        secured.do_handshake()

    # What `http.client` calls.

    def sendall(self, data: bytes) -> None:
        if self._held is not None:
            self._held.append(data)
            return
        rest = memoryview(data)
        while rest:
            rest = rest[self._armed().send(rest) :]

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self))

    def close(self) -> None:
        """Without effect: `http.client` lets go of the socket while the answer is still to be read."""

    # What the transport and the reader call.

    def send(self, request: Callable[[], object]) -> None:
        """Send what ``request`` writes, as one piece: `http.client` writes head and body apart, a packet for each."""
        held: list[bytes] = []
        self._held = held
        try:
            request()
        finally:
            self._held = None
        self.sendall(b"".join(held))

    def receive_into(self, buffer: Any) -> int:
        received = self._armed().recv_into(buffer)
        self.ended = not received
        return received

    def is_stale(self) -> bool:
        """True when the server closed the idle connection, or spoke out of turn, or gevent patched since."""
        import select

        if self._base is not _socket_class():
            return True  # a socket of before, which would stop every greenlet while it waits

        try:
            if hasattr(select, "poll"):  # `select.select` fails above descriptor 1023
                poll = select.poll()
                poll.register(self._sock, select.POLLIN)
                return bool(poll.poll(0))
            return bool(select.select([self._sock], [], [], 0)[0])
        except (OSError, ValueError):
            return True

    def hang_up(self) -> None:
        try:
            self._sock.close()
        except OSError:
            pass  # it is gone, which is what was wanted

    def abandon(self) -> None:
        # In the fork hook. Only this process's copy of the descriptor goes; `shutdown` or TLS's farewell would end the
        # parent's connection.
        descriptor = self._detach()
        if descriptor >= 0:  # -1 the second time
            try:
                os.close(descriptor)
            except OSError:
                pass  # somebody else closed it

    def abandon_late(self) -> None:
        # Only if the number is still this socket: daemons and workers close what they inherited, and it may be a log
        # file by now.
        descriptor = self._detach()
        try:
            if os.fstat(descriptor).st_ino == self._inode:
                os.close(descriptor)
        except OSError:
            pass  # closed by somebody before

    def _armed(self) -> socket.socket:
        left = self.deadline - time.monotonic()
        if left <= 0:
            import socket

            raise socket.timeout("timed out")
        self._sock.settimeout(left)
        return self._sock


class _Reader(io.RawIOBase):
    """The reading end of a line. Closing it leaves the line open, for the next request."""

    def __init__(self, line: _Line) -> None:
        self._line = line

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._line.receive_into(buffer)


class _Proxy:
    def __init__(self, host: str, port: int, headers: dict[str, str]) -> None:
        self.host = host
        self.port = port
        self.headers = headers


def _proxy(secure: bool, host: str, port: int) -> _Proxy | None:
    """The proxy that the environment names for this host, by urllib's conventions: HTTPS_PROXY, NO_PROXY, ..."""
    if not _may_have_proxies():
        return None
    from urllib.parse import unquote, urlsplit
    from urllib.request import getproxies, proxy_bypass

    url = getproxies().get("https" if secure else "http")
    if not url or proxy_bypass(f"{host}:{port}"):
        return None
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port_there = parts.port or 80
    except ValueError:  # whose text may hold a password
        raise ValueError(
            "the address of the proxy in the environment cannot be read: is its password escaped?"
        ) from None
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"the proxy {parts.scheme}://{parts.hostname} is not spoken to: only http:// proxies are")
    headers = {}
    if parts.username is not None:
        from base64 import b64encode

        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Proxy-Authorization"] = "Basic " + b64encode(pair.encode()).decode()
    return _Proxy(parts.hostname, port_there, headers)


def _may_have_proxies() -> bool:
    # All that urllib looks at but on a Mac and on Windows. To import it costs each worker 10 ms and 1 MB.
    return sys.platform in ("darwin", "win32") or any(name.lower().endswith("_proxy") for name in os.environ)


def _places(host: str, port: int) -> list[Any]:
    import socket

    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


def _connected(places: list[Any], deadline: float) -> socket.socket:
    """What `socket.create_connection` does, but with one deadline for all addresses of the host together."""
    import socket

    problem: OSError = OSError("the host has no address")
    for family, kind, protocol, _, place in places:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            sock.connect(place)
        except OSError as error:
            sock.close()
            problem = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise problem


def _socket_class() -> type:
    import socket

    return socket.socket


def _detach(sock: socket.socket) -> Callable[[], int]:
    """What takes its descriptor from ``sock``: C's own where it can be, since Python's is some pages more in a fork."""
    import _socket

    taking: Callable[[], int] = _socket.socket.detach.__get__(sock) if isinstance(sock, _socket.socket) else sock.detach
    return taking


def _is_timeout(error: OSError) -> bool:
    import socket

    return isinstance(error, socket.timeout)


def _reason(error: Exception, timeout: float) -> str:
    if isinstance(error, OSError) and _is_timeout(error):
        return f"no answer within {timeout:g} s"
    return f"{error} ({type(error).__name__})" if str(error) else type(error).__name__
