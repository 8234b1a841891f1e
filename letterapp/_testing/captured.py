"""A client that sends nothing, and shows a test what all clients have tracked.

Responsible for: `capture`, `CapturedLetter`. Not responsible for: the files in which events are kept (`run`), comparing
them (`matching`).
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Mapping, Optional

from .active import FLUSH, TestRun
from .client import Letter, LetterError, flush
from .matching import Expected, failure, without_chance
from .run import Received

_PAUSE = 0.02  # seconds between two looks at what other processes have sent
_KEY = "lt_test_captured"
_NOWHERE = "https://letterapp.invalid"  # a name that never exists (RFC 2606): captured clients send to another machine


class CapturedLetter(Letter):
    """A `Letter` that sends nothing, and shows what it and all other clients of the test have tracked.

    `capture` and the fixture `letter` create it. It shows the events of every client that would send to another
    machine: those that exist already and new ones, in this process and in the processes that it has started, forked,
    spawned or otherwise. Clients with a loopback ``base_url`` send there.

    When a call has returned, its event is there, even if its process is killed then. Because other processes may still
    be running, the ``assert_`` methods wait for up to `wait` seconds before they fail. (A client that was created
    before the test run began has a queue. Looking at events flushes those of this process.)

    Thread safety: one thread at a time may look at events; `Letter`'s own methods may be called by any thread. Fork
    safety: as `Letter`; a forked child may look at events, too. Pickling: what another process gets is a plain `Letter`
    whose events are captured.

    Attributes:
        wait: Maximum time that an ``assert_`` method waits for an event of another process, in seconds.
        errors: The `LetterError` of each event that this client has lost, for example because JSON cannot represent it.
    """

    def __init__(self, received: Received, wait: float) -> None:
        errors = _Errors()
        self.errors: List[LetterError] = errors
        self.wait = wait
        self._received = received
        super().__init__(_KEY, _NOWHERE, on_error=errors.note)

    @property
    def events(self) -> List[Dict[str, Any]]:
        """All events so far, as the dicts that are sent, each ``messageId`` once, in the order of the calls.

        (Events of a client that was created before the test run began are in the order of its requests.)
        """
        self._update()
        return list(self._received.events)

    @property
    def mails(self) -> List[Dict[str, Any]]:
        """What `send` was called with, with the names that the API uses."""
        self._update()
        return list(self._received.mails)

    def snapshot(self) -> List[Dict[str, Any]]:
        """`events` as dicts that are the same in each run of the test, to compare them as a whole.

        A random ``messageId`` becomes ``"id-1"``, ``"id-2"``, ... in order, and a ``timestamp`` that is the time of the
        call becomes ``"now"``. IDs and times that the application has chosen stay as they are.
        """
        return without_chance(self.events, self._received.is_now)

    def clear(self) -> None:
        """Forget all events and mails so far."""
        self._update()
        self._received.clear()

    # Looking for events.

    def tracked(
        self,
        event: Optional[str] = None,
        /,
        *,
        user_id: Optional[str] = None,
        properties: Optional[Mapping[str, Any]] = None,
        **more_properties: Any,
    ) -> List[Dict[str, Any]]:
        """The events of `track` that match; does not wait for other processes.

        Args:
            event: The event's name; None matches any.
            user_id: The user's ID; None matches any.
            properties: Properties that the event has, among others, as JSON has them: a datetime is a string.
            more_properties: The same as keyword arguments.
        """
        return self._matching(_track(event, user_id, properties, more_properties))

    def identified(
        self,
        user_id: Optional[str] = None,
        /,
        *,
        email: Optional[str] = None,
        timezone: Optional[str] = None,
        traits: Optional[Mapping[str, Any]] = None,
        **more_traits: Any,
    ) -> List[Dict[str, Any]]:
        """The events of `identify` that match, as in `tracked`."""
        return self._matching(_identify(user_id, email, timezone, traits, more_traits))

    def grouped(
        self,
        user_id: Optional[str] = None,
        account_id: Optional[str] = None,
        /,
        *,
        name: Optional[str] = None,
        traits: Optional[Mapping[str, Any]] = None,
        **more_traits: Any,
    ) -> List[Dict[str, Any]]:
        """The events of `group` that match, as in `tracked`."""
        return self._matching(_group(user_id, account_id, name, traits, more_traits))

    def assert_tracked(
        self,
        event: str,
        /,
        *,
        user_id: Optional[str] = None,
        properties: Optional[Mapping[str, Any]] = None,
        **more_properties: Any,
    ) -> Dict[str, Any]:
        """Check that `track` was called like this. The arguments are those of `tracked`.

        Returns:
            The latest event that matches, whole.

        Raises:
            AssertionError: None does, and none came within `wait` seconds. The text shows how the closest one differs,
                similar names, and what came.
        """
        __tracebackhide__ = True
        return self._one(_track(event, user_id, properties, more_properties))

    def assert_identified(
        self,
        user_id: str,
        /,
        *,
        email: Optional[str] = None,
        timezone: Optional[str] = None,
        traits: Optional[Mapping[str, Any]] = None,
        **more_traits: Any,
    ) -> Dict[str, Any]:
        """Check that `identify` was called like this; see `assert_tracked`."""
        __tracebackhide__ = True
        return self._one(_identify(user_id, email, timezone, traits, more_traits))

    def assert_grouped(
        self,
        user_id: str,
        account_id: Optional[str] = None,
        /,
        *,
        name: Optional[str] = None,
        traits: Optional[Mapping[str, Any]] = None,
        **more_traits: Any,
    ) -> Dict[str, Any]:
        """Check that `group` was called like this; see `assert_tracked`."""
        __tracebackhide__ = True
        return self._one(_group(user_id, account_id, name, traits, more_traits))

    def _update(self) -> None:
        flush(FLUSH)
        self._received.update()

    def _matching(self, expected: Expected) -> List[Dict[str, Any]]:
        return [item for item in self.events if expected.matches(item)]

    def _one(self, expected: Expected) -> Dict[str, Any]:
        __tracebackhide__ = True
        pause = threading.Event()  # not `time.sleep`, which a test may have replaced
        found = self._matching(expected)
        for _ in range(round(self.wait / _PAUSE)):
            if found:
                break
            pause.wait(_PAUSE)
            found = self._matching(expected)
        if not found:
            raise AssertionError(failure(expected, self.events, self._notes()))
        return found[-1]

    def _notes(self) -> List[str]:
        notes = [f"This client has lost an event: {error}" for error in self.errors]
        elsewhere = os.environ.get("LETTER_BASE_URL")
        if elsewhere:
            notes.append(f"LETTER_BASE_URL is set: clients without base_url send to {elsewhere}: unset it for tests.")
        return notes


class _Errors(List[LetterError]):
    """The errors of a captured client. In another process they are printed."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    def note(self, error: LetterError) -> None:
        if os.getpid() == self._pid:
            self.append(error)
        else:
            print(f"letterapp: {error}", file=sys.stderr)


