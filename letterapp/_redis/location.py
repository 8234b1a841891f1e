"""Where a stream is: the URL of a Redis or Valkey server, of a cluster, or of the sentinels of one.

Responsible for: which URLs are accepted, their parameters, what redis-py needs to know. Not responsible for: opening
connections (`connection`), what is in the stream (`stream`).

    redis://[user:password@]host[:port][/database]      rediss:// with TLS, unix:///path for a socket: as redis-py
    redis+sentinel://[user:password@]host[:port][,host[:port]...]/service[/database]
"""

from __future__ import annotations

from .._text import Secret
from ..errors import LetterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SENTINEL = "redis+sentinel://"
DEFAULT_LENGTH = 100_000  # entries, of at most 100 events each
# What decides how a connection is used is this library's, whatever the URL says.
_OURS = ("decode_responses", "encoding", "encoding_errors", "protocol", "retry_on_timeout", "health_check_interval")
_SENTINEL_PORT = 26379


class Location:
    """A checked URL. Immutable, can be pickled; the pickle contains the password. Opens nothing."""

    def __init__(self, url: str) -> None:
        """Raises `LetterError` if the URL is invalid, or redis-py is missing or older than version 5."""
        _import_redis()
        self._url, parameters = _without_parameters(url, "max_length", "sentinel_username", "sentinel_password")
        self.max_length = _length(parameters.get("max_length"))
        self.sentinels: list[tuple[str, int]] = []
        self.service = ""
        self._sentinel_user = parameters.get("sentinel_username")
        self._sentinel_password = Secret(parameters.get("sentinel_password", ""))
        if url.startswith(SENTINEL):
            self._url, self.sentinels, self.service = _parse_sentinels(self._url)
        _require_valid(self._url)
        self._secret_url = Secret(self._url)
        options = self._parsed()
        self._password = Secret(options.get("password") or "")  # so that no text of an error shows it
        self.place = _shown(options, self.sentinels, self.service)
        del self._url

    def connection_options(self) -> tuple[Any, dict[str, Any]]:
        """The class of connections of redis-py, and the arguments that follow from the URL."""
        from redis.connection import Connection

        options = self._parsed()
        for name in _OURS:
            options.pop(name, None)
        return options.pop("connection_class", Connection), options

    def sentinel_options(self) -> dict[str, Any]:
        """The arguments for connections to the sentinels, which have users and passwords of their own."""
        if not self._sentinel_password:
            return {}
        return {"username": self._sentinel_user, "password": self._sentinel_password.reveal()}

    def _parsed(self) -> dict[str, Any]:
        from redis.connection import parse_url

        try:
            options: dict[str, Any] = dict(parse_url(self._secret_url.reveal()))
        except (ValueError, TypeError) as problem:
            raise LetterError(f"relay: the URL of the Redis server is invalid: {problem}") from None
        return options

    def __repr__(self) -> str:
        return self.place

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Location) and other._secret_url == self._secret_url

    def __hash__(self) -> int:
        return hash(self._secret_url)


def _import_redis() -> None:
    try:
        import redis.connection  # now, because a call imports nothing, and a fork must not interrupt it
    except ImportError as problem:
        raise LetterError(f"relay: a Redis URL needs redis-py: pip install 'letterapp[redis]' ({problem})") from None
    if int(redis.__version__.partition(".")[0]) < 5:
        raise LetterError(f"relay: redis-py {redis.__version__} is too old: pip install 'letterapp[redis]'")


def _without_parameters(url: str, *names: str) -> tuple[str, dict[str, str]]:
    """``url`` without those of its query's parameters that are meant for this library, and these."""
    from urllib.parse import parse_qsl, urlencode

    address, _, query = url.partition("?")  # `urlunsplit` would change unix:///path
    given = parse_qsl(query)
    others = urlencode([(name, value) for name, value in given if name not in names])
    return f"{address}?{others}" if others else address, {name: value for name, value in given if name in names}


def _require_valid(url: str) -> None:
    from urllib.parse import urlsplit

    try:
        urlsplit(url)
    except ValueError:  # which may show the password
        raise LetterError("relay: the URL of the Redis server is invalid") from None


def _length(text: str | None) -> int:
    if text is None:
        return DEFAULT_LENGTH
    if not text.isascii() or not text.isdigit() or not int(text):
        raise LetterError("relay: max_length in the URL must be a whole number of entries, 1 or more")
    return int(text)


def _parse_sentinels(url: str) -> tuple[str, list[tuple[str, int]], str]:
    """The URL of the master without its address, the sentinels' addresses, and the service's name."""
    # Not by `urlsplit`: since some versions of Python 3.14 it refuses an IPv6 address that is not the first one.
    address, _, query = url[len(SENTINEL) :].partition("?")
    place, _, path = address.partition("/")
    user, at, hosts = place.rpartition("@")
    service, _, database = path.strip("/").partition("/")
    if not service or not all(hosts.split(",")):
        raise LetterError(
            "relay: a sentinel URL must be redis+sentinel://host[:port][,host[:port]...]/service[/database]"
        )
    master = f"redis://{user}{at}sentinel/{database}" + (query and f"?{query}")
    return master, [_address(host) for host in hosts.split(",")], service


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(_SENTINEL_PORT)
    if not (port.isascii() and port.isdigit()):
        raise LetterError("relay: a sentinel's port in the URL must be a number")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not host or "[" in host or "]" in host:
        raise LetterError("relay: a sentinel's host in the URL is missing, or half in brackets")
    return host, int(port)


def _shown(options: dict[str, Any], sentinels: list[tuple[str, int]], service: str) -> str:
    if sentinels:
        return f"Redis service {service}"
    if "path" in options:
        return f"Redis at {options['path']}"
    return f"Redis at {options.get('host', 'localhost')}:{options.get('port', 6379)}"
