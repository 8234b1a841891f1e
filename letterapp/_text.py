"""Text in errors and logs: printable, of bounded length, without API keys and passwords.

Responsible for: `Secret`, the API keys of this process; `clean`, which the text of every error passes through; how
values and exceptions of other code are shown. Not responsible for: what an error says, and where it is reported.

A server or a proxy may send anything: control characters, a page of HTML, the key that it received. So no text is
trusted, whatever its source, and all of them pass through one place, `LetterError`. The `repr` of a foreign value may
raise or take forever (for example that of thirty nested lists, each of which contains the next one twice), so no code
of a value's class is run.
"""

from __future__ import annotations

from _weakref import ref
from functools import partial

from ._runtime.signal_errors import reraise_signal_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LONGEST = 300  # characters of an error's text
MASK = "***"
_SHORTEST = 8  # characters of a secret that is searched for in texts; "key" would be found in half of them
_GAP = " [...] "
_TAIL = 80  # characters that are kept of the end of a text that is cut

# By `id`: in a set, two secrets with the same text would be one, and removed with the first of them.
_known: dict[int, ref[Secret]] = {}


class Secret:
    """A string that no `repr`, `str` or format shows, and that `clean` removes from texts while this object exists.

    Immutable. Can be pickled; the pickle contains the string.
    """

    __slots__ = ("__weakref__", "_text")
    _text: str

    def __init__(self, text: str) -> None:
        try:
            import re  # noqa: F401  # `clean` needs it, and may run in a call, where nothing may be imported
        except OSError as problem:
            reraise_signal_error(problem)  # no file descriptor left: `clean` tries again

        object.__setattr__(self, "_text", text)
        if len(text) >= _SHORTEST:
            mark = id(self)
            # No Python code: what a signal handler raises there would never reach the application.
            _known[mark] = ref(self, partial(_known.pop, mark))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a secret cannot be changed")

    def reveal(self) -> str:
        """The string. Do not keep it in a variable: crash reporters show variables."""
        return self._text

    def encode(self) -> bytes:
        """The string, encoded. Do not keep it in a variable either."""
        return self._text.encode()

    def __bool__(self) -> bool:
        return bool(self._text)

    def __len__(self) -> int:
        return len(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return f"<secret {MASK}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Secret, (self._text,)


class SecretBytes(bytes):
    """Bytes that no `repr` shows, for functions that accept only bytes. Can be pickled."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<secret {MASK}>"

    __str__ = __repr__


def revealed(value: Any) -> str:
    """For `json.dumps(default=)`: encodes secrets as strings."""
    if isinstance(value, Secret):
        return value.reveal()
    raise TypeError(f"{type(value).__name__} is not JSON")


def concealed(value: Any) -> Any:
    """``value`` as a `Secret` if it is a string; anything else unchanged."""
    return Secret(value) if isinstance(value, str) else value


def clean(text: str, longest: int = LONGEST) -> str:
    """``text`` without secrets and control characters, and of at most ``longest`` characters."""
    return excerpt(_without_users(without_keys(text)), longest)


def without_keys(text: str) -> str:
    """``text`` without the secrets that this process knows."""
    for known in list(_known.values()):
        secret = known()
        if secret is not None and secret._text in text:
            text = text.replace(secret._text, MASK)
    return text


def excerpt(text: str, longest: int = LONGEST) -> str:
    """``text`` as one line of at most ``longest`` printable characters.

    If it is too long, the middle is left out: the library's own words are at the beginning and at the end.
    """
    cut = len(text) > longest
    if cut:
        tail = min(_TAIL, longest // 3)
        text = text[: longest - tail - len(_GAP)] + _GAP + text[-tail:]
    return text if text.isprintable() else "".join(sign if sign.isprintable() else " " for sign in text)


def _without_users(text: str) -> str:
    if "@" not in text:
        return text
    try:
        import re
    except OSError as problem:
        reraise_signal_error(problem)  # no file descriptor left: remove every word that may contain a secret
        return " ".join("***" if "@" in word else word for word in text.split(" "))

    # From the beginning of a word to its last @. Starting anywhere else would take quadratic time for a long word.
    return re.sub(r"(?<![^\s'\"<>])[^\s'\"<>]*@", _without_user, text)


def _without_user(match: Any) -> str:
    """``scheme://user:password@``, ``user:password@`` or ``scheme://token@`` without its secret part."""
    word: str = match[0]
    before, slashes, rest = word.partition("://")
    if not slashes:
        return f"{MASK}@" if ":" in word else word  # an email address
    authority = rest.split("/", 1)[0].split("?", 1)[0].split("#", 1)[0]
    user, at, host = authority.rpartition("@")
    if at:
        return f"{before}://{MASK}@{rest[len(user) + 1 :]}"
    port = host.rpartition(":")[2]
    if ":" in authority and not port.isdigit():
        return f"{before}://{MASK}@"  # a password that contains an unescaped slash
    return word  # the @ is part of the path


# Values and exceptions of other code: simple values of built-in types are shown, for all others only the class name.

_SHOWN = frozenset((str, bytes, int, float, complex, bool, type(None)))
_LONGEST_VALUE = 80
_name_of: Any = type.__dict__["__name__"].__get__  # a metaclass may override `__name__`
_args_of: Any = BaseException.__dict__["args"].__get__


def kind_of(value: object) -> str:
    """The name of ``value``'s class."""
    name: str = _name_of(type(value))
    return name


def short(value: Any) -> str:
    """For example ``42`` or ``a list``."""
    if type(value) not in _SHOWN:
        name = kind_of(value)
        return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
    try:
        text = repr(value[:_LONGEST_VALUE] if isinstance(value, (str, bytes)) else value)
    except ValueError:  # CPython limits the number of digits
        return "a very long int"
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."


def described(value: object) -> str:
    """For example ``int: 42`` or ``list``."""
    return f"{kind_of(value)}: {short(value)}" if type(value) in _SHOWN else kind_of(value)


def shown(value: object) -> str:
    """For example ``b'x' (bytes)`` or ``a list``."""
    return f"{short(value)} ({kind_of(value)})" if type(value) in _SHOWN else short(value)


def said(error: BaseException) -> str:
    """For example ``KeyError('name')``: the class, and up to three arguments."""
    return f"{kind_of(error)}({', '.join(map(short, _args_of(error)[:3]))})"
