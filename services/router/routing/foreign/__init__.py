"""It is responsible for foreign providers: services outside the mesh that policy lists, each by its kind's adapter.

An adapter declares what it verifies. What it verified is an attested session of this router's, logged and listed like a
node's; what it did not is never called verified.
"""
