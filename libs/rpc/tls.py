"""It is responsible for TLS outside gRPC: contexts for clients of the mesh (NATS, HTTPS, handshakes), TLS 1.3 only."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Mapping

_MISSING_EXTENSION = 109
"""The alert for a client that names no host where one is required (RFC 8446, sections 6.2 and 9.2)."""


class ServerContext(ssl.SSLContext):
    """A listener's context, of one key."""

    hosts: frozenset[str] | None = None
    """The hosts that its certificate is for, where its connections may serve no others."""


def load_client_context(
    *, ca_pem: bytes, key_pem: bytes | None = None, certificate_pem: bytes | None = None
) -> ssl.SSLContext:
    """Return a context that believes `ca_pem` alone and shows the given certificate, if any."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # Requires a certificate and checks its name.
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=ca_pem.decode("ascii"))
    if key_pem is not None and certificate_pem is not None:
        show(context, key_pem=key_pem, certificate_pem=certificate_pem)
    return context


def trusting_context() -> ssl.SSLContext:
    """Return a context that accepts any certificate, to look at it: nothing said over such a connection counts."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def show(context: ssl.SSLContext, *, key_pem: bytes, certificate_pem: bytes) -> None:
    """Show this certificate in every handshake that begins from now on."""
    # OpenSSL's binding reads keys from files only; this one lives in memory and is gone with its descriptor.
    descriptor = os.memfd_create("teemesh-credential", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(key_pem.rstrip() + b"\n" + certificate_pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def load_server_context(*, key_pem: bytes, certificate_pem: bytes) -> ServerContext:
    """Return a context for an HTTPS listener that asks for no client certificate."""
    context = _server_context()
    show(context, key_pem=key_pem, certificate_pem=certificate_pem)
    return context


def named_contexts(named: Mapping[str, ssl.SSLContext], default: ssl.SSLContext | None) -> ssl.SSLContext:
    """Return a context for a listener that goes on under the one of the host that a client names (RFC 6066, section 3),
    and under `default` with a client that names none. Names are in lower case.

    A client that names another host is refused by `unrecognized_name`; one that names none, where there is no default,
    by `missing_extension`: no certificate is shown to either. What changes in one of them holds for the handshakes that
    begin then.
    """

    def switch(session: ssl.SSLSocket | ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> int | None:
        chosen = default if name is None else named.get(name.lower())
        if chosen is None:
            return _MISSING_EXTENSION if name is None else ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        session.context = chosen
        return None

    listener = _server_context()
    listener.sni_callback = switch
    return listener


def served_hosts(transport: asyncio.BaseTransport | None) -> frozenset[str] | None:
    """Return the hosts that requests on a connection may be for; None where it serves every host."""
    session = None if transport is None else transport.get_extra_info("ssl_object")
    # It is the one that the handshake went on under, not the listener's.
    context = None if session is None else session.context
    return context.hosts if isinstance(context, ServerContext) else None


def _server_context() -> ServerContext:
    context = ServerContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context
