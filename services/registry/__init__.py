"""It is responsible for who serves what: node leases, the attested sessions that receipts cite, tenant records.

Trust: not trusted: it can hide nodes, not forge them; it cannot freeze policy for longer than five minutes.

Routers appraise every node themselves and verify tenant records under the key that policy names. The registry never
sees prompts or outputs, and holds digests of API keys, never the keys.
"""
