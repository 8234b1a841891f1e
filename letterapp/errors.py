"""The one exception of this package.

Responsible for: `LetterError`, its attributes, how it is pickled. Not responsible for: when it is raised and what it
says (the other modules), removing secrets from texts (`_text`).
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
    """An argument is invalid, a request failed, or events were lost.

    Raised by constructors, by calls with an invalid argument and by `Letter.send`. Passed to ``on_error`` for whatever
    happens to an event after its call has returned. It can be pickled and sent to another process, and read in any
    thread.

    Its text is one line of at most 300 printable characters, whatever a server, a proxy or a value contained. The text
    contains no ``user:password@``, and neither the text nor the attributes contain an API key of this process.

    Attributes:
        status: The HTTP status of the API's response, or None if there was none.
        body: The text of the response, at most 64 KiB, or None.
        code: ``error.code`` of the response, or None.
        reason: ``error.reason`` of the response, or None.
        cause: In ``on_error``, why events were lost: one of the keys of ``Letter.stats()["lost"]``, or ``"degraded"``
            for a problem that may lead to a loss. None if the error was raised.
        lost: The number of events that are lost, according to this report.
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
        """The lost events as dicts, with the names that the API uses, so that an application can store them.

        Each has its ``messageId`` and ``timestamp``, so it can be sent again as the same event: docs/guarantees.md
        shows how. The report of a full queue has only the first 100 events that were dropped. An event that could not
        be encoded (the ``cause`` is ``"invalid"``) has the values that were passed to the call. If the ``cause`` is
        ``"degraded"``, they are not lost: a relay still has them at the end of their process, and may lose them.
        Data from a relay's client or a spool file that is not an event is left out.
        Decoded at each access. Safe in any thread.
        """
        events = (_decoded(event) if isinstance(event, bytes) else event for event in self._events)
        return [event for event in events if isinstance(event, dict)]

    def __reduce__(self) -> typing.Tuple[typing.Any, ...]:
        return (_rebuild, (str(self), {**self.__dict__, "_events": tuple(filter(_is_picklable, self._events))}))


def encoded_events(error: LetterError) -> typing.Sequence[typing.Union[bytes, typing.Dict[str, typing.Any]]]:
    """``error.events`` as they are stored: encoded, or the arguments of the call if encoding failed."""
    return error._events


def _decoded(event: bytes) -> typing.Any:
    from json import loads  # not at import time: it takes longer than the whole package

    try:
        return loads(event)
    except (ValueError, RecursionError):
        return None


def _rebuild(message: str, state: dict[str, typing.Any]) -> LetterError:
    error = LetterError(message)
    error.__dict__.update(state)
    return error


def _is_picklable(event: bytes | dict[str, typing.Any]) -> bool:
    # An event that could not be encoded may contain anything, such as a lock or a socket. The report must be picklable
    # all the same, so such an event is left out.
    if isinstance(event, bytes):
        return True
    from pickle import dumps

    try:
        dumps(event)
    except Exception:  # whatever a foreign __reduce__ raises
        return False
    return True
