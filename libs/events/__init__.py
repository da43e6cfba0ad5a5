"""What the mesh writes to its ledger: sealed records, their way there, and the proof that they arrived.

It is responsible for the issuer's side (seal, batch, outbox, publish until acknowledged) and for reading the stream on
the ledger's side. NATS is transport and is not trusted: it may delay or drop. Nothing counts until the ledger's own
acknowledgement verifies.
"""
