"""`Letter`: names, arguments, defaults.

Responsible for: the public face and the one attribute that holds all state of a process. Not responsible for: encoding,
queueing, sending, forks; each has its room.
"""

from __future__ import annotations

import os

from ._config import DEFAULT_BASE_URL, FixedOptions, Settings, seconds
from ._delivery import shutdown
from ._delivery.base import Delivery, NullDelivery
from ._delivery.sender import Sender
from ._email import post_mail
from ._encoding.events import Encoder
from ._encoding.json_text import Unencodable, encode, fastest_encoder
from ._reporter import Reporter
from ._runtime import servers
from ._runtime.clock import monotonic
from ._runtime.lazy_module import LazyModule
from ._runtime.signal_errors import reraise_signal_error
from ._text import concealed
from .errors import LetterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import datetime
    import ssl
    import types
    import typing
    import uuid

    Timestamp = typing.Union[datetime.datetime, datetime.date, str, None]
    MessageId = typing.Union[str, uuid.UUID, None]
    Path = typing.Union[str, os.PathLike[str]]
else:
    # What the annotations name, for `typing.get_type_hints`. In the form that it understands in Python 3.8, too.
    datetime, ssl, types, typing, uuid = map(LazyModule, ("datetime", "ssl", "types", "typing", "uuid"))
    Timestamp = "typing.Union[datetime.datetime, datetime.date, str, None]"
    MessageId = "typing.Union[str, uuid.UUID, None]"
    Path = "typing.Union[str, os.PathLike]"


