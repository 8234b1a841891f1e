"""The sender of one process: takes batches from the outbox, posts them, obeys the verdict, stops when told.

    any thread                               the sender's thread, or a caller's where no thread can run
    ----------                               ----------------------------------------------------------
    put ---> outbox ---- take -----------> step ---> transport.post ---> judge
               ^                        or handover.offer                  |
               +---------- settle -----------+------- delivered, lost -----+
                                             +------- again: `_not_before`
                                             +------- split: halve

Lives here: `Sender`, its thread and who waits for whom. Never here: what an event is, HTTP, what an answer means, how a
process ends.

The thread starts at the first event and leaves when it has been idle for a while, so an idle parent forks without
threads. Between two tries nothing is held on a stack: the batch stays in the outbox, what was spent on it and the
moment of the next try are fields, so the turns of one batch may be taken by different threads.

No exception settles a batch, but the API's word, or that the last try has failed: whatever comes up on the way (no
descriptor, no memory, half a module, a mistake of ours) is a failed try.
"""

from __future__ import annotations

import _thread
import os
import sys
import threading
import time

from . import _lifecycle, _threads
from ._bell import Bell
from ._clock import monotonic
from ._delivery import Delivery, Reporter
from ._forks import leaving, this_process
from ._handlers import pass_on
from ._heir import Heir, home
from ._inside import Turn
from ._outbox import CLOSED, FULL, HOMELESS, WAKE, Outbox
from ._random import random_bytes
from ._retry import (
    LONGEST_BACKOFF,
    LONGEST_WHILE_REFUSED,
    Again,
    Delivered,
    Effort,
    Pending,
    Settled,
    Split,
    Surprise,
    backoff,
    is_refusal_of_all,
    judge,
)
from ._settings import MAX_ITEMS
from ._stores import Stores
from ._transport import Transport, Unreachable
from .errors import LetterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Union

    from ._handover import Handover
    from ._queues import Target
    from ._settings import Settings
    from ._transport import Answer

    Outcome = Union[Answer, Unreachable, Surprise, Settled, Pending]

IDLE = 5.0  # seconds without an event after which the thread leaves; starting it again costs some 50 us
BURST = 1.0  # seconds after which drops are reported though the queue is still full
FOREVER = float("inf")
_WHILE_LOOKING = 0.05  # seconds: the thread that looks may have been cut short
_LAST_LOOK = 0.5  # seconds that a look which is under way may take when events are given up; microseconds, mostly
_HEAD, _TAIL = b'{"batch":[', b"]}"


