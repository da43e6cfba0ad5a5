"""The transparency log's formats: leaf, chain, Merkle tree, checkpoint, acknowledgement and resume token.

It is responsible for the bytes that a log and whoever checks it must agree on. It does no I/O, so that the writer, the
auditor and an outside verifier can each use it alone. Integers are big-endian and unsigned throughout; reserved bytes
are zero and anything else is damage.
"""
