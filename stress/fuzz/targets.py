"""What is fuzzed: each target takes any bytes, and raises when the client broke a promise over them.

Responsible for: the ways in (a call, a spool's file, an answer, a client's lines) and what must hold afterwards. Not
responsible for: where the bytes come from. The real classes run, over real files and sockets; only threads are left
out, so that an input is the same each time.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
import threading
from binascii import crc32
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, ContextManager, Iterator

from letterapp import Letter, LetterError
from letterapp._client import settings_of
from letterapp._delivery.sender import Sender
from letterapp._relay import launcher, protocol
from letterapp._relay.client import RelayClient
from letterapp._relay_server.socket_server import RelayServer
from letterapp._runtime.clock import monotonic
from letterapp._runtime.condition import Condition
from letterapp._storage.backends import Backends
from letterapp._storage.memory import PrivateMemory
from letterapp._storage.queue import BoundedQueue
from letterapp._storage.recovery import OrphanRecovery, claim_ring
from letterapp._storage.ring import UNIT
from letterapp._storage.spool import _MAGIC, HEADER, WORDS_AT, Spool, _checksum, _head

from .values import Source, value

KEY, NOWHERE = "fuzz-key", "http://127.0.0.1:9"
SMALL = {"max_queue_bytes": 4000, "max_queue_events": 20, "max_batch_bytes": 2000}
STEPS = 5_000  # of a relay: an API that answers 413 has each batch of 100 split down to single events
PATIENCE = 10.0  # seconds: far above what an exchange takes
_EVENT = b'{"type":"track","userId":"u","messageId":"%d","event":"E","timestamp":"2026-01-01","properties":{}}'

Run = Callable[[bytes], None]


class Broken(Exception):
    """A promise that did not hold."""


def expect(holds: object, promise: str, *seen: object) -> None:
    if not holds:
        raise Broken(f"{promise}: {seen!r}" if seen else promise)


# Any Python value into a call.


@contextmanager
def call() -> Iterator[Run]:
    """Nothing but `LetterError` leaves a call, and what is queued is one line of JSON that a request has room for."""
    reports: list[LetterError] = []
    letter = Letter(KEY, NOWHERE, on_error=reports.append, flush_interval=1e6, flush_at=10_000)
    sender = letter._delivery
    assert isinstance(sender, Sender)
    sender._queue.replace_worker().started = True  # so no thread is started

    def run(data: bytes) -> None:
        source = Source(data)
        method = (letter.track, letter.identify, letter.group)[source.byte() % 3]
        arguments: list[Any] = ["user", "Event"] if method != letter.identify else ["user", "a@b.example"]
        odd = source.byte()  # which of the arguments
        given: dict[str, Any] = {}
        for number, name in enumerate(_OPTIONAL[method.__name__]):
            if number == 0 or odd >> number & 1:
                given[name] = value(source)
        for number in range(2):
            if odd >> (5 + number) & 1:
                arguments[number] = value(source)
        before = sender.stats()
        reports.clear()
        try:
            method(*arguments, **given)
        except LetterError as error:
            str(error), repr(error)
        after = sender.stats()
        for error in reports:
            str(error), repr(error), error.events
        expect(after["accepted"] - before["accepted"] <= 1, "one call is one event")
        for event in sender._queue.take(100, 1 << 30):
            expect(b"\n" not in event, "an event is one line", event)
            expect(len(event) <= 500_000, "an event fits into a request", len(event))
            said = json.loads(event.decode(), parse_constant=_no_constant)
            expect(isinstance(said.get("userId"), str) and isinstance(said.get("messageId"), str), "ids are text", said)
        sender._queue.settle()

    try:
        yield run
    finally:
        letter.close(0)


_OPTIONAL = {
    "track": ("properties", "timestamp", "message_id"),
    "identify": ("traits", "timestamp", "message_id", "timezone"),
    "group": ("traits", "timestamp", "message_id", "name"),
}


def _no_constant(name: str) -> Any:
    raise Broken(f"{name} is no JSON")


# Any bytes as a file of a spool.


def spool_file(data: bytes, key: bytes) -> bytes:
    """A file of ``data``: as it is, or with a header that is right as far as ``data`` says so."""
    source = Source(data)
    kind = source.byte()
    if not kind & 1:
        return source.rest()
    room, hand = (6352, 3616) if kind & 2 else (source.number(4), source.number(4))
    header = HEADER if kind & 4 else source.number(2)
    head = _head.pack(_MAGIC, 1 if kind & 8 else source.byte(), header, room, hand, key)
    words = source.take(3 * UNIT)
    if kind & 16:  # that point into the file, mostly
        numbers = [source.number(2) % (1000) for _ in range(4)]
        words = b"".join(number.to_bytes(4, "little") for number in numbers).ljust(3 * UNIT, b"\0")
    body = b""
    while not source.is_over() and len(body) < 20_000:
        if kind & 32:
            event = source.some()
            body += len(event).to_bytes(4, "little") + crc32(event).to_bytes(4, "little") + event
            body += bytes(-len(event) % UNIT)
        else:
            body += source.rest()
    start = head + _checksum.pack(crc32(head))
    start = (start.ljust(WORDS_AT, b"\0") + words).ljust(HEADER, b"\0")
    size = HEADER + room + hand
    whole = start + body
    return whole[:size].ljust(size if size < 100_000 else len(whole), b"\0") if kind & 64 else whole


@contextmanager
def spool() -> Iterator[Run]:
    """What cannot be read is set aside or left alone, and reported; nothing comes out of a client, nor grows a file."""
    place = Path(tempfile.mkdtemp(prefix="letterapp-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    settings = settings_of(api_key=KEY, spool=str(place), spool_max_bytes=1 << 20, **SMALL)
    reports: list[LetterError] = []
    names = Spool(settings, reports.append)

    def run(data: bytes) -> None:
        reports.clear()
        path = place / f"{names._prefix}{0:016x}.ring"
        content = spool_file(data, names._key)
        path.write_bytes(content)
        path.chmod(0o600)
        backends = Backends([Spool(settings, reports.append), PrivateMemory(settings)], reports.append)
        box = BoundedQueue(claim_ring(backends), 20, 4000, 5, False, monotonic)
        heir = OrphanRecovery(box, backends, reports.append, monotonic, Condition())
        expect(box.kind == "spool", "one odd file keeps no process from the spool", list(map(str, reports)))
        heir.recover()
        box.put(b"{}")
        taken: list[bytes] = []
        for _ in range(10_000):
            batch = box.take(100, 2000)
            if not batch:
                break
            taken += batch
            box.settle()
            heir.release_drained()
        heir.report_losses()
        expect(taken[-1:] == [b"{}"] and box.is_empty(), "all is sent that can be read, and ends", taken)
        expect(all(event in content for event in taken[:-1]), "nothing is sent that did not lie there", taken)
        for report in reports:
            expect(report.cause in ("damaged", "degraded"), "a report says what it is", report)
            expect("cannot be looked for" not in str(report), "no look fails", report)
        box.release_empty_slot()
        left = os.listdir(place)
        if path.name + ".damaged" in left or path.name in left:
            expect(reports, "what is not read is reported", left)
        expect(len(left) <= 1, "one file is left at the most", left)
        for name in left:
            os.unlink(place / name)

    try:
        yield run
    finally:
        shutil.rmtree(place)


# Any bytes as an answer.


class Puppet:
    """A server that says the same to whoever comes: ``answer``, after the first bytes of the question."""

    def __init__(self, listener: socket.socket) -> None:
        self.answer = b""
        self._listener = listener
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock:
                sock.settimeout(PATIENCE)
                try:
                    self._speak(sock)
                except OSError:
                    pass

    def _speak(self, sock: socket.socket) -> None:
        sock.recv(65_536)
        sock.sendall(self.answer)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65_536):
            pass  # else what it has not read resets the connection, and the answer with it

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(PATIENCE)


class KnownPuppet(Puppet):
    """The same of a relay, which has the key: ``answer`` comes after the challenge."""

    def __init__(self, listener: socket.socket) -> None:
        self.has_spoken, self.has_ended = threading.Event(), threading.Event()
        super().__init__(listener)

    def _speak(self, sock: socket.socket) -> None:
        self.has_spoken.clear()
        self.has_ended.clear()
        try:
            hello = sock.recv(protocol.LONGEST_GREETING)
            sock.sendall(protocol.Callee(KEY, NOWHERE).hear(hello[:-1])[0])
            sock.recv(65_536)
            sock.sendall(self.answer)
            self.has_spoken.set()
            while sock.recv(65_536):
                pass
        finally:
            self.has_ended.set()


def http_answer(data: bytes) -> bytes:
    """An answer of ``data``: as it is, or with the lines that most answers have."""
    source = Source(data)
    kind = source.byte()
    if not kind & 1:
        return source.rest()
    status = (200, 400, 422, 413, 429, 500, 301, 408, 100, 101, 103, 401, 204, 304)[source.byte() % 14]
    lines = [b"HTTP/1.1 %d %s" % (status, source.some() if kind & 2 else b"OK")]
    if kind & 4:
        lines.append(b"Retry-After: " + source.some())
    if kind & 8:
        lines.append(b"Transfer-Encoding: chunked")
    lines += [source.some() for _ in range(source.byte() % 4 if kind & 16 else 0)]
    body = source.rest()
    if kind & 32:
        lines.append(b"Content-Length: %d" % len(body))
    if kind & 64:
        body = b'{"error":{"code":' + body + b"}}"
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


@contextmanager
def api() -> Iterator[Run]:
    """Whatever the API answers, each event is delivered or reported, in a bounded number of tries; so is an email."""
    listener = socket.create_server(("127.0.0.1", 0))
    puppet = Puppet(listener)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    reports: list[LetterError] = []
    letter = Letter(KEY, url, on_error=reports.append, max_retries=1, flush_interval=0, timeout=PATIENCE)
    mails = Letter(KEY, url, enabled=True, max_retries=0, timeout=PATIENCE)
    now = [1000.0]

    def run(data: bytes) -> None:
        puppet.answer = http_answer(data[1:])
        reports.clear()
        if data[:1] > b"\xc0":
            try:
                expect(isinstance(mails.send("a@b.example", "S", text="x"), dict), "a mail's answer is a dict")
            except LetterError as error:
                str(error), repr(error)
            return
        sender = Sender(letter._settings, lambda: now[0], Backends([PrivateMemory(letter._settings)]))
        sender._queue.replace_worker().started = True
        for number in range(3):
            sender.put(_EVENT % number)
        for _ in range(50):
            wait = sender._batches.send_once()
            if wait == float("inf"):
                break
            expect(0 <= wait <= 400, "a wait is bounded", wait)
            now[0] += wait
        stats = sender.stats()
        lost = sum(report.lost for report in reports)
        expect(stats["waiting"] == 0, "it ends", stats)
        expect(stats["delivered"] + lost == 3, "each event is delivered or reported", stats, reports)
        for report in reports:
            str(report), repr(report), report.events
        sender._batches._transport.close()

    try:
        yield run
    finally:
        letter.close(0)
        mails.close(0)
        puppet.close()


class Answers:
    """A link to a relay, and the first exchange with one."""

    def __init__(self) -> None:
        self._place = tempfile.mkdtemp(prefix="letterapp-fuzz-")
        self._path, self._other = os.path.join(self._place, "relay"), os.path.join(self._place, "puppet")
        self._puppet = Puppet(_listening(self._other))
        self._known = KnownPuppet(_listening(self._path))

    def run(self, data: bytes) -> None:
        source = Source(data)
        kind = source.byte()
        said = source.rest()
        if kind & 2:  # a number and a report that are nearly right
            said = b"[%d]\n" % Source(said).number(1) + b'{"lost":' + said
        if kind & 4:
            said += b"\n"
        if kind & 1:
            self._ask(said)
            return
        self._known.answer = said
        link = RelayClient(lambda: self._path, lambda: protocol.Caller(KEY, NOWHERE, protocol.EVENTS), 100, 10_000)
        for number in range(3):
            link.send_event(_EVENT % number)  # which may have broken by what came with the challenge
        if link.is_connected():
            expect(self._known.has_spoken.wait(PATIENCE), "the puppet has spoken")
        link.read_acks()
        link.send_event(_EVENT % 3)
        link.read_acks()
        while link.next_returned() is not None:
            link.confirm_returned()
        self._balance(link)
        link.close()
        expect(self._known.has_ended.wait(PATIENCE), "the connection has ended")

    def _ask(self, said: bytes) -> None:
        self._puppet.answer = said
        try:
            sock, heard = launcher.ask(self._other, KEY, NOWHERE, protocol.LEASE)
        except (OSError, protocol.Refused):
            return
        sock.close()
        expect(isinstance(heard, dict), "an answer is a dict")

    @staticmethod
    def _balance(link: RelayClient) -> None:
        counts = link.counts()
        for error in link.take_errors():
            str(error), repr(error), error.events
        expect(0 <= counts.relayed <= 4, "no more is relayed than was handed over", vars(counts))
        expect(counts.delivered >= 0 and counts.waiting >= 0, "no count is below zero", vars(counts))
        expect(all(lost >= 0 for lost in counts.lost.values()), "no loss is below zero", vars(counts))
        expect(sum(counts.lost.values()) <= counts.relayed, "no more is lost than was relayed", vars(counts))

    def close(self) -> None:
        self._puppet.close()
        self._known.close()
        shutil.rmtree(self._place)


@contextmanager
def answer() -> Iterator[Run]:
    """Whatever a relay answers, an event is settled, or waits, or comes back; and no number of it unbalances ours."""
    answers = Answers()
    try:
        yield answers.run
    finally:
        answers.close()


def _listening(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen()
    return listener


# Any bytes as a client's lines to a relay.


class Lines:
    """A relay with two clients: an odd one, and one whose event must not suffer by it."""

    ANSWERS = (b"200 OK", b"400 Bad Request", b"500 Oops", b"413 Large")

    def __init__(self) -> None:
        self._place = tempfile.mkdtemp(prefix="letterapp-fuzz-")
        self._path = os.path.join(self._place, "relay")
        self._listener = _listening(self._path)
        self._listener.setblocking(False)
        api = socket.create_server(("127.0.0.1", 0))
        self._puppet = Puppet(api)
        url = f"http://127.0.0.1:{api.getsockname()[1]}"
        settings = settings_of(api_key=KEY, base_url=url, max_retries=0, flush_interval=0, timeout=PATIENCE)
        self._url = url
        self._logged: list[str] = []
        self._relay = RelayServer(settings, self._listener, False, self._logged.append, self._path)
        self._relay._owned.sender._queue.replace_worker().started = True  # so no thread is started

    def run(self, data: bytes) -> None:
        source = Source(data)
        kind = source.byte()
        self._puppet.answer = b"HTTP/1.1 %s\r\nContent-Length: 2\r\n\r\n{}" % self.ANSWERS[kind & 3]
        self._logged.clear()
        said = source.rest()
        if kind & 8:
            said = said.replace(b"\xff", b"}\n{") + b"}\n"
        half = len(said) // 2 if kind & 16 else 0
        heard = self._heard_beside(said[:half], said[half:], bool(kind & 4))
        expect(b"[1]\n" in heard, "another client's event is settled", heard, self._logged)
        told = sum(protocol.parse(line).get("lost", 0) for line in heard.split(b"\n"))
        expect(told == (1 if kind & 3 else 0), "and reported to that one, if it is lost", told, kind & 3, heard)
        for _ in range(STEPS):
            if self._step() == float("inf") and not self._relay._peers:
                break
        expect(not self._relay._peers, "who has gone is forgotten", list(self._relay._peers))
        owners = self._relay._owned._owners
        expect(not owners, "and so are the owners of what was sent", len(owners))

    def _heard_beside(self, first: bytes, second: bytes, greets: bool) -> bytes:
        """What a client is told whose event comes between the two parts of what the odd one says."""
        heard = b""
        innocent, odd = (socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(2))
        with innocent, odd:
            for sock in (innocent, odd):
                sock.connect(self._path)
                sock.setblocking(False)
            if greets:
                self._greet(odd)
            _send(odd, first)
            self._greet(innocent)
            innocent.send(_EVENT % 7 + b"\n")
            self._relay._turn(0)
            _send(odd, second)
            for _ in range(STEPS):
                self._step()
                try:
                    heard += innocent.recv(65_536)
                except BlockingIOError:
                    pass
                if b"[1]\n" in heard:
                    break
        return heard

    def _greet(self, sock: socket.socket) -> None:
        caller = protocol.Caller(KEY, self._url, protocol.EVENTS)
        sock.send(caller.hello)
        challenge = b""
        while not challenge.endswith(protocol.END):
            self._relay._turn(0)
            try:
                challenge += sock.recv(protocol.LONGEST_GREETING)
            except BlockingIOError:
                pass
        sock.send(caller.answer(challenge[:-1]))

    def _step(self) -> float:
        self._relay._turn(0)
        self._relay._owned.sender._batches._in_flight.not_before = 0.0  # as if the wait before the next try were over
        return self._relay._owned.sender._batches.send_once()

    def close(self) -> None:
        self._relay._owned.sender._batches._transport.close()
        self._listener.close()
        self._puppet.close()
        shutil.rmtree(self._place)


@contextmanager
def relay() -> Iterator[Run]:
    """Whatever a client sends, the relay goes on, and another client's events are settled or reported to that one."""
    lines = Lines()
    try:
        yield lines.run
    finally:
        lines.close()


