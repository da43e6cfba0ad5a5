"""It is responsible for what the mesh's operators decided: the policy document, who signed it, and what follows it.

It is pure: bytes and keys in, values out. Every relying service runs it itself, so whoever hands a policy on (the
registry, the KMS, a host's disk) need not be trusted. What the values mean for a piece of evidence is decided in
`libs.tee`.
"""
