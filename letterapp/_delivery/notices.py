"""One-time reports about settings or environments that weaken the guarantees.

Responsible for: reporting each of them once, and their texts. Not responsible for: detecting the situation (`sender`,
`exit_signals`, `_runtime.servers`).
"""

from __future__ import annotations

from ..errors import LetterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from .._config import Settings

_reported: set[str] = set()


def report_once(report: Callable[[LetterError], object] | None, trouble: str) -> None:
    """Report ``trouble``, unless this interpreter has reported it before."""
    if report is not None and trouble not in _reported:
        _reported.add(trouble)
        report(LetterError(trouble, cause="degraded"))


def report_exposure(settings: Settings, report: Callable[[LetterError], object]) -> None:
    """Report it if the API key is sent over a network in clear text."""
    if settings.exposed:
        report_once(
            report,
            "base_url begins with http://, and its host is not this machine: the API key and all events go over the "
            "network in clear text, and anybody there can forge responses: use https://",
        )


def report_sub_interpreter(report: Callable[[LetterError], object]) -> None:
    """Report that uWSGI will end this interpreter without running any of its code."""
    report_once(
        report,
        "uWSGI ends interpreters other than its first without running exit handlers. So events are sent at once there, "
        "whatever flush_interval is, and what is not delivered at a stop is lost without a report. Start uWSGI with "
        "--single-interpreter, or give the client a spool or a relay",
    )


def warn_inline() -> None:
    """Warn that no thread can run in this process."""
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
