"""Which `Delivery` a client's options ask for: by this process, a relay, a queue or a stream, none, or the tests.

Responsible for: `create_delivery`. Not responsible for: the deliveries themselves (`_delivery.sender`,
`_relay.delivery`).
"""

from __future__ import annotations

from ._delivery.base import Delivery, NullDelivery
from ._delivery.notices import report_once
from ._delivery.sender import Sender
from ._reporter import Reporter
from ._runtime.signal_errors import reraise_signal_error
from .errors import LetterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ._config import Settings


def create_delivery(settings: Settings) -> Delivery:
    """The delivery that ``settings`` ask for. Blocks only for ``relay=True`` or a path, until the relay is ready."""
    if not settings.enabled:
        return NullDelivery(Reporter(settings.on_error), settings.exit_timeout)
    if settings.captured:
        from ._delivery.captured import CapturedDelivery

        return CapturedDelivery(settings)  # a relay may run outside of the test run, and a spool outlives it
    relay = settings.relay
    if not relay:
        return Sender(settings)
    # These modules are imported only if they are needed.
    if relay is True or isinstance(relay, str):
        try:
            from ._relay.delivery import RelayDelivery
        except OSError as problem:  # no file descriptor left for a module's file
            reraise_signal_error(problem)
            why = problem.strerror or problem
            said = f"relay: its modules cannot be imported: {why}; this process sends its events itself"
            Reporter(settings.on_error)(LetterError(said, cause="degraded"))
            return Sender(settings)
        return RelayDelivery.start(settings)
    from ._relay.handover import Handover

    timeouts = settings.timeout, settings.exit_timeout
    bind = getattr(relay, "for_client", None)  # a stream has a name that depends on the key

    def make_handover(report: Any, clock: Any) -> Handover:
        target = relay if bind is None else bind(settings, lambda trouble: report_once(report, trouble))
        return Handover(target, *timeouts, report, clock)

    return Sender(settings, make_handover=make_handover)