def _track(
    event: Optional[str], user_id: Optional[str], properties: Optional[Mapping[str, Any]], more: Dict[str, Any]
) -> Expected:
    return Expected("track", {"event": event, "userId": user_id}, {**(properties or {}), **more})


def _identify(
    user_id: Optional[str],
    email: Optional[str],
    timezone: Optional[str],
    traits: Optional[Mapping[str, Any]],
    more: Dict[str, Any],
) -> Expected:
    fields = {"userId": user_id, "email": email, "timezone": timezone}
    return Expected("identify", fields, {**(traits or {}), **more})


def _group(
    user_id: Optional[str],
    account_id: Optional[str],
    name: Optional[str],
    traits: Optional[Mapping[str, Any]],
    more: Dict[str, Any],
) -> Expected:
    return Expected("group", {"userId": user_id, "accountId": account_id, "name": name}, {**(traits or {}), **more})


@contextmanager
def capture(wait: float = 1.0) -> Iterator[CapturedLetter]:
    """Capture the events of all clients, in a ``with``: nothing is sent to another machine.

    Yields a client that sends nothing and shows what came, its own events and those of the application's clients; see
    `CapturedLetter` for which ones. After the ``with`` it still shows what came in it. Meanwhile the environment
    variable ``LETTER_API_KEY`` has a value, if it had none.

    Not captured: a client with ``enabled=False``; one with ``relay=`` that was created before, where neither the pytest
    plugin nor `no_network` applied; a program that gets an environment without this process's variables.

    A capture has what is tracked while it is active, whoever tracks it. Captures may be nested: the innermost one gets
    the events. Not for several threads of a process at a time.

    Args:
        wait: Maximum time that ``assert_`` methods wait for an event of another process before they fail, in seconds.
    """
    active = TestRun()
    run = active.run
    outer, name = run.current, run.new_capture()
    received = Received(run.capture_path(name))
    run.set_current(name)
    sets_key = "LETTER_API_KEY" not in os.environ
    os.environ.setdefault("LETTER_API_KEY", _KEY)
    letter = CapturedLetter(received, wait)
    try:
        yield letter
    finally:
        if run.pid == os.getpid():  # a forked child that gets here has nothing to clean up
            letter.close(FLUSH)
            letter._update()
            run.set_current(outer)
            run.remove_capture(name)
            if sets_key and os.environ.get("LETTER_API_KEY") == _KEY:
                del os.environ["LETTER_API_KEY"]
            active.end()
