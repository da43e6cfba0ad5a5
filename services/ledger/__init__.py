"""The ledger: it is responsible for the append-only log of receipts and decisions, and for what is promised about it.

It trusts the disk for nothing that a hash or a signed size can check, and NATS for transport only. It never sees a
prompt or an output: entries hold their hashes.
"""
