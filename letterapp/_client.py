"""`Letter`, the public API: names, arguments, defaults.

Responsible for: the methods of `Letter`, and the one attribute that holds all state of a process. Not responsible for:
encoding (`_encoding`), queueing, sending and forks (`_delivery`).
"""

from __future__ import annotations

import os

from ._config import DEFAULT_BASE_URL, DEFAULT_BATCH_BYTES, FixedOptions, Settings, seconds
from ._delivery import exit_signals, shutdown
from ._delivery.base import Delivery
from ._delivery_factory import create_delivery
from ._email import post_mail
from ._encoding.events import Encoder
from ._encoding.json_text import Unencodable, encode, fastest_encoder
from ._reporter import Reporter
from ._runtime.asyncio_thread import in_thread
from ._runtime.lazy_module import LazyModule
from ._text import concealed
from .errors import LetterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import datetime
    import ssl
    import typing
    import uuid

    Timestamp = typing.Union[datetime.datetime, datetime.date, str, None]
    MessageId = typing.Union[str, uuid.UUID, None]
    Path = typing.Union[str, os.PathLike[str]]
else:
    # Names that the annotations use, for `typing.get_type_hints`, in a form that Python 3.8 can evaluate too.
    datetime, ssl, typing, uuid = map(LazyModule, ("datetime", "ssl", "typing", "uuid"))
    Timestamp = "typing.Union[datetime.datetime, datetime.date, str, None]"
    MessageId = "typing.Union[str, uuid.UUID, None]"
    Path = "typing.Union[str, os.PathLike]"


