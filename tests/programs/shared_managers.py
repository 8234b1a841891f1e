"""Prints the pid of its manager, then that of a spawned process, and of one that cannot reach the manager."""

from __future__ import annotations

import os
import subprocess
import sys

import managers  # of stress/inside


def main(url: str, role: str) -> None:
    print(managers.shared(url).status()["pid"], flush=True)
    if role == "parent":
        again = [sys.executable, *sys.orig_argv[1:-1], "child"]
        subprocess.run(again, check=True)
        os.environ[managers.VARIABLE] = os.environ[managers.VARIABLE].replace("manager-", "gone-")
        subprocess.run(again, check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
