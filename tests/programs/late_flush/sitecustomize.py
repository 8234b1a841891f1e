"""Python runs this at its start, where a test of tests/frameworks puts this directory on PYTHONPATH.

The examples write `Letter()`, as users do, and send each event within a tenth of a second. Here events wait until a
process ends, so that a test shows which ends lose them.
"""

from letterapp import Letter

Letter.__init__.__defaults__ = tuple(
    {50: 10_000, 0.1: 600.0}.get(value, value) if isinstance(value, (int, float)) else value
    for value in Letter.__init__.__defaults__ or ()
)
