"""It is responsible for the mesh CA, for named keys, and for the statement that keeps policy fresh.

Trust: trusted for identity and for the keys it releases; every key it releases or refuses, every certificate for
another, every policy version and every revocation is a ledger entry; holds none of the ledger's or a router's signing
keys.

It relies on evidence alone: a certificate or a key goes only to what it has appraised, in this process, under the
operators' signed policy. It never sees prompts, outputs or receipts.
"""
