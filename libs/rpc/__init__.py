"""It is responsible for how every service serves and calls: server life, channels, middleware, deadlines, errors.

Nothing is imported here, so that `libs.rpc.hardening` can run before gRPC is loaded.
"""
