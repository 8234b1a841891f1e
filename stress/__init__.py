"""Tests what arrives and measures what it costs, in comparison with other clients: ``python -m stress`` in a checkout.

Not part of the wheel. `run` and `all` run scenarios and print a ledger; `bench` measures; `report` shows the results of
both. See docs/stress.md.
"""
