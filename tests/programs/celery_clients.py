"""The clients of the tasks in programs/celery_jobs.py, created before it imports Celery.

What `slow` holds leaves only when the process ends.
"""

from __future__ import annotations

import os

import letterapp  # a test may have replaced it with its own class instead of its `Letter`

API = os.environ["TEST_API"]

slow = letterapp.Letter("k", API, flush_interval=3600, flush_at=10_000, exit_timeout=25)
quick = letterapp.Letter("k", API, flush_interval=0.02, exit_timeout=25)
for letter, name in (slow, "slow at import"), (quick, "quick at import"):
    letter.track(name, "Imported", {"serial": os.getpid()})
