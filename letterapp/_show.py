"""A value or an exception of somebody else's as a short text, without running any code of its class.

Lives here: what the text of an error says of them. Never here: what travels.

A `repr` may raise, show what no log may hold, or take for ever, as that of thirty lists does that hold the next one
twice. So only what is Python's own and has no parts is shown; of all else the class is named.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SHOWN = frozenset((str, bytes, int, float, complex, bool, type(None)))
_LONGEST = 80
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
        text = repr(value[:_LONGEST] if isinstance(value, (str, bytes)) else value)
    except ValueError:  # CPython's limit on digits
        return "a very long int"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def described(value: object) -> str:
    """``int: 42``, or ``list``."""
    return f"{kind_of(value)}: {short(value)}" if type(value) in _SHOWN else kind_of(value)


def shown(value: object) -> str:
    """``b'x' (bytes)``, or ``a list``."""
    return f"{short(value)} ({kind_of(value)})" if type(value) in _SHOWN else short(value)


def said(error: BaseException) -> str:
    """``KeyError('name')``: its class, and those of its first arguments that can be shown."""
    return f"{kind_of(error)}({', '.join(map(short, _args_of(error)[:3]))})"
