"""Side-by-side measurements of what the mesh costs: `python -m tests.bench`. Nothing here asserts a time."""

from libs.rpc.hardening import ssl_hardening

# As in the services, before anything below loads gRPC.
ssl_hardening()