class Sender(Delivery):
    """Delivers the events of this process itself, on one thread of its own."""

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], float] = monotonic,
        stores: Stores | None = None,
        report: Callable[[LetterError], object] | None = None,
        progress: Bell | None = None,
        handover: Callable[[Any, Any], Handover] | None = None,
    ) -> None:
        """``handover`` makes the way into a queue whose process sends, if there is one; else this one posts."""
        self.owner = this_process()
        self.exit_timeout = settings.exit_timeout
        self._settings = settings
        self._interval = settings.flush_interval
        self._syncs = settings.spool_sync
        self._clock = clock
        self.reporter = Reporter(settings.on_error)
        self._report = report or self.reporter
        stores = stores or Stores.open(settings)
        self._bell = Bell()  # wakes whoever sends
        self._progress = progress or Bell()  # wakes those who wait until something is settled
        self._outbox = Outbox(
            home(stores),
            settings.max_queue_events,
            settings.max_queue_bytes,
            settings.flush_at,
            settings.overflow == "drop_oldest",
            clock,
        )
        self._heir = Heir(self._outbox, stores, self._report, clock, self._progress)
        self._transport = Transport(settings)
        self._make_handover = handover
        self._handover = handover(self._report, clock) if handover is not None else None
        self._successors: dict[int, Sender] = {}

        # Held by whoever takes a turn, over the request on the wire: the outbox has one batch in hand and the
        # transport one connection. Others wait for it only with a deadline, and never its owner.
        self._turn = Turn()
        self._effort = Effort()  # what was spent on the batch in hand, or on the last one
        self._not_before = 0.0  # the moment of its next try
        self._haste = 0  # times that an end has brought it forward
        self._is_refused = False  # the API refuses all that is in the spool, which has been reported
        self._is_surprised = False  # a turn failed in a way that nobody expected, which has been reported

        self._resting = False  # the thread should leave as soon as nothing waits
        self._mine: object = None  # what the thread that may send was started with
        self._started_by: object = _thread.start_new_thread  # and the function that started it
        self._native_id = 0  # the thread's, as the system has it
        self._inline = False  # no thread runs: callers take the turns
        self._budget = FOREVER  # seconds that calls may still wait, once the process is ending
        self._final = False  # it is sure to end
        self._gave_up = False  # by `close`: what may still be on the wire is nothing that anybody waits for
        self._lost_at_close = 0  # events; so no later `close` can say that all was settled
        self._heir.tell_losses()
        _lifecycle.watch(self)
        if settings.exposed:
            _lifecycle.report_once(
                self._report,
                "base_url begins with http://, and its host is not this machine: the API key and all events go over "
                "the network in clear text, and answers are believed. Use https://",
            )
        if _lifecycle.is_never_ended():
            self._interval = 0.0  # what waits for company would be lost
            if not settings.spool and (not settings.relay or handover is not None):
                _lifecycle.report_once(
                    self._report,
                    "uWSGI ends an interpreter that is not its first without any exit code. So events are sent at once "
                    "there, whatever flush_interval is; what is not delivered at a stop is lost untold. Start uWSGI "
                    "with --single-interpreter, or give the client a spool or a relay",
                )

    # Called by any thread.

    def put(self, event: bytes) -> None:
        answer = self._outbox.put(event)
        if self._syncs:
            self._outbox.sync()
        if answer:
            self._follow(answer, event)

    def prepare(self) -> None:
        """Load what the first request needs now, in a process that may be short of it later. Never raises for that."""
        try:
            self._transport.prepare()
        except Exception as problem:
            pass_on(problem)  # else the first request meets it again, and says what it is

    def send_orphans(self) -> None:
        if not self._settings.spool or _lifecycle.is_before_fork():
            return
        if not self._outbox.is_empty() or self._heir.finds_orphans():
            self._wake()
            self._resting = True  # the thread is for that alone

    def has_room(self, events: int, size: int) -> bool:
        """True when ``events`` events of ``size`` bytes in all fit now, or would by dropping the oldest."""
        return self._outbox.has_room(events, size)

    @property
    def sends_on_os_exit(self) -> bool:
        return self._settings.send_on_os_exit

    def uses(self, queue: Target) -> bool:
        """True when batches are handed over to ``queue``."""
        return self._handover is not None and self._handover.target.is_same(queue)

    def refuse(self, cause: str, error: LetterError | None = None) -> None:
        self._outbox.refuse(cause)
        if error is not None:
            self._report(error)

    def flush(self, timeout: float) -> bool:
        deadline = self._clock() + timeout
        self._find_all(deadline)
        settled = self._await(self._outbox.hurry(), deadline)
        while settled and self._goes_on(deadline):
            self._find_all(deadline)
            settled = self._await(self._outbox.hurry(), deadline)
        if settled:
            self._rest(deadline)
        return settled

    def close(self, timeout: float) -> bool:
        return self._close(self._clock() + timeout, timeout)

    def _close(self, deadline: float, timeout: float) -> bool:
        self._outbox.close()
        settled = self._drain(deadline)
        if self._may_wait() and not settled:
            self._gave_up = True
            self._lost_at_close += self._give_up("closed", f"not delivered within the {timeout:g} s of close()")
            self._rest(deadline)
        if self._may_wait():
            self._disconnect()
            self._report_drops(0.0)
            self._outbox.leave_no_trace()
        return settled and not self._lost_at_close

    def _disconnect(self) -> None:
        """Close the connections, unless somebody uses them. A batch that comes nevertheless opens others."""
        if not self._outbox.attended:
            self._turn.run(self._close_connections, 0.0)

    def _close_connections(self) -> None:
        self._transport.close()
        if self._handover is not None:
            self._handover.close()

    def stats(self) -> dict[str, Any]:
        handover = self._handover
        mode = "inline" if self._inline else "thread"
        return {
            "pid": self.owner.pid,
            "mode": "relay" if handover is not None and handover.is_up else mode,
            "memory": self._outbox.kind,
            "relayed": handover.relayed if handover is not None else 0,
            **self._outbox.counts(),
        }

    def glance(self) -> tuple[int, int, int]:
        return self._outbox.glance()

    def look_after_children(self) -> None:
        if self._heir.has_orphans_in_memory():
            self._heir.look_soon()
            self._wake()
            self._resting = True  # the next fork finds no thread, if that can be

    # The end of the process.

    def hasten(self) -> None:
        self._bring_forward()
        self._outbox.hurry()
        self._bell.ring()

    def end(self, deadline: float, final: bool) -> None:
        self._final = final
        self._outbox.mark_leaving(final)
        if self._gave_up and self._outbox.is_empty():
            # What is on the wire is nobody's; what a killed process has left since is.
            self._find_all(deadline)
            if self._outbox.is_empty():
                return
        self._outbox.be_prompt(True)
        settled = self._drain(deadline)
        if self._may_wait():
            if final and not settled:
                self._give_up(
                    "exit", f"not delivered within the {self.exit_timeout:g} s that the end of the process may take"
                )
                self._rest(deadline)
            self._report_drops(0.0)
            if final:
                if self._handover is not None:
                    self._handover.finish()
                self._disconnect()
                self._outbox.leave_no_trace()
        elif final and not self._outbox.held_by_this_thread():
            # A signal has come in the middle of a turn of this very thread, which will not be gone on with.
            self._give_up("exit", "the process was ended while it sent them")
        self._budget = max(0.0, deadline - self._clock())

    def go_on(self) -> None:
        self._final = False
        self._budget = FOREVER
        self._outbox.mark_leaving(False)
        self._outbox.be_prompt(self._inline)

    def defers(self, act: Callable[[], object]) -> bool:
        if not self._outbox.held_by_this_thread():
            return False
        _thread.start_new_thread(self._outbox.call_when_free, (act,))
        return True

    # Forks.

    def for_child(self) -> Sender:
        # `setdefault` is atomic, where a lock might have been held by some thread at the fork.
        child = self._successors.setdefault(os.getpid(), self._successor(self._heir.for_child()))
        if self._outbox.closed:
            child._outbox.close()
        _lifecycle.release(self)
        if self._settings.exit_signals:
            _lifecycle.end_on(self._settings.exit_signals)  # gunicorn has reset them since
        return child

    def _successor(self, stores: Stores) -> Sender:
        return Sender(self._settings, self._clock, stores, handover=self._make_handover)

    # What `put` does beyond queueing. Runs in the caller.

    def _follow(self, answer: int, event: bytes) -> None:
        if answer == WAKE:
            if _lifecycle.is_torn_down():  # a `__del__`'s
                self._give_up("exit", _lifecycle.TORN_DOWN)
                return
            if not self._wake():
                self._send_inline()
            if self._budget is not FOREVER:
                self._settle_now()
        elif answer == FULL:
            self._overflow(event)
        elif answer == HOMELESS:
            self._heir.move()
            self.put(event)
        elif answer == CLOSED:
            self.refuse("closed", _closed([event]))

    def _wake(self) -> bool:
        """See to it that the thread looks at the outbox, or a new one; False where none can run."""
        promise = self._outbox.attend()
        if promise is None:
            self._bell.ring()
            if self._started_by is _thread.start_new_thread:
                return True
            # gevent has patched since. Our thread is a real one, which gevent's objects do not bear: it leaves at this
            # ring, because it is no longer `_mine`, and a greenlet takes its place.
            promise = self._outbox.attend_instead()
        _lifecycle.watch_first_use(self._settings.exit_signals, self._settings.send_on_os_exit)
        with promise.making:
            promise.begun = self._start()
        if promise.begun:
            return True
        self._outbox.desert()
        if not self._inline:
            self._inline = True
            self._outbox.be_prompt(True)
            _lifecycle.keep(self)
            if self._budget is FOREVER and threading.main_thread().is_alive() and not _lifecycle.is_before_workers():
                _warn_inline()  # else it is a matter of course
        return False

    def _start(self) -> bool:
        self._resting = False
        self._started_by = _thread.start_new_thread
        self._mine = mine = object()
        started = _lifecycle.start_thread(self._run, mine)
        if started:
            self._inline = False
            self._outbox.be_prompt(self._budget is not FOREVER)
        return started

    def _send_inline(self) -> None:
        if not self._may_wait():
            return
        if _lifecycle.is_before_workers():
            self._send_before_workers()
        elif self._outbox.due(self._clock(), self._interval) <= 0 and self._not_before <= self._clock():
            self._take_turn(self._settings.timeout, linger=0.0)

    def _send_before_workers(self) -> None:
        if not self._drain(self._clock() + self.exit_timeout):
            self._give_up(
                "undeliverable",
                f"not delivered within {self.exit_timeout:g} s while uWSGI imported the application, "
                "and its master can send nothing later",
            )

    def _overflow(self, event: bytes) -> None:
        most = self._outbox.largest
        may_fit = len(event) <= most
        if self._settings.overflow == "block" and may_fit and self._may_block() and self._put_when_there_is_room(event):
            return
        if not may_fit:
            bound = "max_queue_bytes" if most == self._settings.max_queue_bytes else "max_batch_bytes"
            said = f"1 event dropped: it has {len(event):,} bytes, and the queue takes {most:,} ({bound})"
            self.refuse("overflow", LetterError(said, cause="overflow", events=[event]))
        elif self._outbox.drop(event):
            self._wake()  # it reports the burst when it is over

    def _put_when_there_is_room(self, event: bytes) -> bool:
        deadline = self._clock() + self._settings.timeout
        while True:
            with self._progress.sleeper() as sleeper:
                answer = self._outbox.put(event)
                if self._syncs:
                    self._outbox.sync()
                if answer != FULL:
                    if answer:
                        self._follow(answer, event)
                    return True
                left = deadline - self._clock()
                if left <= 0:
                    return False
                self._wait_or_work(sleeper, left)

    def _may_block(self) -> bool:
        return self._may_wait() and not _runs_a_loop()  # a call never blocks an event loop

    # Waiting for settlement. Runs in the caller.

    def _may_wait(self) -> bool:
        """False in a callback on the sender's own turn, in a handler that interrupted the outbox, in the very end."""
        return not (self._turn.is_mine() or self._outbox.held_by_this_thread() or _lifecycle.is_torn_down())

    def _await(self, target: int, deadline: float) -> bool:
        """Wait until ``target`` events are settled; False when ``deadline`` has come, or waiting is impossible."""
        if self._outbox.has_settled(target):
            return True
        if not self._may_wait():
            return False
        self._wake()
        while True:
            with self._progress.sleeper() as sleeper:
                if self._outbox.has_settled(target):
                    return True
                left = deadline - self._clock()
                if left <= 0:
                    return False
                self._wait_or_work(sleeper, left)

    def _wait_or_work(self, sleeper: Any, seconds: float) -> None:
        """Wait for the thread's progress or, where there is no thread, take a turn."""
        if self._outbox.attended:
            sleeper.wait(seconds)
            return
        with self._bell.sleeper() as pause:
            wait = self._take_turn(seconds)
            pause.wait(min(wait, seconds))

    def _bring_forward(self) -> None:
        """Give a batch that waits for its next try that try now: there may be no later. So it does not count."""
        if self._handover is not None:
            self._handover.is_ending = True
        self._haste += 1  # first: a turn that just sets the moment sees this, or what it has set is seen below
        if self._not_before > self._clock():
            self._effort.take_back_failure()
        self._not_before = 0.0

    def _drain(self, deadline: float) -> bool:
        """Have everything settled and the thread leave; False when ``deadline`` has come, or waiting is impossible."""
        self._bring_forward()
        while True:
            self._find_all(deadline)
            if not self._await(self._outbox.hurry(), deadline):
                return False
            if self._goes_on(deadline):
                continue
            # What is settled may still have to be reported, by a thread that the end would stop. And it may just have
            # found what another process left.
            self._rest(deadline)
            if not self._may_wait() or (self._outbox.is_empty() and not self._heir.left_some):
                return True
            if self._clock() >= deadline:
                return False

    def _settle_now(self) -> None:
        """The process is ending: return only when what waits is settled, or its budget is spent."""
        if not self._may_wait():
            return
        if not self._final and _runs_a_loop():
            return  # a signal came, and the loop goes on: so does the thread, and there will be another end
        started = self._clock()
        settled = self._await(self._outbox.hurry(), started + self._budget)
        if settled:
            self._rest(started + self._budget)
        self._budget = max(0.0, self._budget - (self._clock() - started))
        if self._final and not settled:
            self._give_up("exit", "the time that the end of the process may take was spent")

    def _rest(self, deadline: float) -> None:
        """Have an idle thread leave, so that a fork that follows finds none."""
        self._resting = True
        self._bell.ring()
        if self._may_wait():
            self._progress.wait_while(lambda: self._outbox.attended and self._outbox.is_empty(), deadline, self._clock)
            if not self._outbox.attended:
                thread, self._native_id = self._native_id, 0
                _threads.await_end(thread, deadline - self._clock())

    def _find_all(self, deadline: float) -> None:
        """Take over what every process left that has ended by now."""
        if self._may_wait():
            # A look of another thread may have asked for a process just before it ended, and stands in the way of
            # asking again until it is over.
            self._progress.wait_while(self._outbox.looking.has_others, deadline, self._clock, _WHILE_LOOKING)
            if self._outbox.is_homeless():
                self._heir.move()  # else it does not count among what waits
        self._heir.take_over()

    def _goes_on(self, deadline: float) -> bool:
        """True when an ended process's events are still to be taken over, and there is time."""
        return self._heir.left_some and self._may_wait() and self._clock() < deadline

    def _give_up(self, cause: str, why: str) -> int:
        """Report what waits as lost for ``cause``, but what others may find; return how many events that is."""
        if cause == "exit":
            self._leave_to_others()
        elif self._heir.left_some:
            self._heir.take_over(FOREVER)
        events = self._outbox.abandon(cause)
        self._not_before = 0.0  # it was theirs
        self._heir.give_back()
        self._progress.ring()
        if events:
            self._report(LetterError(f"{_events(len(events))} given up: {why}", cause=cause, events=events))
        return len(events)

    def _leave_to_others(self) -> None:
        # What others have left to this process is theirs too, and what its thread is just taking over.
        until = self._clock() + _LAST_LOOK
        self._progress.wait_while(self._outbox.looking.has_others, until, self._clock, _WHILE_LOOKING)
        self._heir.take_over(FOREVER)
        left = self._outbox.leave_to_others()
        if left and not any(slot.has_heirs() for slot in left):
            # Who went on has come to its own end meanwhile, and may have looked for the last time before there was
            # anything. It says first that it leaves and looks then; here it is the other way round: so one sees it.
            self._heir.take_over(FOREVER)

    # Runs on the sender's thread, or in a caller that has the turn.

    def _run(self, mine: object) -> None:
        left = False
        self._native_id = _thread.get_native_id()
        try:
            # A callback of ours may have forked, and the child is not the sender's; or another thread has taken over.
            while self.owner.pid == os.getpid() and self._mine is mine:
                if self._started_by is not _thread.start_new_thread:
                    self._outbox.be_prompt(True)  # gevent has patched: the next call has a greenlet take over
                    return
                with self._bell.sleeper() as sleeper:
                    wait = self._take_turn(FOREVER)
                    if wait < FOREVER:
                        sleeper.wait(wait)
                    elif self._resting or self._outbox.closed or not sleeper.wait(IDLE):
                        left = leaving(self._outbox.leave)
                        if left:
                            return
        finally:
            if self.owner.pid == os.getpid() and self._mine is mine:
                if not left:
                    leaving(self._desert)
                self._progress.ring()

    def _desert(self) -> bool:
        self._outbox.desert()
        return True

    def _take_turn(self, patience: float, linger: float = FOREVER) -> float:
        """Do one `step` unless another thread has the turn for all of ``patience`` seconds; return what it returned."""
        wait = 0.0

        def take() -> None:
            nonlocal wait
            wait = self.step(patience, linger)

        self._turn.run(take, patience)
        return wait

    def step(self, patience: float = FOREVER, linger: float = FOREVER) -> float:
        """One turn: send the next batch if it is due, waiting at most ``patience`` seconds for the answer.

        ``linger``: seconds that a batch which was handed over may be waited for, 0 in a call that must go on.

        Returns the seconds until a turn has something to do: 0 for at once, infinity when nothing waits.
        """
        sends = False
        try:
            now = self._clock()
            if not self._final:  # else it would take back what it has just left to others; the end itself looks
                self._heir.look_if_due(now)
            if self._outbox.is_lost() or self._outbox.is_homeless():
                self._heir.move()
            until_burst = self._report_drops(BURST)
            wait = max(self._outbox.due(now, self._interval), self._not_before - now)
            if wait > 0:
                return min(wait, until_burst)
            sends = True
            return 0.0 if self._send_batch(min(patience, self._settings.timeout), linger) else until_burst
        except Exception as surprise:  # it costs a try, and neither an event nor the thread
            pass_on(surprise)
            return self._bear(surprise, sends)

    def _bear(self, surprise: Exception, sends: bool) -> float:
        """What `step` returns when ``surprise`` came out of it, in the middle of sending or before."""
        pause = backoff(0, 0.0)
        try:
            if sends and self._outbox.is_sending():
                self._obey(Surprise(surprise), [])
                return 0.0
        except Exception as another:
            pass_on(another)
            surprise = another
        self._not_before = self._clock() + pause
        if not (sends or self._is_surprised):
            self._is_surprised = True
            said = f"nothing can be sent for now: {surprise!r}; it is tried again and again"
            self._report(LetterError(said, cause="degraded"))
        return pause

    def _send_batch(self, timeout: float, linger: float) -> bool:
        """Take the next batch, send it and do what its answer demands; False when there is none."""
        batch = self._outbox.take(MAX_ITEMS, self._settings.max_batch_bytes - len(_HEAD) - len(_TAIL) + 1)
        if not batch:
            return False
        haste = self._haste
        self._obey(self._hand_over_or_post(batch, timeout, linger), batch)
        if self._haste != haste:  # an end has come while the request was on the wire
            self._bring_forward()
        return True

    def _hand_over_or_post(self, batch: list[bytes], timeout: float, linger: float) -> Outcome:
        if self._handover is not None:
            outcome = self._handover.offer(batch, min(timeout, linger), self._outbox.is_wanted())
            if outcome is not None:
                return outcome
        return self._post(batch, timeout)

    def _post(self, batch: list[bytes], timeout: float) -> Answer | Unreachable:
        try:
            return self._transport.post("/v1/batch", _HEAD + b",".join(batch) + _TAIL, max(0.001, timeout))
        except Unreachable as problem:
            return problem

    def _obey(self, outcome: Outcome, batch: list[bytes]) -> None:
        if isinstance(outcome, Pending):
            self._not_before = self._clock() + outcome.seconds
            return
        if isinstance(outcome, Settled):
            self._settle_by_relay(outcome.errors, len(batch))
            return
        effort = self._effort_of_batch()
        jitter = int.from_bytes(random_bytes(2), "big") / 65536  # not `random`: forked workers would draw alike
        lasts = self._outbox.lasts()
        verdict = judge(outcome, effort, self._most_retries(), len(batch), time.time(), jitter, lasts)
        if isinstance(verdict, Again):
            if self._outbox.retry():
                effort.note_failure()
                self._not_before = self._clock() + verdict.seconds
            if verdict.refusal is not None:
                self._report_refusal(verdict.refusal)
            return
        if isinstance(verdict, Split):
            effort.note_split(verdict.in_search)
            self._outbox.halve()
            return
        effort.note_end(accepted=isinstance(verdict, Delivered))
        if isinstance(verdict, Delivered):
            self._is_refused = False
            self._outbox.settle()
            self._heir.give_back()
            self._progress.ring()
            return
        self._lose(verdict.cause, verdict.error)

    def _effort_of_batch(self) -> Effort:
        """What was spent on the batch in hand: nothing, if it is another one than before."""
        if self._effort.batch != self._outbox.batch_number:
            self._effort = Effort(self._outbox.batch_number)
        return self._effort

    def _most_retries(self) -> float:
        most = self._settings.max_retries
        return FOREVER if most is None or self._outbox.lasts() else most

    def _settle_by_relay(self, errors: list[LetterError], events: int) -> None:
        effort = self._effort_of_batch()
        kept = [error for error in errors if error.cause != "rejected" or is_refusal_of_all(error)]
        if self._outbox.lasts() and kept:
            # The manager has given up, and a spool never does: all of it goes again, under the same ids.
            refusals = [error for error in kept if is_refusal_of_all(error)]
            if self._outbox.retry():
                longest = LONGEST_WHILE_REFUSED if refusals else LONGEST_BACKOFF
                self._not_before = self._clock() + backoff(effort.attempt, 0.0, longest)
                effort.note_failure()
            if refusals:
                self._report_refusal(refusals[0])
            return
        self._is_refused = False
        effort.note_end(accepted=True)
        lost: dict[str, int] = {}
        for error in errors:
            count = min(error.lost, events - sum(lost.values()))
            if count > 0:
                cause = error.cause or "undeliverable"
                lost[cause] = lost.get(cause, 0) + count
        self._outbox.settle(lost=lost)
        self._heir.give_back()
        self._progress.ring()
        for error in errors:
            self._report(error)

    def _report_refusal(self, error: LetterError) -> None:
        """Say that the API refuses whatever it is sent, and the spool keeps it: once, until something is accepted."""
        if not self._is_refused:
            self._is_refused = True
            said = f"{error}. What waits stays in the spool and is tried again, at longer and longer intervals"
            self._report(LetterError(said, error.status, error.body, error.code, error.reason, cause="degraded"))

    def _lose(self, cause: str, error: LetterError) -> None:
        lost = self._outbox.settle(cause)
        self._heir.give_back()
        self._progress.ring()
        if lost:
            self._report(
                LetterError(
                    f"{_events(len(lost))} lost: {error}",
                    error.status,
                    error.body,
                    error.code,
                    error.reason,
                    cause=cause,
                    events=lost,
                )
            )

    def _report_drops(self, longest: float) -> float:
        """Report a burst of drops that is over, or that lasts ``longest``; return the seconds until another look.

        And what interrupted another call when the client was closed already.
        """
        refused = self._outbox.take_refused()
        if refused:
            self._report(_closed(refused))
        burst, wait = self._outbox.end_burst(self._clock(), longest)
        if burst is not None:
            self._report_burst(burst)
        return wait

    def _report_burst(self, burst: Any) -> None:
        settings = self._settings
        self._report(
            LetterError(
                f"{_events(burst.lost)} dropped ({settings.overflow}): the queue is full "
                f"({settings.max_queue_events:,} events or {settings.max_queue_bytes:,} bytes)",
                cause="overflow",
                lost=burst.lost,
                events=burst.sample,
            )
        )


def _runs_a_loop() -> bool:
    """True in a thread that runs an asyncio loop."""
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and asyncio._get_running_loop() is not None


def _closed(events: list[bytes]) -> LetterError:
    what = "the event was" if len(events) == 1 else f"{_events(len(events))} were"
    return LetterError(f"the client is closed: {what} not accepted", cause="closed", events=events)


def _events(count: int) -> str:
    return "1 event" if count == 1 else f"{count:,} events"


def _warn_inline() -> None:
    import warnings

    try:
        warnings.warn(
            "letterapp: no thread can run in this process, so events are sent by the calls themselves. "
            "Under uWSGI start it with --enable-threads.",
            RuntimeWarning,
            stacklevel=2,
        )
    except RuntimeWarning:
        pass  # `-W error` must not reach a request handler