def _send(sock: socket.socket, data: bytes) -> None:
    try:
        sock.send(data)
    except (BlockingIOError, BrokenPipeError, ConnectionResetError):
        pass


TARGETS: dict[str, Callable[[], ContextManager[Run]]] = {
    "call": call,
    "spool": spool,
    "api": api,
    "answer": answer,
    "relay": relay,
}

# What a corpus begins with: one input that goes far.
SEEDS: dict[str, list[bytes]] = {
    "call": [bytes([0, 255, 29, 3, 5, 1, 97, 2, 5, 1, 98, 4, 15, 0, 7, 1, 1, 1, 1])],
    "spool": [bytes([127]) + bytes(24) + bytes([0, 0, 3, 0, 0, 0, 1, 0]) + b"\x05event\x06second\x05third"],
    "api": [
        b"\0\0HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",
        b"\0\0HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 429 Wait\r\nRetry-After: 3\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"\xff\x21\0" + b'{"id":"1","status":"sent"}',
    ],
    "answer": [
        b'\4{"lost": 1, "message": "m", "status": 400, "body": "b", "code": null, "reason": null, '
        b'"cause": "rejected", "events": ["{}"]}\n[1]\n',
        b'\4{"lost": 1, "message": "m", "status": 400, "body": "b", "code": null, "reason": null, '
        b'"cause": "rejected", "events": ["{}"]}\n[0',
        b'\4{"lost": -1, "message": "m", "status": 400, "body": "b", "code": null, "reason": null, '
        b'"cause": "rejected", "events": []}\n',
        b'\4{"refused": "no", "busy": true}',
        b'\5{"welcome": {"pid": 1}}',
    ],
    "relay": [
        b"\x0d" + _EVENT[:-1],
        b"\x04!\n" + _EVENT + b"\n!\n",
        b"\0" + protocol.Caller(KEY, NOWHERE, "lease").hello,
    ],
}
