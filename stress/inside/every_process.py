"""Imported at the start of every interpreter that CPython's tests run in: a used client, or a thread that does nothing.

Responsible for: what a `.pth` file imports before any of the program's own modules. `stress.cpython` copies this file
into the `site-packages` of an environment, beside a `letterapp_everywhere.json`. Not responsible for: what a test
makes of it.
"""

import json
import os

with open(os.path.splitext(__file__)[0] + ".json", encoding="utf-8") as _file:
    _config = json.load(_file)

# No import of `typing`, and none that only one of the modes needs: a test may depend on which modules are loaded.
if _config["what"] in ("client", "children"):
    from letterapp import Letter

    _client = Letter("cpython", _config["url"], on_error=lambda error: None)

    def _use() -> None:
        """Log an event, then track it. In this order, so that the client's socket has the lowest free descriptor."""
        identity = os.urandom(16).hex()
        journal = os.open(_config["journal"], os.O_WRONLY | os.O_APPEND)
        os.write(journal, identity.encode() + b"\n")
        os.close(journal)
        _client.track("everywhere", "Started", {"pid": os.getpid()}, message_id=identity)

    _use()
    if os.environ.pop("LETTERAPP_STRESS_TOP", None):
        # The program that runs the tests inspects modules that the sender's thread may still be importing.
        _client.flush(60)
        _use()
    if _config["what"] == "children":
        os.register_at_fork(after_in_child=_use)
elif _config["what"] == "thread":
    import _thread
    import threading

    _lock = threading.Lock()
    _lock.acquire()
    _thread.start_new_thread(_lock.acquire, ())
