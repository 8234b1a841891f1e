"""``python -m stress fuzz TARGET``: unusual input, for as long as one likes, with a corpus that grows.

Responsible for: starting the fuzzer in a separate process, its seed, its corpus, its findings. Not responsible for:
what is called and what counts as a finding (`targets`), the values of a call (`values`), the fuzzer's loop (`worker`).

The fuzzer is atheris, which is guided by the branches that an input reaches. If it is not installed, hypothesis makes
the inputs, without any guidance, and the command says so.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

# This module must not import the client: the worker imports this package too, and there atheris must do it.

GRACE = 60.0  # seconds that the fuzzer may run beyond its time before it is killed


def fuzz(options: argparse.Namespace) -> int:
    """Fuzz a target. Returns 1 if there are findings, 2 if the fuzzer itself failed."""
    from ..peers import CHECKOUT
    from .targets import TARGETS

    if options.target not in TARGETS:
        raise ValueError(f"no such target: {options.target}; there are {', '.join(TARGETS)}")
    seed = random.randrange(1, 1 << 31) if options.seed is None else options.seed
    corpus: Path = options.corpus or options.cache / "corpus" / options.target
    findings = corpus.with_name(f"{corpus.name}.findings")
    for directory in (corpus, findings):
        directory.mkdir(parents=True, exist_ok=True)
    initial_inputs = _count(corpus)
    engine = options.engine or ("atheris" if find_spec("atheris") else "hypothesis")
    if engine == "hypothesis" and options.engine is None:
        print(
            "atheris is not installed (pip install -e '.[fuzz]'; there are wheels for Linux): hypothesis makes the "
            "inputs, without guidance by coverage",
            flush=True,
        )
    if not find_spec(engine):
        raise ValueError(f"{engine} is not installed: pip install -e '.[fuzz]' first")
    print(f"fuzz {options.target}: {engine}, seed {seed}, {options.seconds:g} s, {initial_inputs:,} inputs in {corpus}")
    command = [sys.executable, "-m", "stress.fuzz.worker", engine, options.target]
    command += [str(seed), str(options.seconds), str(corpus), str(findings)]
    sys.stdout.flush()
    started = time.time()
    process = subprocess.Popen(command, cwd=str(CHECKOUT))
    try:
        code = process.wait(options.seconds + GRACE)
    except subprocess.TimeoutExpired:
        code = -1
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    found = sorted(path for path in findings.iterdir() if path.stat().st_mtime >= started and path.suffix != ".txt")
    print(f"fuzz {options.target}: {_count(corpus) - initial_inputs:,} new inputs in the corpus, seed {seed}")
    if code:
        print(f"the fuzzer ended with status {code}; if an input caused that, it is in {findings}")
    for path in found:
        text = path.with_suffix(".txt")
        print(f"found: {path}")
        if text.exists():
            print("    " + "\n    ".join(text.read_text(errors="backslashreplace").strip().splitlines()[-6:]))
    return 1 if found else 2 if code else 0


def _count(directory: Path) -> int:
    return sum(1 for path in directory.iterdir() if path.is_file())
