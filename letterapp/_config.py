"""Every option of a client: checked once, frozen, passed on as a whole.

Responsible for: the meaning, unit and bounds of each option, and what the environment supplies. The defaults are
defined in one place, the signature of `Letter`. Not responsible for: what is done with an option.
"""

from __future__ import annotations

import os

from ._runtime import outbox
from ._text import Secret, concealed, short
from .errors import LetterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from typing import Any, Callable, Dict, Iterable

    Event = Dict[str, Any]

MAX_ITEMS = 100  # items in one request: the API's limit
DEFAULT_BATCH_BYTES = 500_000  # of a request's body
_REDIS = ("redis://", "rediss://", "redis+sentinel://", "unix://")  # a path begins with none of these
_LONGEST_TIME = 1e9  # seconds; a lock cannot wait much longer, and a comparison with NaN is false
_NETLOC = r"(\[[0-9A-Fa-f:.]+(%[\w.~-]+)?\]|[^\[\]:@%\\]+)(:[0-9]+)?"
OVERFLOW = ("drop_newest", "drop_oldest", "block")


class _Default(str):
    """A default that differs from the same text given by the caller, which takes precedence over the environment."""


DEFAULT_BASE_URL = _Default("https://api.letter.app")


class Settings:
    """The options of one client. Immutable, picklable where the callables in it are; any thread may read it."""

    api_key: Secret
    base_url: str  # without a slash at its end
    secure: bool  # https
    loopback: bool  # requests stay on this machine
    exposed: bool  # requests travel over a network in clear text
    netloc: str  # host and port as given in base_url
    host: str
    port: int
    authority: str  # host and port, for a proxy
    host_header: str
    path: str  # of base_url: "" or "/prefix"
    flush_at: int  # events after which a batch is sent early
    flush_interval: float  # maximum batching delay, in seconds
    max_retries: int | None  # tries after the first; None: no limit
    timeout: float  # seconds for one request, in total
    on_error: Callable[[LetterError], object] | None
    max_queue_bytes: int  # encoded events, waiting or in flight
    max_queue_events: int
    overflow: str
    max_batch_bytes: int  # body of one request, so of one event too
    exit_timeout: float  # seconds for one flush, close or end of the process
    before_send: Callable[[Event], Event | None] | None
    default: Callable[[Any], Any] | None  # converts values that JSON cannot represent
    enabled: bool
    ssl_context: ssl.SSLContext | Callable[[], ssl.SSLContext] | None
    exit_signals: tuple[int, ...]
    send_on_os_exit: bool  # `os._exit` sends waiting events first
    spool: str | None  # the absolute path of a directory
    spool_sync: bool  # a call returns when its event would survive a power loss
    spool_max_bytes: int  # of all files of one key in the directory
    relay: Any  # False, True for a relay that is started, the path of one's socket, or a `Target` of `_queues.targets`
    relay_user: int | None  # a user who may run the relay at that path, besides this user and root

    def __init__(
        self,
        *,
        api_key: Secret | str | None,
        base_url: str,
        enabled: bool,
        overflow: str,
        exit_signals: Iterable[int],
        send_on_os_exit: bool,
        ssl_context: Any,
        on_error: Any,
        before_send: Any,
        default: Any,
        spool: Any,
        spool_sync: bool,
        relay: Any,
        relay_user: Any = None,
        **numbers: Any,
    ) -> None:
        api_key = concealed(api_key)
        checked = self.__dict__
        checked["enabled"] = _flag("enabled", enabled)
        checked["relay"] = _relay(relay)
        checked["relay_user"] = _user(relay_user, checked["relay"])
        api_key, base_url = _as_its_relay(checked["relay"], api_key, base_url)
        checked["api_key"] = _key(api_key, required=enabled)
        checked.update(_address(base_url))
        for name, check in _NUMBERS.items():
            checked[name] = check(name, numbers.pop(name))
        if numbers:
            raise TypeError(f"unknown options: {', '.join(numbers)}")
        if overflow not in OVERFLOW:
            raise LetterError(f"overflow must be one of {', '.join(OVERFLOW)}, not {short(overflow)}")
        checked["overflow"] = overflow
        checked["on_error"] = _callable("on_error", on_error)
        checked["before_send"] = _callable("before_send", before_send)
        checked["default"] = _callable("default", default)
        checked["ssl_context"] = _context(ssl_context)
        checked["exit_signals"] = _signals(exit_signals)
        checked["send_on_os_exit"] = _flag("send_on_os_exit", send_on_os_exit)
        checked["spool"] = _path("spool", "the path of a directory", spool)
        checked["spool_sync"] = _flag("spool_sync", spool_sync)

    @property
    def captured(self) -> bool:
        """True in a test run, unless the client sends to this machine: its requests are kept or refused."""
        return outbox.directory is not None and not self.loopback

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"settings are frozen: make a new Letter to change {name}")

    __delattr__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        # Without the key. Invalid settings have no address, and crash reporters show them too.
        known = self.__dict__
        return f"<Settings {known.get('base_url')} flush_at={known.get('flush_at')}>"

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def _key(api_key: Any, required: bool) -> Secret:
    if api_key is None:
        api_key = concealed(os.environ.get("LETTER_API_KEY"))
    if api_key is None and not required:
        return Secret("")
    if not isinstance(api_key, Secret) or not api_key:
        raise LetterError("api_key is required: pass it, or set LETTER_API_KEY")
    if not all("!" <= sign <= "~" for sign in api_key.reveal()):
        raise LetterError(
            "api_key must be printable ASCII characters, without a space or a line break: check where it is read"
        )
    return api_key


