"""What every test relies on: TLS 1.3 only, as in the services, before anything loads gRPC."""

from libs.rpc.hardening import ssl_hardening

ssl_hardening()
