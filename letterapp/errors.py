"""The one error a caller may see.

Responsible for: `LetterError`, what it carries, how it is pickled. Not responsible for: when it is raised (the rooms
decide), text of a particular failure, what no text may hold (`_text`).
"""

from __future__ import annotations

from ._runtime.lazy_module import LazyModule
from ._text import clean, without_keys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing
else:
    typing = LazyModule("typing")  # as in `_client`


class LetterError(Exception):
    """A call was wrong, a request failed, or events were given up.

    Raised by constructors, by calls with a wrong argument and by `Letter.send`; handed to ``on_error`` for everything
    that happens to an event after its call returned. It can be pickled and sent to another process.

    Its text is one printable line of at most 300 characters, whatever a server, a proxy or a value had to say. It holds
    no ``user:password@`` and, as its attributes, none of the API keys that this process has.

    Attributes:
        status: HTTP status of the API's answer, or None when there was none.
        body: text of the answer (at most 64 KiB), or None.
        code: ``error.code`` of the API's answer, or None.
        reason: ``error.reason`` of the API's answer, or None.
        cause: of what ``on_error`` gets: why events were given up, one of the keys of ``Letter.stats()["lost"]``, or
            ``"degraded"`` for what is no loss, but trouble that may become one. None for what is raised.
        lost: how many lost events this report stands for.
    """

    def __init__(
        self,
        message: str,
        status: typing.Optional[int] = None,
        body: typing.Optional[str] = None,
        code: typing.Optional[str] = None,
        reason: typing.Optional[str] = None,
        *,
        cause: typing.Optional[str] = None,
        lost: typing.Optional[int] = None,
        events: typing.Sequence[typing.Union[bytes, typing.Dict[str, typing.Any]]] = (),
    ) -> None:
        super().__init__(clean(message))
        self.status = status
        self.body = None if body is None else without_keys(body)
        self.code = None if code is None else clean(code)
        self.reason = None if reason is None else clean(reason)
        self.cause = cause
        self.lost = len(events) if lost is None else lost
        self._events = tuple(events)

    @property
    def events(self) -> typing.List[typing.Dict[str, typing.Any]]:
        """The events that were given up, as dicts in the wire's form, so that an application can keep them.

        Each has its ``messageId`` and ``timestamp``, so it can be sent again as the same event: docs/guarantees.md
        shows how. A report of a full queue carries the first 100 of its burst. An event that could not be encoded
        (``cause`` is ``"invalid"``) holds the very values that it was called with, under the wire's names. With the
        cause ``degraded`` they are what a relay still has when their process ends, and may give up.
        What a relay's client or a spool's file had in the place of an event, and is none, is left out.
        Decoded anew at each access; safe from any thread.
        """
        events = (_decoded(event) if isinstance(event, bytes) else event for event in self._events)
        return [event for event in events if isinstance(event, dict)]

    def __reduce__(self) -> typing.Tuple[typing.Any, ...]:
        return (_rebuild, (str(self), {**self.__dict__, "_events": tuple(filter(_is_picklable, self._events))}))


def encoded_events(error: LetterError) -> typing.Sequence[typing.Union[bytes, typing.Dict[str, typing.Any]]]:
    """``error.events`` as they are kept: each encoded, or as it was called where that failed."""
    return error._events


def _decoded(event: bytes) -> typing.Any:
    from json import loads  # not at import: it costs more than the whole package

    try:
        return loads(event)
    except (ValueError, RecursionError):
        return None


def _rebuild(message: str, state: dict[str, typing.Any]) -> LetterError:
    error = LetterError(message)
    error.__dict__.update(state)
    return error


def _is_picklable(event: bytes | dict[str, typing.Any]) -> bool:
    # An event that was refused may hold anything the application put there, a lock or a socket too. The report of it
    # must cross to another process all the same; what cannot cross stays behind.
    if isinstance(event, bytes):
        return True
    from pickle import dumps

    try:
        dumps(event)
    except Exception:  # whatever a foreign __reduce__ raises
        return False
    return True
