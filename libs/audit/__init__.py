"""The offline verifier: what was once judged is judged again, from bytes alone.

It is pure: no network, no clock. What it needs to know stands in the bundle that it is given.
"""
