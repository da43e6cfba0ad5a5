"""It is responsible for the append-only log of receipts and decisions, and for what is promised about it.

Trust: trusted to open tenants' entries and to keep every entry; not trusted to rewrite one: its chain, its signed tree
heads and every reader's resume token would show it.

It trusts the disk for nothing that a hash or a signed size can check, and NATS for transport only. It never sees a
prompt or an output: entries hold their hashes.
"""
