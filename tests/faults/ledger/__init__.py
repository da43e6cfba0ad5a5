"""The ledger's twenty faults, each with what must come of it: `python -m tests.faults.ledger`, or `make faults`."""