def _readers() -> tuple[Any, Any]:
    try:
        from re import fullmatch  # not at import, to keep that cheap
        from urllib.parse import urlsplit
    except OSError as problem:
        raise LetterError(f"base_url cannot be checked: {problem.strerror or problem}") from None
    return fullmatch, urlsplit


def _address(base_url: str) -> dict[str, Any]:
    if isinstance(base_url, _Default) or not base_url:
        base_url = os.environ.get("LETTER_BASE_URL") or str(DEFAULT_BASE_URL)
    fullmatch, urlsplit = _readers()

    def wrong(why: str) -> LetterError:
        # Without the value: it may be the key, given by mistake, or contain a password.
        return LetterError(
            f"base_url must be http(s)://host[:port][/path], with a port from 1 to 65535; the one given {why}"
        )

    if not isinstance(base_url, str):
        raise wrong(f"is a {type(base_url).__name__}")
    if not base_url.isprintable() or " " in base_url:
        raise wrong("contains a space, a line break or another unprintable character")
    try:
        parts = urlsplit(base_url)
        port = parts.port
    except ValueError:
        raise wrong("has an invalid host or port") from None
    if parts.scheme not in ("http", "https"):
        raise wrong("does not begin with http:// or https://")
    if "@" in parts.netloc:
        raise wrong("contains a user name or a password, which the API does not accept")
    # (`urlsplit` drops what it cannot parse, for instance a port.)
    if not parts.hostname or not fullmatch(_NETLOC, parts.netloc) or port == 0:
        raise wrong("has an invalid host or port")
    if parts.query or parts.fragment:
        raise wrong("has a query or a fragment (? or #) after the path")
    secure = parts.scheme == "https"
    path = parts.path.rstrip("/")
    if not path.isascii():
        raise wrong("has a path that is not ASCII and has to be percent-encoded")
    port = port or (443 if secure else 80)
    try:
        host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode()
    except UnicodeError:
        raise wrong("has an invalid host name") from None
    name = f"[{host}]" if ":" in host else host
    return {
        "base_url": f"{parts.scheme}://{parts.netloc}{path}",
        "secure": secure,
        "loopback": _is_loopback(host),
        "exposed": not (secure or _is_loopback(host)),
        "netloc": parts.netloc,
        "host": host,
        "port": port,
        "authority": f"{name}:{port}",
        "host_header": name if port == (443 if secure else 80) else f"{name}:{port}",
        "path": path,
    }


def _is_loopback(host: str) -> bool:
    """True when what is sent to ``host`` stays on this machine, according to its name or number: no DNS lookup."""
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    from ipaddress import ip_address

    try:
        address = ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise LetterError(f"{name} must be True or False, not {short(value)}")
    return value


def _callable(name: str, value: Any) -> Any:
    if value is not None and not callable(value):
        raise LetterError(f"{name} must be a function or None, not {short(value)}")
    return value


def _context(value: Any) -> Any:
    if value is None or callable(value) or hasattr(value, "wrap_socket"):
        return value
    raise LetterError(f"ssl_context must be an ssl.SSLContext or a function that returns one, not {short(value)}")


