"""A module with a client and a job, as job queues, pools and test runners import one. TEST_OPTIONS are the client's."""

from __future__ import annotations

import json
import os

from programs.common import make

letter = make(**{"flush_interval": 10, **json.loads(os.environ.get("TEST_OPTIONS", "{}"))})


def job(serial: int) -> int:
    letter.track("job", "Worked", {"serial": serial})
    return serial
