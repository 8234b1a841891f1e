"""What CPython's own tests get into every process: a client that has been used, or a thread that does nothing.

Lives here: what a `.pth` file imports at the start of each interpreter, before anything of the program's own. It is
copied into an environment's `site-packages`, with a `letterapp_everywhere.json` beside it. Never here: what a test
makes of that.
"""

import json
import os

with open(os.path.splitext(__file__)[0] + ".json", encoding="utf-8") as _file:
    _told = json.load(_file)
_kept = []  # what the program is not to lose


def _use():
    """Write an event down, and track it. In this order, so that the client's socket has the lowest free number."""
    identity = os.urandom(16).hex()
    journal = os.open(_told["journal"], os.O_WRONLY | os.O_APPEND)
    os.write(journal, identity.encode() + b"\n")
    os.close(journal)
    _kept[0].track("everywhere", "Started", {"pid": os.getpid()}, message_id=identity)


if _told["what"] in ("client", "children"):
    from letterapp import Letter

    _kept.append(Letter("cpython", _told["url"], on_error=lambda error: None))
    _use()
    if os.environ.pop("LETTERAPP_STRESS_TOP", None):
        # The program that runs the tests looks into modules that the sender's thread may be importing.
        _kept[0].flush(60)
        _use()
    if _told["what"] == "children":
        os.register_at_fork(after_in_child=_use)
elif _told["what"] == "thread":
    import _thread
    import threading

    _kept.append(threading.Lock())
    _kept[0].acquire()
    _thread.start_new_thread(_kept[0].acquire, ())
