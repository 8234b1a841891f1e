"""What arrives and what it costs, beside other clients: ``python -m stress`` from a checkout, never part of the wheel.

`run` and `all` play scenarios and balance a ledger; `bench` measures; `report` shows both. See docs/stress.md.
"""
