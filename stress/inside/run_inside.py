"""``run_inside.py MODULE ARGUMENT...``: run the part of a scenario that belongs in the client's interpreter.

Responsible for: finding the scenario's module and calling its ``inside``. A child that multiprocessing spawns imports
this file again and finds its job in that module, so the paths are set for it too. Not responsible for: what a scenario
does.
"""

from __future__ import annotations

import importlib
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
for folder in (os.path.join(os.path.dirname(HERE), "scenarios"), HERE):
    if folder not in sys.path:
        sys.path.insert(0, folder)

if __name__ == "__main__":
    import tracker

    tracker.instance()
    importlib.import_module(sys.argv[1]).inside(*sys.argv[2:])
