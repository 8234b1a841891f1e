"""Families whose processes all have the client that this module creates, with a relay.

A spawned child imports this module before its job begins, and makes its client there.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from typing import Any

from letterapp import Letter
from programs.common import API, be_patient, child, main
from programs.relays import KEY, statuses

letter: Letter
if __name__ in ("__main__", "__mp_main__"):  # and not where a test imports this
    be_patient()
    letter = Letter(KEY, API, relay=True)


def job(number: int) -> None:
    letter.track("job", "Worked", {"serial": number})
    assert letter.stats()["mode"] == "relay", letter.stats()


def grandparent(number: int) -> None:
    pid = child(lambda: job(number))
    assert os.waitpid(pid, 0)[1] == 0
    code = "from letterapp import Letter; from programs.common import be_patient; be_patient(); "
    code += f"l = Letter({KEY!r}, {API!r}, relay=True); "
    code += f"l.track('job', 'Worked', {{'serial': {number + 100}}})"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def processes(method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    before = statuses()
    jobs = [context.Process(target=job, args=(number,)) for number in range(3)]
    for each in jobs:
        each.start()
    for each in jobs:
        each.join(60)
        assert each.exitcode == 0
    (after,) = statuses()
    assert [after["pid"]] == [one["pid"] for one in before] and after["accepted"] == 3, after


def pool(method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    with context.Pool(2) as workers:
        workers.map(grandparent, range(3), chunksize=1)
        workers.close()
        workers.join()
    (after,) = statuses()
    assert after["accepted"] == 6, after


main(globals())
