"""The Python client. It is responsible for verifying a router before it gets a prompt, and its answer afterwards.

It trusts the operators' keys that its user names, and nothing that a network, a host or the router itself says beyond
what those keys, hardware evidence and the ledger's proofs support. What judges (`attestation`, `serving`, `commitment`,
`ledger`, `checks`, `standing`) is pure, and so is what keeps an exchange (`exchange_file`); `session` talks to the
router.
"""
