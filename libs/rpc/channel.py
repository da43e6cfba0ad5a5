"""It is responsible for connections to other services: a pinned root, a fixed name, and nothing else believed.

gRPC gives a client no sight of the server's certificate, so whoever wants to appraise a server takes its leaf by a
handshake first (`fetch_leaf`) and then pins that leaf as the channel's only root.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Sequence

import grpc
import grpc.aio

from libs.errors import Code, MeshError
from libs.rpc.address import parse_address
from libs.rpc.tls import load_client_context, trusting_context

MESSAGE_BYTES = 4 * 1024 * 1024


class PeerUnreachable(MeshError):
    """No TLS 1.3 handshake with an acceptable certificate came about."""

    code = Code.UNAVAILABLE
    reason = "PEER_UNREACHABLE"


class CertificateRefused(PeerUnreachable):
    """Somebody answered, with a certificate that is not to be accepted there."""


def open_channel(
    target: str,
    *,
    root_pem: bytes,
    server_name: str,
    key_pem: bytes | None = None,
    certificate_pem: bytes | None = None,
    idempotent: Sequence[str] = (),
    answer_bytes: int = MESSAGE_BYTES,
) -> grpc.aio.Channel:
    """Return a channel to "host:port" that accepts only a server named `server_name` under `root_pem`.

    `idempotent` are full method names that gRPC may try again by itself while the server is unavailable. A message of
    an answer may have `answer_bytes`: gRPC refuses a larger one as RESOURCE_EXHAUSTED. The caller closes the
    channel; it is an async context manager.
    """
    credentials = grpc.ssl_channel_credentials(root_pem, key_pem, certificate_pem)
    options: list[tuple[str, str | int]] = [
        ("grpc.ssl_target_name_override", server_name),
        # Channels to one target with different keys or pins must not share a connection.
        ("grpc.use_local_subchannel_pool", 1),
        # The environment must not lead the mesh through a proxy.
        ("grpc.enable_http_proxy", 0),
        ("grpc.max_receive_message_length", answer_bytes),
        ("grpc.max_send_message_length", MESSAGE_BYTES),
        # Pings only while a call runs: a stream must notice that its server vanished.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        ("grpc.service_config", _service_config(idempotent)),
    ]
    return grpc.aio.secure_channel(target, credentials, options=options)


async def fetch_leaf(
    target: str,
    *,
    server_name: str,
    timeout: float,
    ca_pem: bytes | None = None,
    key_pem: bytes | None = None,
    certificate_pem: bytes | None = None,
) -> bytes:
    """Return the leaf (DER) of the server at "host:port" from a TLS 1.3 handshake, which proves that it holds the key.

    With `ca_pem` the leaf was also issued by that CA for `server_name`. Without, any certificate comes back: the caller
    MUST appraise it before it believes anything. Raises `PeerUnreachable`, of which `CertificateRefused` is one, and
    `AddressMalformed`.
    """
    address = parse_address(target)
    if ca_pem is None:
        context = trusting_context()
    else:
        context = load_client_context(ca_pem=ca_pem, key_pem=key_pem, certificate_pem=certificate_pem)
    context.set_alpn_protocols(["h2"])
    try:
        async with asyncio.timeout(timeout):
            _, writer = await asyncio.open_connection(
                address.host, address.port, ssl=context, server_hostname=server_name
            )
    except TimeoutError as error:
        raise PeerUnreachable(f"{target} did not answer within {timeout:g} s") from error
    except ssl.SSLCertVerificationError as error:
        raise CertificateRefused(f"{target} shows a certificate not to accept: {error.verify_message}") from error
    except (OSError, ValueError) as error:
        # No name to a resolver (an empty or overlong label, a NUL) is a `ValueError`.
        words = getattr(error, "strerror", None) or error.__class__.__name__
        raise PeerUnreachable(f"cannot reach {target!r}: {words}") from error
    session: ssl.SSLObject = writer.get_extra_info("ssl_object")
    leaf = session.getpeercert(binary_form=True)
    # All that was wanted is here; an orderly close would wait for the other side.
    writer.transport.abort()
    if leaf is None:
        raise PeerUnreachable(f"{target} shows no certificate")
    return leaf


def _service_config(idempotent: Sequence[str]) -> str:
    names = [dict(zip(("service", "method"), method.strip("/").split("/"), strict=True)) for method in idempotent]
    if not names:
        return "{}"
    retry = {
        "maxAttempts": 4,
        "initialBackoff": "0.1s",
        "maxBackoff": "2s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    return json.dumps({"methodConfig": [{"name": names, "retryPolicy": retry}]})