def _signals(value: Iterable[int]) -> tuple[int, ...]:
    import signal

    try:
        signals = tuple(signal.Signals(number) for number in value)
    except (TypeError, ValueError):
        raise LetterError(
            f"exit_signals must be a collection of signals, like (signal.SIGTERM,), not {short(value)}"
        ) from None
    for number in signals:
        if number.name in ("SIGKILL", "SIGSTOP"):
            raise LetterError(f"exit_signals: no process can handle {number.name}; leave it out")
    return signals


def _path(name: str, what: str, value: Any) -> str | None:
    if value is None:
        return None
    wrong = LetterError(f"{name} must be {what}, not {short(value)}")
    try:
        path = os.fsdecode(value)
    except (TypeError, UnicodeError):
        raise wrong from None
    if not path or "\0" in path:
        raise wrong
    return os.path.abspath(path)  # now, because a daemon changes its working directory


def _relay(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, str) and value.startswith(_REDIS):
        from ._redis.stream import RedisStream

        return RedisStream(value)
    if isinstance(value, (str, bytes, os.PathLike)):
        return _path("relay", "True, the path of a socket, a Redis URL or a queue", value)
    from ._queues.targets import adapt  # not at import time: most programs do not need it

    return adapt(value)


def _user(value: Any, relay: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(relay, str):
        raise LetterError(
            "relay_user needs relay=PATH, the socket of that user's relay: give the path, or leave relay_user out"
        )
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str):
        import pwd

        try:
            return pwd.getpwnam(value).pw_uid
        except (KeyError, ValueError, UnicodeError):
            raise LetterError(f"relay_user: there is no user {value!r}") from None
    raise LetterError(f"relay_user must be a user name or a user ID, not {short(value)}")


def _as_its_relay(relay: Any, api_key: Any, base_url: str) -> tuple[Any, str]:
    """The key and the address of a `SenderManager`; its clients may omit them, but not give others."""
    key, url = concealed(getattr(relay, "api_key", None)), getattr(relay, "base_url", None)
    if key is None or url is None:
        return api_key, base_url
    if api_key not in (None, key):
        raise LetterError("api_key differs from the SenderManager's: leave it out, or give the same key")
    if not isinstance(base_url, _Default) and base_url and _address(base_url)["base_url"] != url:
        raise LetterError(f"base_url differs from the SenderManager's ({url}): leave it out, or give the same URL")
    return key, url


def _count(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise LetterError(f"{name} must be a whole number, {least} or more, not {short(value)}")
    return value


def _from(least: int) -> Callable[[str, Any], int]:
    return lambda name, value: _count(name, value, least)


def _retries(name: str, value: Any) -> int | None:
    if value is None:
        return None
    try:
        return _count(name, value, 0)
    except LetterError:
        raise LetterError(f"{name} must be a whole number, 0 or more, or None, not {short(value)}") from None


def seconds(name: str, value: Any) -> float:
    """Check a duration given by a caller."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < _LONGEST_TIME:
        raise LetterError(f"{name} must be a number of seconds, 0 or more, not {short(value)}")
    return float(value)


def _some_seconds(name: str, value: Any) -> float:
    if not seconds(name, value):
        raise LetterError(f"{name} must be more than 0 seconds, not {short(value)}: a request takes time")
    return float(value)


_NUMBERS: dict[str, Callable[[str, Any], Any]] = {
    "flush_at": _from(1),
    "flush_interval": seconds,
    "max_retries": _retries,
    "timeout": _some_seconds,
    "max_queue_bytes": _from(1),
    "max_queue_events": _from(1),
    "max_batch_bytes": _from(1000),
    "exit_timeout": seconds,
    "spool_max_bytes": _from(1),
}


# The names of `Letter`'s options; the other fields of `Settings` follow from these.
OPTIONS = frozenset(Settings.__init__.__annotations__) - {"numbers", "return"} | frozenset(_NUMBERS)


class FixedOptions:
    """A base class of classes with options. Setting one later is an error, because it would have no effect."""

    if not TYPE_CHECKING:  # type checkers would believe that any attribute can be set

        def __setattr__(self, name: str, value: object) -> None:
            if name in OPTIONS and not hasattr(type(self), name):  # otherwise a subclass has defined it
                kind = type(self).__name__
                raise AttributeError(f"{name} is an option, which cannot be changed: make another {kind}({name}=...)")
            super().__setattr__(name, value)
