"""It is responsible for the client-facing ACI service: authenticate, select, forward, hash, sign, release when logged.

It trusts the policy's signatures, the evidence that it appraises itself, and the ledger's acknowledgement key as its
evidence names it. It does not trust the registry or the broker: they can hide nodes and delay records, not forge them.

It sees plaintext, inside its TEE. Clients need not take its word for that: they verify it by its attestation report.
"""
