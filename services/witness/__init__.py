"""It is responsible for remembering the newest checkpoint of each log and cosigning only what extends it.

Trust: trusted only together with others: a reader asks for the cosignatures of several that have nobody in common. One
alone can refuse, or cosign two histories; it cannot sign a checkpoint for a log.

It is no member of the mesh, trusts no host of it, and sees sizes and hashes only.
"""
