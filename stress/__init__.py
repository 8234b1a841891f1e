"""What the client costs, beside others: ``python -m stress bench`` from a checkout, never part of the wheel."""