class Letter(FixedOptions):
    """A client of letter.app's ingestion API.

    `identify`, `group` and `track` queue an event and return within microseconds. A background thread of this process,
    which the first event starts, delivers the events in batches.

    Thread safety: any thread, signal handler and `on_error` callback may call any method. Fork safety: a client may be
    used in a forked child; events that wait in the parent are delivered by the parent, and the child starts with an
    empty queue. If a process is killed, the events that it leaves are delivered by another process of its family, that
    is, of those that were forked since the client was created. Pickling: a client can be pickled and carries all of
    its options, including the API key. Options are fixed: setting one as an attribute raises `AttributeError`.

    Args:
        api_key: The API key. None reads the environment variable ``LETTER_API_KEY``.
        base_url: The URL of the API. Default: the environment variable ``LETTER_BASE_URL``, else letter.app.
        flush_at: Number of waiting events at which all of them are sent without further delay, in requests of at most
            100 events and `max_batch_bytes`.
        flush_interval: Maximum batching delay, in seconds.
        max_retries: Retries after the first attempt, for a request that got a 429, a 408, a 5xx or no response. None
            retries as long as the queue has room: no event is lost during an outage until `overflow` applies.
        timeout: Maximum total time of one request, in seconds.
        on_error: Called with a `LetterError` for each event or batch that is lost, in the thread that noticed the loss.
            That is usually the thread that sends, which holds the sending lock meanwhile: nothing is sent until the
            callback returns, so slow work belongs in another thread. The callback may use the client without a
            deadlock: `track` queues its event, but `flush` and `close` return False at once if they would have to wait
            for the thread that they run in. If an event that it tracks is lost, that is printed, and not reported to
            it. None prints one line to stderr.
        max_queue_bytes: Maximum size of the queue, in bytes of encoded events.
        max_queue_events: Maximum number of events in the queue.
        overflow: What happens when the queue is full: ``"drop_newest"``, ``"drop_oldest"``, or ``"block"``, which makes
            the call wait up to `timeout` seconds (never in a thread that runs an asyncio loop) and then drops the
            newest event.
        max_batch_bytes: Maximum size of a request's body, and therefore of one event, in bytes.
        exit_timeout: Maximum time of one `flush`, one `close` or the end of the process, in seconds.
        before_send: Called with each event as a dict, with the names that the API uses. Returns the event, changed or
            not, or None to drop it. Runs in the call.
        default: As in `json.dumps`: called with each value that JSON cannot represent and that no rule of
            docs/configuration.md covers; returns the value to encode instead, for example ``default=str``. Runs in the
            call, and in `send`. If it raises, that event is lost and reported.
        enabled: False makes every call do nothing; no API key is needed. Such a client takes a few kilobytes.
        ssl_context: An `ssl.SSLContext`, or a function that creates one in the process that uses it (needed for a
            client that is pickled, and under gevent). The default verifies against the system's certificates.
        exit_signals: Signals that send waiting events before the signal's previous action. Only the main thread can
            install handlers: if another thread creates the client, they are installed at the main thread's first event.
        send_on_os_exit: Send waiting events if a process that has used its client calls `os._exit`, as forked children
            do in RQ or `socketserver.ForkingMixIn`. To notice that, `os._exit` is replaced at the first event. False
            leaves it unchanged.
        spool: A directory for files in which events wait, instead of in memory. It is created if it does not exist.
            If all processes are killed, the events are sent by the next process of this user that creates a client
            with the same directory and API key, on a thread that starts at once. In gunicorn, and in uWSGI's master,
            the first event of a worker starts that thread.
        spool_sync: True makes each call return when its event would survive a power failure. Takes milliseconds.
        spool_max_bytes: Maximum size of all files of this API key in `spool`, in bytes. A process for whose file there
            is no room keeps its events in memory; with ``overflow="drop_oldest"`` it replaces the oldest file that an
            ended process has left.
        relay: True: all processes of this user with the same API key and options send their events to one sender
            process. The first of them starts it, which takes the constructor a fraction of a second, and it ends after
            the last of them. A path: the socket of a relay that is run separately (``python -m letterapp relay``).
            Events that the relay does not accept within a millisecond are sent by the process itself.
            A queue (``queue`` of a `letterapp.relay.SenderManager`, ``multiprocessing.Manager().Queue()``,
            ``multiprocessing.Queue()``): the background thread puts batches into it, and calls never touch it. With a
            `SenderManager`, which has them, `api_key` and `base_url` may be left out. See docs/relay.md.
            A Redis URL (``redis://host:6379/0``, ``rediss://``, ``unix://``, ``redis+sentinel://``): the background
            thread appends batches to a stream there, which ``python -m letterapp relay --from URL`` delivers. An event
            counts as delivered when it is in the stream. Needs ``letterapp[redis]``. See docs/many-hosts.md.
        relay_user: A user name or a user ID that may run the relay at the path in `relay`, and own the directories
            that lead to its socket. This user and root always may.

    Raises:
        LetterError: An option is missing or invalid, or the relay refuses this client. If a relay cannot be started,
            that is reported to `on_error`.
    """

    def __init__(
        self,
        api_key: typing.Optional[str] = None,
        base_url: str = DEFAULT_BASE_URL,
        flush_at: int = 50,
        flush_interval: float = 0.1,
        max_retries: typing.Optional[int] = 3,
        timeout: float = 10.0,
        on_error: typing.Optional[typing.Callable[[LetterError], object]] = None,
        *,
        max_queue_bytes: int = 4_194_304,
        max_queue_events: int = 10_000,
        overflow: str = "drop_newest",
        max_batch_bytes: int = DEFAULT_BATCH_BYTES,
        exit_timeout: float = 5.0,
        before_send: typing.Optional[
            typing.Callable[[typing.Dict[str, typing.Any]], typing.Optional[typing.Dict[str, typing.Any]]]
        ] = None,
        default: typing.Optional[typing.Callable[[typing.Any], typing.Any]] = None,
        enabled: bool = True,
        ssl_context: typing.Union[ssl.SSLContext, typing.Callable[[], ssl.SSLContext], None] = None,
        exit_signals: typing.Iterable[int] = (),
        send_on_os_exit: bool = True,
        spool: typing.Optional[Path] = None,
        spool_sync: bool = False,
        spool_max_bytes: int = 268_435_456,
        relay: typing.Union[bool, Path, typing.Any] = False,
        relay_user: typing.Union[str, int, None] = None,
    ) -> None:
        if shutdown.is_finalizing():
            api_key = None  # crash reporters show a frame's variables
            raise LetterError(shutdown.TORN_DOWN)
        api_key = concealed(api_key)
        self._open(
            Settings(
                api_key=api_key,
                base_url=base_url,
                flush_at=flush_at,
                flush_interval=flush_interval,
                max_retries=max_retries,
                timeout=timeout,
                on_error=on_error,
                max_queue_bytes=max_queue_bytes,
                max_queue_events=max_queue_events,
                overflow=overflow,
                max_batch_bytes=max_batch_bytes,
                exit_timeout=exit_timeout,
                before_send=before_send,
                default=default,
                enabled=enabled,
                ssl_context=ssl_context,
                exit_signals=exit_signals,
                send_on_os_exit=send_on_os_exit,
                spool=spool,
                spool_sync=spool_sync,
                spool_max_bytes=spool_max_bytes,
                relay=relay,
                relay_user=relay_user,
            )
        )

    def _open(self, settings: Settings) -> None:
        self._settings = settings
        if settings.enabled and settings.before_send is not None:
            # Not in a call: if another thread forked during the import, the child would keep a partial module.
            import json  # noqa: F401
        plain = fastest_encoder() if settings.enabled else encode
        self._encoder = Encoder(settings.max_batch_bytes, settings.before_send, settings.default, plain)
        # All state of a process. In a forked child `_here` replaces it in one assignment.
        self._delivery: Delivery = create_delivery(settings)
        if settings.enabled:
            shutdown.register(self._delivery)
            if settings.exit_signals:
                exit_signals.install(settings.exit_signals, Reporter(settings.on_error))
            self._delivery.start_recovery()

    def _here(self) -> Delivery:
        """The delivery of this process; a forked child creates its own here. Takes no lock."""
        delivery = self._delivery
        if delivery.owner.pid != os.getpid():
            delivery = self._delivery = delivery.for_child()
            if self._settings.enabled:
                shutdown.register(delivery)
        return delivery

    # Events. These methods usually return within microseconds, and raise only if an argument is invalid.

    def identify(
        self,
        user_id: str,
        email: typing.Optional[str] = None,
        traits: typing.Optional[typing.Mapping[str, typing.Any]] = None,
        timezone: typing.Optional[str] = None,
        timestamp: Timestamp = None,
        message_id: MessageId = None,
    ) -> None:
        """Queue what is known about a user. See `track` for the other arguments, and when it may block.

        Args:
            user_id: The user's ID in the application; not empty.
            email: The user's email address.
            traits: Attributes of the user; values as in `track`.
            timezone: The user's time zone, for example ``"Europe/Berlin"``.

        Raises:
            LetterError: ``user_id`` is missing, or an argument has a wrong type.
        """
        if self._settings.enabled:
            try:
                event = self._encoder.identify(user_id, email, traits, timezone, timestamp, message_id)
            except Unencodable as problem:
                self._refuse(problem, type="identify", userId=user_id, email=email, traits=traits, timezone=timezone)
            else:
                self._put(event)

    def group(
        self,
        user_id: str,
        account_id: str,
        name: typing.Optional[str] = None,
        traits: typing.Optional[typing.Mapping[str, typing.Any]] = None,
        timestamp: Timestamp = None,
        message_id: MessageId = None,
    ) -> None:
        """Queue that a user belongs to an account. See `track` for the other arguments, and when it may block.

        Args:
            user_id: The user's ID in the application; not empty.
            account_id: The account's ID in the application; not empty.
            name: The account's name.
            traits: Attributes of the account; values as in `track`.

        Raises:
            LetterError: ``user_id`` or ``account_id`` is missing, or an argument has a wrong type.
        """
        if self._settings.enabled:
            try:
                event = self._encoder.group(user_id, account_id, name, traits, timestamp, message_id)
            except Unencodable as problem:
                self._refuse(problem, type="group", userId=user_id, accountId=account_id, name=name, traits=traits)
            else:
                self._put(event)

    def track(
        self,
        user_id: str,
        event: str,
        properties: typing.Optional[typing.Mapping[str, typing.Any]] = None,
        timestamp: Timestamp = None,
        message_id: MessageId = None,
    ) -> None:
        """Queue something that a user did.

        The event is encoded in the call, so later changes to ``properties`` have no effect. If JSON cannot represent a
        value in it, only this event is lost: the loss is reported to `on_error` with the path of the value, and the
        call returns.

        Args:
            user_id: The user's ID in the application; not empty.
            event: The name of the event; not empty.
            properties: Attributes of the event; docs/configuration.md lists the types that are converted.
            timestamp: When it happened: a datetime (a naive one is local time), a date, or a string, which is sent
                unchanged. None is the time of the call.
            message_id: The ID by which the API recognises repeated deliveries; None is a random UUID (version 4, RFC
                9562). `letterapp.message_id` derives one, for an event that may be tracked again.

        Raises:
            LetterError: ``user_id`` or ``event`` is missing, or an argument has a wrong type.

        A call does no I/O and holds one lock for microseconds. It blocks only when the queue is full and
        ``overflow="block"``, while the process is ending, and where no thread can run (uWSGI without threads). In a
        thread that runs an asyncio loop it does not block on a full queue, nor after `exit_signals` have sent what
        waited. With `spool_sync` every call waits for the disk, in such a thread too.
        """
        if self._settings.enabled:
            try:
                data = self._encoder.track(user_id, event, properties, timestamp, message_id)
            except Unencodable as problem:
                self._refuse(problem, type="track", userId=user_id, event=event, properties=properties)
            else:
                self._put(data)

    def _put(self, event: typing.Optional[bytes]) -> None:
        delivery = self._delivery
        if delivery.owner.pid != os.getpid():
            delivery = self._here()
        if event is not None:
            if delivery.reporter.has_called:
                delivery.reporter.note(event)
            delivery.put(event)
        else:
            delivery.refuse("filtered")  # by the application's own before_send

    def _refuse(self, problem: Unencodable, **event: typing.Any) -> None:
        event.update(timestamp=problem.timestamp, messageId=problem.message_id)
        given = {name: value for name, value in event.items() if value is not None}
        error = LetterError(f"{event['type']}: {problem}; the event is lost", cause="invalid", events=[given])
        self._here().refuse("invalid", error)

    # Emails.

    def send(
        self,
        to: str,
        subject: str,
        html: typing.Optional[str] = None,
        text: typing.Optional[str] = None,
        from_email: typing.Optional[str] = None,
        from_name: typing.Optional[str] = None,
        reply_to: typing.Optional[str] = None,
        headers: typing.Optional[typing.Mapping[str, str]] = None,
        tag: typing.Optional[str] = None,
        metadata: typing.Optional[typing.Mapping[str, typing.Any]] = None,
        idempotency_key: typing.Optional[str] = None,
    ) -> typing.Dict[str, typing.Any]:
        """Send one transactional email now, without queueing it.

        Blocks for up to `timeout` seconds per attempt, and for the waits between attempts. Only a call with an
        ``idempotency_key`` is retried: `max_retries` times, or 3 times if that is None. Works after `close` too.

        Args:
            to: The recipient's address.
            subject: The subject.
            html: The body as HTML. This or ``text`` is required.
            text: The body as plain text.
            from_email: The sender's address. The API chooses it if it is omitted.
            from_name: The sender's name.
            reply_to: The address for replies.
            headers: Further headers of the email.
            tag: A label of the email.
            metadata: Data that the API stores with the email; values as in `track`.
            idempotency_key: The key by which the API recognises a repeated request, so that it sends one email.

        Returns:
            The API's response (``id``, ``messageId``, ``status``, ``replayed``); ``{}`` with ``enabled=False``.

        Raises:
            LetterError: An argument is missing, JSON cannot represent it, the API refused the request (see ``status``
                and ``code``), or there was no response.
        """
        if not self._settings.enabled:
            return {}
        if shutdown.is_finalizing():
            raise LetterError(shutdown.TORN_DOWN)
        return post_mail(
            self._settings,
            to=to,
            subject=subject,
            html=html,
            text=text,
            from_email=from_email,
            from_name=from_name,
            reply_to=reply_to,
            headers=headers,
            tag=tag,
            metadata=metadata,
            idempotency_key=idempotency_key,
        )

    # Settling.

    def flush(self, timeout: typing.Optional[float] = None) -> bool:
        """Send what this process has queued, and wait until it is settled.

        Blocks for at most ``timeout`` seconds; None is `exit_timeout`. Afterwards an idle client has no thread, so a
        fork that follows finds a single-threaded process.

        Returns:
            True if each event that was queued before the call has been delivered or reported as lost (to `on_error`,
            and in ``stats()["lost"]``). False if time ran out, in which case the rest stays in the queue, and in an
            `on_error` that runs on the sending thread, which cannot wait for itself.

        Raises:
            LetterError: ``timeout`` is not a number of seconds.
        """
        return self._here().flush(self._seconds(timeout))

    def close(self, timeout: typing.Optional[float] = None) -> bool:
        """Refuse further events in this process, send the waiting ones, and end the thread. May be called repeatedly.

        Blocks for at most ``timeout`` seconds; None is `exit_timeout`. What has not been delivered by then is given up
        and reported; with a `spool` it stays there, and sending continues.

        Returns:
            True if every event of this process was settled in time: delivered, or reported as lost, for example because
            the API refused it. False if time ran out; if events were given up, every later `close` returns False too.
            In an `on_error` on the sending thread it returns False at once, and the waiting events are sent later.

        Raises:
            LetterError: ``timeout`` is not a number of seconds.
        """
        return self._here().close(self._seconds(timeout))

    async def aflush(self, timeout: typing.Optional[float] = None) -> bool:
        """`flush` for asyncio: waits on a separate thread, and so blocks neither the event loop nor its executor.

        ``timeout``, in seconds, counts from this call. If the task is cancelled, it returns at once, and the flush
        continues. The result and the errors are those of `flush`. Where no thread can run (uWSGI without threads), it
        blocks the loop.
        """
        return await in_thread(self.flush, self._seconds(timeout))

    async def aclose(self, timeout: typing.Optional[float] = None) -> bool:
        """`close` for asyncio: waits on a separate thread, and so blocks neither the event loop nor its executor.

        ``timeout``, in seconds, counts from this call. If the task is cancelled, it returns at once, and the client is
        still closed. The result and the errors are those of `close`. Where no thread can run (uWSGI without threads),
        it blocks the loop.
        """
        return await in_thread(self.close, self._seconds(timeout))

    def stats(self) -> typing.Dict[str, typing.Any]:
        """The counters of this client in this process. Always accepted = delivered + lost + waiting.

        A forked child counts from zero. Any thread may call. Does not block.

        Returns:
            A dict with these keys:

            - ``accepted``: events whose call has returned in this process, plus ``adopted``
            - ``adopted``: events that were recovered from processes that have ended
            - ``delivered``: events that the API has accepted
            - ``retried``: events in repeated requests
            - ``lost``: a dict of the number of lost events by cause (docs/guarantees.md lists the causes)
            - ``waiting``, ``waiting_bytes``: events in the queue or in flight, and their size
            - ``relayed``: events that a relay or a queue has accepted
            - ``mode``: ``"thread"``, ``"inline"`` if the calls themselves send, ``"relay"`` while a relay takes events
            - ``memory``: where events wait: ``"shared"`` with the family, ``"spool"``, or ``"private"`` to this process
            - ``pid``: this process's ID
        """
        return self._here().stats()

    def _seconds(self, timeout: typing.Optional[float]) -> float:
        if timeout is None:
            return self._settings.exit_timeout
        return seconds("timeout", timeout)

    # Special methods.

    def __enter__(self) -> Letter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    async def __aenter__(self) -> Letter:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        # Loggers, debuggers and crash reporters call this at any moment: during `__init__`, in a call, after a fork.
        delivery: Delivery | None = self.__dict__.get("_delivery")
        if delivery is None:
            return "<Letter, not initialised>"
        if delivery.owner.pid != os.getpid():
            return f"<Letter not used so far, pid={os.getpid()}>"
        waiting, delivered, lost = delivery.quick_counts()
        return f"<Letter waiting={waiting:,} delivered={delivered:,} lost={lost:,} pid={delivery.owner.pid}>"

    def __reduce__(self) -> typing.Tuple[typing.Any, ...]:
        context = self._settings.ssl_context
        if context is not None and not callable(context):
            raise LetterError(
                "an ssl.SSLContext cannot be pickled: set ssl_context to a module-level function that returns one"
            )
        return (_unpickled, (self._settings,))


def settings_of(**given: typing.Any) -> Settings:
    """``given`` and the defaults of `Letter`, as `Settings`. For the processes that send for others."""
    import inspect

    given = {name: concealed(value) if name == "api_key" else value for name, value in given.items()}
    parameters = inspect.signature(Letter).parameters.values()
    return Settings(**{**{one.name: one.default for one in parameters}, **given})


def _unpickled(settings: Settings) -> Letter:
    letter = Letter.__new__(Letter)
    letter._open(settings)
    return letter
