"""What the processes that send for others have in common.

Responsible for: detaching from the process that started this one, the log, descriptors for clients, protecting memory,
reading keys from files, notifying systemd, `Heartbeat`. Not responsible for: what the process serves (`socket_server`,
`manager_server`), starting it (`launcher`).
"""

from __future__ import annotations

import _socket
import os
import select
import stat
import sys
import time

from .. import _log
from .._runtime.clock import monotonic
from .._text import Secret, SecretBytes, clean
from ..errors import LetterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

# File descriptors that are not used for clients, because sending needs them: several simultaneous connection attempts,
# a name lookup, certificates, a file of the spool.
RESERVE = 16
LOG = "relay.log"  # in the directory of the sockets
_LONGEST_LINE = 4_000  # characters of a line in it
LARGEST_LOG = 1_048_576  # bytes; a larger one is truncated


_has_log = False  # stderr is `LOG`
_LONGEST_MESSAGE = 4000  # bytes: a write of fewer than PIPE_BUF bytes to a pipe is atomic


class Heartbeat:
    """When a loop has turned last. The loop's thread writes it, and the thread of an `Endpoint` reads it."""

    def __init__(self, wake: Callable[[], object]) -> None:
        """``wake`` makes the loop turn if it is idle. Any thread may call it."""
        self.last = monotonic()
        self.wake = wake


def keep_stderr_from_blocking() -> None:
    """If stderr is a pipe that is not read, drop log messages instead of blocking."""
    try:
        if stat.S_ISFIFO(os.fstat(2).st_mode):
            # Opened again, because the flag of an open file is shared with other processes that write to it.
            anew = os.open("/dev/fd/2", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.dup2(anew, 2)
            os.close(anew)
    except OSError:
        pass  # a system where a pipe cannot be opened again: `write_log` checks first


def protect_memory() -> None:
    """Protect the key from other processes of this user: this process cannot be traced, and leaves no core file."""
    try:
        import ctypes
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_SET_DUMPABLE, 0, 0, 0, 0)
    except (ImportError, OSError, ValueError, AttributeError, MemoryError):
        pass  # this system, or this build of Python, does not support it


_SET_DUMPABLE = 4  # PR_SET_DUMPABLE of prctl(2)


def leave_starters_pipe(directory: str | None) -> None:
    """If stderr is a pipe or a socket, and not that of systemd's journal, write to `LOG` in ``directory`` instead.

    A process that reads the pipe to its end, as `subprocess.run` does, would wait for this program.
    """
    global _has_log
    status = os.fstat(2)
    is_stream = stat.S_ISFIFO(status.st_mode) or stat.S_ISSOCK(status.st_mode)
    if not is_stream or os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}":
        return
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        log = os.open(os.path.join(directory or os.devnull, LOG), flags, 0o600)
        _has_log = True
        _log.print_with(_append_to_log)
    except OSError:
        log = os.open(os.devnull, os.O_WRONLY)  # messages are lost, but no process waits
    os.dup2(log, 2)
    os.close(log)


def _is_writable(descriptor: int) -> bool:
    if not hasattr(select, "poll"):
        return True  # Windows
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(0))


def write_log(who: str, text: str) -> None:
    """Write a line to stderr, in one piece. Never raises."""
    line = clean(text, _LONGEST_LINE)
    when = ""
    try:
        if _has_log:
            when = time.strftime("%Y-%m-%d %H:%M:%S ")
            _bound_log()
        message = f"{when}letterapp {who} [{os.getpid()}]: {line}".encode()[:_LONGEST_MESSAGE]
        if _is_writable(2):  # otherwise the pipe is full, and the message is dropped
            os.write(2, message + b"\n")
    except OSError:
        pass  # the other end was closed


def _bound_log() -> None:
    if os.fstat(2).st_size > LARGEST_LOG:
        os.ftruncate(2, 0)


def _append_to_log(line: str) -> None:
    """For ``LETTER_DEBUG``. Raises `OSError` if it cannot be written."""
    _bound_log()
    os.write(2, line.encode())


def detach() -> None:
    """Continue in a forked child, in a new session without a terminal; the original process exits."""
    if os.fork():
        os._exit(0)
    os.setsid()


def raise_descriptors() -> None:
    """Raise the limit of file descriptors as far as the system allows: each client process has a connection."""
    try:
        import resource
    except ImportError:
        return  # Windows has no such limit

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (ValueError, OSError):
        pass  # macOS reports "unlimited", and then refuses it


def has_descriptor_for_client() -> bool:
    """True while another connection would leave `RESERVE` descriptors for sending."""
    try:
        import resource

        lowest = os.dup(0)
    except ImportError:
        return True  # Windows has no such limit
    except OSError:
        return False
    os.close(lowest)
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The system uses the lowest free number, so all numbers below this one are in use.
    return limit == resource.RLIM_INFINITY or lowest < limit - min(RESERVE, limit // 4)


def notify(state: str) -> None:
    """Notify systemd as sd_notify(3) does: by a datagram to the socket in ``NOTIFY_SOCKET``."""
    place = os.environ.get("NOTIFY_SOCKET", "")
    if not place:
        return
    if place.startswith("@"):
        place = "\0" + place[1:]
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
    try:
        sock.sendto(state.encode(), place)
    except OSError as problem:
        os.write(2, f"NOTIFY_SOCKET: {problem.strerror}\n".encode())
    finally:
        sock.close()


def read_secret(option: str, path: str) -> SecretBytes:
    """The content of the file ``path``, without surrounding white space. Raises `LetterError` that names ``option``."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            secret = SecretBytes(file.read().strip())
    except OSError as problem:
        raise LetterError(f"{option}: {path}: {problem.strerror or problem}") from None
    if not secret:
        raise LetterError(f"{option}: {path} is empty")
    if os.name == "posix" and stat.S_ISREG(status.st_mode) and status.st_mode & (stat.S_IROTH | stat.S_IWOTH):
        can = "read" if status.st_mode & stat.S_IROTH else "write"
        write_log("relay", f"{option}: every user of this machine can {can} {path}: chmod it to 600")
    return secret


def read_api_key(path: str | None) -> Secret | None:
    """The content of ``--api-key-file``; None to use the environment variable ``LETTER_API_KEY``."""
    return Secret(read_secret("--api-key-file", path).decode("ascii", "replace")) if path else None
