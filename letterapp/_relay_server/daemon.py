"""What the processes that send for others have in common: their log, their limits, who started them.

Responsible for: going on without the process that started this one, its log, descriptors for clients, protecting its
memory, reading keys from files, telling systemd. Not responsible for: what it serves (`socket_server`,
`manager_server`), starting it (`launcher`).
"""

from __future__ import annotations

import _socket
import os
import select
import stat
import sys
import time

from .._text import Secret, SecretBytes, clean
from ..errors import LetterError

# Descriptors that clients' connections may not use, because sending needs them: several connection attempts at once, a
# name lookup, certificates, a spool's file.
RESERVE = 16
LOG = "relay.log"  # in the directory of the sockets
_LONGEST_LINE = 4_000  # characters of a line in it
LARGEST_LOG = 1_048_576  # bytes; a larger one is truncated


_has_log = False  # stderr is `LOG`
_LONGEST_MESSAGE = 4000  # bytes: less than what a pipe takes in one piece, or not at all


def keep_stderr_from_blocking() -> None:
    """Have a message be lost, rather than this program stand still, where stderr is a pipe that nobody reads."""
    try:
        if stat.S_ISFIFO(os.fstat(2).st_mode):
            # Opened anew, because the flag of the old one is that of whoever else writes there.
            anew = os.open("/dev/fd/2", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.dup2(anew, 2)
            os.close(anew)
    except OSError:
        pass  # a system that opens no pipe anew: `write_log` looks first


def protect_memory() -> None:
    """Keep the key from others of this user and from files: nobody may trace this process, and it leaves no core."""
    try:
        import ctypes
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_SET_DUMPABLE, 0, 0, 0, 0)
    except (ImportError, OSError, ValueError, AttributeError, MemoryError):
        pass  # a system, or a Python, that has no such thing


_SET_DUMPABLE = 4  # PR_SET_DUMPABLE of prctl(2)


def leave_starters_pipe(directory: str | None) -> None:
    """Go on writing to `LOG` in ``directory`` where stderr is a pipe or a socket, and not the journal's.

    Somebody may read that to its end, as `subprocess.run` does, and would wait for this program.
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
    except OSError:
        log = os.open(os.devnull, os.O_WRONLY)  # what is said is lost, and nobody waits
    os.dup2(log, 2)
    os.close(log)


def _is_writable(descriptor: int) -> bool:
    if not hasattr(select, "poll"):
        return True  # Windows
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(0))


def write_log(who: str, text: str) -> None:
    """A line to the stderr of this program, in one piece. Never raises."""
    line = clean(text, _LONGEST_LINE)
    when = ""
    try:
        if _has_log:
            when = time.strftime("%Y-%m-%d %H:%M:%S ")
            if os.fstat(2).st_size > LARGEST_LOG:
                os.ftruncate(2, 0)
        message = f"{when}letterapp {who} [{os.getpid()}]: {line}".encode()[:_LONGEST_MESSAGE]
        if _is_writable(2):  # else what it writes to is full, and nobody waits for a message
            os.write(2, message + b"\n")
    except OSError:
        pass  # who started it has closed what it wrote to


def detach() -> None:
    """Go on as nobody's child, in a session without a terminal."""
    if os.fork():
        os._exit(0)
    os.setsid()


def raise_descriptors() -> None:
    """Allow as many descriptors as the system lets this user have: there is a connection a process."""
    try:
        import resource
    except ImportError:
        return  # Windows has no such limit

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (ValueError, OSError):
        pass  # macOS calls "without limit" what it then refuses


def has_descriptor_for_client() -> bool:
    """True while a connection more leaves `RESERVE` descriptors for sending."""
    try:
        import resource

        lowest = os.dup(0)
    except ImportError:
        return True  # Windows has no such limit
    except OSError:
        return False
    os.close(lowest)
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The system gives the lowest number that is free. So with the numbers below this one all taken by clients and the
    # program itself, those above it are never given to a client.
    return limit == resource.RLIM_INFINITY or lowest < limit - min(RESERVE, limit // 4)


def notify(state: str) -> None:
    """Tell systemd (sd_notify(3)): a datagram to the socket that it names."""
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
    """The content of the file that ``option`` names, without white space around it; `LetterError` if there is none."""
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
    """The content of ``--api-key-file``; None for the variable LETTER_API_KEY."""
    return Secret(read_secret("--api-key-file", path).decode("ascii", "replace")) if path else None
