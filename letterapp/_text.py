"""Text that leaves the library: printable, of bounded length, without keys and passwords.

Responsible for: `Secret`, the keys that this process knows; `clean`, which every error's text goes through; how a
foreign value or exception is shown in one. Not responsible for: what an error says, where it goes, what travels.

A server or a proxy may have said anything: control characters, a page of HTML, the key that it was sent. So nothing is
trusted for where it comes from, and there is one place that no text gets around, `LetterError`. A foreign `repr` may
raise, or take for ever, as that of thirty lists does that hold the next one twice: no code of a value's class is run.
"""

from __future__ import annotations

from _weakref import ref

from ._runtime.signal_errors import reraise_signal_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LONGEST = 300  # characters of an error's text
MASK = "***"
_SHORTEST = 8  # characters of a secret that is looked for in texts; "key" would be found in half of them
_GAP = " [...] "
_TAIL = 80  # characters that are kept of the end of a text that is cut

# By `id`: a set would take two of the same text for one, and lose it with the first.
_known: dict[int, ref[Secret]] = {}


class Secret:
    """A text that shows in no `repr`, `str` or format, and that `clean` removes from texts while this object lives.

    It can be pickled, and carries the text then. Immutable.
    """

    __slots__ = ("__weakref__", "_text")
    _text: str

    def __init__(self, text: str) -> None:
        try:
            import re  # noqa: F401  # what `clean` needs, which may run in a call, where nothing is to be imported
        except OSError as problem:
            reraise_signal_error(problem)  # no descriptor left: `clean` tries again

        object.__setattr__(self, "_text", text)
        if len(text) >= _SHORTEST:
            mark = id(self)
            _known[mark] = ref(self, lambda _: _known.pop(mark, None))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a secret cannot be changed")

    def reveal(self) -> str:
        """The text. Not to be kept in a variable: crash reporters show those."""
        return self._text

    def encode(self) -> bytes:
        """The text's bytes; the same holds."""
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
    """Bytes that show in no `repr`, for functions that take nothing but bytes. Can be pickled."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<secret {MASK}>"

    __str__ = __repr__


def revealed(value: Any) -> str:
    """For `json.dumps(default=)`: secrets as they are."""
    if isinstance(value, Secret):
        return value.reveal()
    raise TypeError(f"{type(value).__name__} is not JSON")


def concealed(value: Any) -> Any:
    """``value`` as a `Secret` if it is a text; else as it is."""
    return Secret(value) if isinstance(value, str) else value


def clean(text: str, longest: int = LONGEST) -> str:
    """``text`` as an error may say it: see the module."""
    return excerpt(_without_users(without_keys(text)), longest)


def without_keys(text: str) -> str:
    """``text`` without the secrets that this process knows."""
    for known in list(_known.values()):
        secret = known()
        if secret is not None and secret._text in text:
            text = text.replace(secret._text, MASK)
    return text


def excerpt(text: str, longest: int = LONGEST) -> str:
    """``text`` in one line of at most ``longest`` characters, with nothing in it that steers a terminal.

    The beginning and the end are kept: what is said around a foreign text stands there.
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
        reraise_signal_error(problem)  # no descriptor left: what may be secret goes, with what stands beside it
        return " ".join("***" if "@" in word else word for word in text.split(" "))

    # From the beginning of a word to its last @; begun nowhere else, or a long word would take quadratic time.
    return re.sub(r"(?<![^\s'\"<>])[^\s'\"<>]*@", _without_user, text)


def _without_user(match: Any) -> str:
    """``scheme://user:password@``, ``user:password@`` and ``scheme://token@`` without what is secret of it."""
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
        return f"{before}://{MASK}@"  # a password with a slash in it that nobody has escaped
    return word  # the @ is one of the path


# Values and exceptions of somebody else's: what is Python's own and has no parts is shown, of all else the class named.

_SHOWN = frozenset((str, bytes, int, float, complex, bool, type(None)))
_LONGEST_VALUE = 80
_name_of: Any = type.__dict__["__name__"].__get__  # a metaclass may have another idea of `__name__`
_args_of: Any = BaseException.__dict__["args"].__get__


def kind_of(value: object) -> str:
    """The name of its class."""
    name: str = _name_of(type(value))
    return name


def short(value: Any) -> str:
    """``42``, or ``a list``."""
    if type(value) not in _SHOWN:
        name = kind_of(value)
        return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
    try:
        text = repr(value[:_LONGEST_VALUE] if isinstance(value, (str, bytes)) else value)
    except ValueError:  # CPython's limit on digits
        return "a very long int"
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."


def described(value: object) -> str:
    """``int: 42``, or ``list``."""
    return f"{kind_of(value)}: {short(value)}" if type(value) in _SHOWN else kind_of(value)


def shown(value: object) -> str:
    """``b'x' (bytes)``, or ``a list``."""
    return f"{short(value)} ({kind_of(value)})" if type(value) in _SHOWN else short(value)


def said(error: BaseException) -> str:
    """``KeyError('name')``: its class, and those of its first arguments that can be shown."""
    return f"{kind_of(error)}({', '.join(map(short, _args_of(error)[:3]))})"