class Letter(FixedOptions):
    """A client of letter.app's ingestion API.

    `identify`, `group` and `track` queue an event and return in microseconds; a background thread of this process,
    started at the first event, delivers batches. All methods may be called from any thread, from signal handlers and
    from `on_error`. After a fork the parent's waiting events stay the parent's, and the child's client starts empty.
    What a process leaves that is killed is delivered by another one that was forked since the client was made.
    A client can be pickled: the other side gets one with the same options, the key included. Options cannot be changed
    afterwards: to set one as an attribute is an `AttributeError`.

    Args:
        api_key: The API key. None reads the variable ``LETTER_API_KEY``.
        base_url: Where the API is. When not given, the variable ``LETTER_BASE_URL``, else letter.app.
        flush_at: When so many events wait, all that wait leave at once, in requests of at most 100 events and
            `max_batch_bytes`.
        flush_interval: Seconds that an event waits for company.
        max_retries: Tries after the first, for requests that met a 429, a 408, a 5xx or no answer. None tries as long
            as the queue has room: an API that is away costs nothing until `overflow` sets in.
        timeout: Seconds that one request may take as a whole.
        on_error: Called with a `LetterError` for each event or batch that is lost, on whichever thread found out,
            outside of all locks; mostly the one that sends, which sends nothing until it returns, so leave what takes
            long to another thread. May call the client; what it tracks is not reported to it if that is lost in its
            turn, but printed. The default prints one line to stderr.
        max_queue_bytes: Bound of the queue in bytes of encoded events.
        max_queue_events: Bound of the queue in events.
        overflow: What gives way at a bound: ``"drop_newest"``, ``"drop_oldest"``, or ``"block"``, which makes the
            call wait up to `timeout` seconds (never in a thread that runs an asyncio loop) and then drops the newest.
        max_batch_bytes: Bound of one request's body, and so of one event.
        exit_timeout: Seconds that one `flush`, one `close` or the end of the process may take.
        before_send: Gets each event as a dict in the wire's form; returns it, changed or not, or None to drop it.
            Runs in the call.
        default: As in `json.dumps`: gets each value that JSON cannot carry, and that no rule of docs/configuration.md
            covers, and returns one to write in its place; ``str``, for instance. Runs in the call, in `send` too. If
            it raises, that event is lost, as with a value that is refused.
        enabled: False makes every call do nothing, without a key too. Such a client costs some kilobytes.
        ssl_context: An `ssl.SSLContext`, or a function that makes one in the process that uses it (needed for a client
            that is pickled, and under gevent). The default verifies against the system's certificates.
        exit_signals: Signals on which to send what waits before doing what the signal did before. Installed by the
            main thread: where the client is made on another one, at the main thread's first event.
        send_on_os_exit: Send what waits when this process, having used its client, calls `os._exit`, as forked
            children do in RQ or `socketserver.ForkingMixIn`. For that `os._exit` is replaced at the first event.
            False leaves it alone.
        spool: A directory, made if missing, in whose files events wait instead of in memory. What is there when all
            processes are killed is sent by the next one of this user that makes a client with it and this key, on a
            thread that starts at once. In gunicorn, and in uWSGI's master, the first event of a worker starts it.
        spool_sync: True makes a call return when its event would survive a loss of power too. Milliseconds a call.
        spool_max_bytes: Bound of this key's files in `spool`. A process that finds no room there uses memory; with
            ``overflow="drop_oldest"`` the oldest file of an ended process gives way.
        relay: True has all processes of this user with this key and these options hand their events to one sender
            process, which the first of them starts (constructing then takes a fraction of a second) and which ends
            after the last. A path is the socket of a relay that somebody else keeps (``python -m letterapp relay``).
            What the relay does not take within a millisecond goes the process's own way.
            A queue (`letterapp.relay.SenderManager`'s ``queue``, ``multiprocessing.Manager().Queue()``,
            ``multiprocessing.Queue()``) gets batches from the background sender; a call never touches it. `api_key`
            and `base_url` may be left out with a `SenderManager`, which has them. See docs/relay.md.
        relay_user: A user's name or number: the relay at the path in `relay` may be that user's too. Else it must be
            this user's or root's, and so must every directory on the way to its socket.

    Raises:
        LetterError: An option is missing or wrong, or the relay refuses. That one cannot be started
            is told to `on_error`.
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
        max_batch_bytes: int = 500_000,
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
            # Now, rather than in a call, where a fork in another thread could tear the import.
            import json  # noqa: F401
        self._encoder = Encoder(
            settings.max_batch_bytes,
            settings.before_send,
            settings.default,
            fastest_encoder() if settings.enabled else encode,
        )
        # All state of a process. In a forked child `_here` replaces it whole.
        self._delivery: Delivery = _carrier(settings)
        if settings.enabled:
            shutdown.register(self._delivery)
            if settings.exit_signals:
                shutdown.install_exit_signals(settings.exit_signals, Reporter(settings.on_error))
            self._delivery.start_recovery()

    def _here(self) -> Delivery:
        """The delivery of this process, which a fork may just have made. Takes no lock."""
        delivery = self._delivery
        if delivery.owner.pid != os.getpid():
            delivery = self._delivery = delivery.for_child()
            if self._settings.enabled:
                shutdown.register(delivery)
        return delivery

    # Events. They return in microseconds and raise only for arguments that can never be right.

    def identify(
        self,
        user_id: str,
        email: typing.Optional[str] = None,
        traits: typing.Optional[typing.Mapping[str, typing.Any]] = None,
        timezone: typing.Optional[str] = None,
        timestamp: Timestamp = None,
        message_id: MessageId = None,
    ) -> None:
        """Queue what is known of a user. See `track` for what is the same: time, identity, errors, blocking."""
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
        """Queue that a user belongs to an account. See `track` for what is the same."""
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

        The event is encoded in the call, so later changes to ``properties`` do not matter. A value in it that JSON
        cannot carry costs this event alone: it is reported to `on_error` with the path of the value, and the call
        returns.

        Args:
            timestamp: When it happened; the moment of the call if None. A naive datetime is local time.
            message_id: What the API tells repeated deliveries by; a random UUID if None.

        Raises:
            LetterError: ``user_id`` or ``event`` is missing, or an argument has a wrong type.

        Does no I/O and takes one short lock. It waits only with ``overflow="block"`` at a full queue, while the
        process is ending, and where no thread can run (uWSGI without threads). In a thread that runs an asyncio loop it
        does not wait for the first of these, nor after `exit_signals` have sent what waited. With `spool_sync` each
        call waits for the disk, there too.
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
        """Send one transactional email now; return the API's answer (``id``, ``messageId``, ``status``, ``replayed``).

        Not queued: it blocks for up to `timeout` seconds a try, and for the waits between tries. Only a call with an
        ``idempotency_key`` is tried again: `max_retries` times, 3 times if that is None. After `close` it still works.
        With ``enabled=False`` it returns ``{}``.

        Raises:
            LetterError: An argument is missing or not JSON, the API refused (``status``, ``code``), or no answer came.
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
        """Send what this process has queued, and wait for it: at most ``timeout`` seconds, `exit_timeout` if None.

        Returns True when nothing of what was queued before the call waits any longer: each event was delivered, or
        reported as lost (`on_error` and ``stats()["lost"]`` say which). False when time ran out (what is left goes on
        waiting), and in `on_error` on the sender's own thread, which cannot wait for itself.
        After it an idle client has no thread, so a fork that follows finds the process single-threaded.
        """
        return self._here().flush(self._seconds(timeout))

    def close(self, timeout: typing.Optional[float] = None) -> bool:
        """Refuse further events in this process, settle what waits, end the thread. May be called again.

        Blocks for at most ``timeout`` seconds, `exit_timeout` if None. What is not delivered by then is given up and
        reported; with a `spool` it stays there, and goes on being tried.

        Returns True when all that this process had queued was settled in time, as `flush` means it: an event that the
        API refused was reported, and is settled. False when time ran out, and so each later `close` of a client that
        has given events up. In `on_error` on the sender's own thread it is False at once; what waits is still
        sent then.
        """
        return self._here().close(self._seconds(timeout))

    async def aflush(self, timeout: typing.Optional[float] = None) -> bool:
        """`flush` for asyncio: waits on a thread of its own, so neither the loop nor its executor has to.

        ``timeout`` counts from this call. Cancelled, it returns at once, and the flush goes on without it.
        """
        return await _in_thread(self.flush, self._seconds(timeout))

    async def aclose(self, timeout: typing.Optional[float] = None) -> bool:
        """`close` for asyncio: waits on a thread of its own, so neither the loop nor its executor has to.

        ``timeout`` counts from this call. Cancelled, it returns at once, and the client is closed without it.
        """
        return await _in_thread(self.close, self._seconds(timeout))

    def stats(self) -> typing.Dict[str, typing.Any]:
        """Counters of this process's client: a dict that balances, accepted = delivered + lost + waiting.

        ``accepted``: events whose call returned here, and those that were taken over; ``adopted``: the latter, which
        an ended process had left; ``delivered``; ``retried``: events in repeated requests; ``lost``: a dict by cause
        (docs/guarantees.md names them); ``waiting`` and ``waiting_bytes``: in the queue or on the wire; ``pid``;
        ``mode``: ``"thread"``, ``"inline"`` where the calls send, or ``"relay"`` while a relay takes events;
        ``relayed``: events that one took; ``memory``, where events lie: ``"shared"`` with
        the family, ``"spool"``, or ``"private"``: they go with this process. A forked child counts from zero.
        """
        return self._here().stats()

    def _seconds(self, timeout: typing.Optional[float]) -> float:
        if timeout is None:
            return self._settings.exit_timeout
        return seconds("timeout", timeout)

    # Python's own.

    def __enter__(self) -> Letter:
        return self

    def __exit__(
        self,
        kind: typing.Optional[typing.Type[BaseException]],
        error: typing.Optional[BaseException],
        trace: typing.Optional[types.TracebackType],
    ) -> None:
        self.close()

    async def __aenter__(self) -> Letter:
        return self

    async def __aexit__(
        self,
        kind: typing.Optional[typing.Type[BaseException]],
        error: typing.Optional[BaseException],
        trace: typing.Optional[types.TracebackType],
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        # Loggers, debuggers and crash reporters ask anywhere: while it is made, in the middle of a call, after a fork.
        delivery: Delivery | None = self.__dict__.get("_delivery")
        if delivery is None:
            return "<Letter that has not been made>"
        if delivery.owner.pid != os.getpid():
            return f"<Letter not used so far, pid={os.getpid()}>"
        waiting, delivered, lost = delivery.quick_counts()
        return f"<Letter waiting={waiting:,} delivered={delivered:,} lost={lost:,} pid={delivery.owner.pid}>"

    def __reduce__(self) -> typing.Tuple[typing.Any, ...]:
        context = self._settings.ssl_context
        if context is not None and not callable(context):
            raise LetterError("ssl_context=SSLContext cannot be pickled: give a function of a module that makes one")
        return (_unpickled, (self._settings,))


def _carrier(settings: Settings) -> Delivery:
    if not settings.enabled:
        return NullDelivery(Reporter(settings.on_error), settings.exit_timeout)
    relay = settings.relay
    if not relay:
        return Sender(settings)
    # With modules that nobody else needs.
    if relay is True or isinstance(relay, str):
        try:
            from ._relay.delivery import RelayDelivery
        except OSError as problem:  # no descriptor to read a module by
            reraise_signal_error(problem)
            said = (
                f"relay: its modules cannot be loaded: {problem.strerror or problem}. This process sends its own events"
            )
            Reporter(settings.on_error)(LetterError(said, cause="degraded"))
            return Sender(settings)
        return RelayDelivery.start(settings)
    from ._relay.handover import Handover

    def handover(report: typing.Any, clock: typing.Any) -> Handover:
        return Handover(relay, settings.timeout, settings.exit_timeout, report, clock)

    return Sender(settings, handover=handover)


def settings_of(**given: typing.Any) -> Settings:
    """The options of a client as settings; the signature of `Letter` has the defaults. For what sends for clients."""
    import inspect

    given = {name: concealed(value) if name == "api_key" else value for name, value in given.items()}
    parameters = inspect.signature(Letter).parameters.values()
    return Settings(**{**{one.name: one.default for one in parameters}, **given})


def _unpickled(settings: Settings) -> Letter:
    letter = Letter.__new__(Letter)
    letter._open(settings)
    return letter


async def _in_thread(wait: typing.Callable[[float], bool], timeout: float) -> bool:
    # Not on the executor's threads: there are a few, which the application needs too, and the end of `asyncio.run`
    # waits for them, those of cancelled tasks included.
    import asyncio

    loop = asyncio.get_running_loop()
    answer: asyncio.Future[bool] = loop.create_future()
    deadline = monotonic() + timeout

    def settle(result: bool, problem: BaseException | None) -> None:
        if answer.done():
            return  # cancelled
        if problem is None:
            answer.set_result(result)
        else:
            answer.set_exception(problem)

    def run() -> None:
        result, problem = False, None
        try:
            result = wait(max(0.0, round(deadline - monotonic(), 2)))  # rounded for the report of what is given up
        except BaseException as raised:
            problem = raised
        try:
            loop.call_soon_threadsafe(settle, result, problem)
        except RuntimeError:
            pass  # the loop has been closed meanwhile

    if not servers.start_thread(run):
        return wait(timeout)  # as all else here, where no thread can run
    return await answer
