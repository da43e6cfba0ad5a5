"""The processes of the mesh, one folder each. They meet on the wire, never by import.

Whatever starts here speaks TLS 1.3 only: this package is imported before any module of a service can load gRPC.
"""

from libs.rpc.hardening import ssl_hardening

ssl_hardening()
