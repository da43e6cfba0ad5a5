"""The broker. It is responsible for a running `nats-server` with JetStream, reached by mutual TLS under the mesh's CA,
that lets in who holds a lease, and each role touch its own subjects and nothing else.

It is not trusted: it may delay or drop, cannot forge, and cannot cause silent loss, because nothing counts until the
ledger acknowledges it. It sees entries only as their issuers sealed them.
"""
