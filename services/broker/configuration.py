"""It is responsible for the text that nats-server is started with: who may connect, and what each role may touch.

The names of streams and subjects are those of `libs/events`; whatever is not granted here is refused.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from libs.events.subjects import all_issuers, inbox_prefix, stream_name
from services.broker.control import CONTROLS

_LOG_NUMBER = 1
REGISTRY_BUCKETS = ("registry_providers", "registry_sessions", "registry_tenants")
"""NATS has no wildcard for the beginning of a name, so every bucket is named."""

_TLS_SECONDS = 2.0
"""How long a client may take to shake hands. Whoever stalls delays the end of others: no change is read meanwhile."""

_MAX_PAYLOAD_BYTES = 1024 * 1024
_MAX_MEMORY_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Permissions:
    """The subjects that one role may publish to and subscribe to."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What differs from one broker to another."""

    name: str
    host: str
    port: int
    """-1 lets the kernel choose."""
    trust_domain: str
    store: Path
    """Where nats-server makes JetStream's folder."""
    max_store_bytes: int
    credential: Path
    """PEM file with this broker's certificate and key together, so that a renewal replaces both at once."""
    ca: Path
    """PEM file with the mesh CA."""


def permissions() -> Mapping[str, Permissions]:
    """Return what each role may do. A role that is not here cannot connect.

    Each has an inbox of its own, so that none can read another's replies.
    """
    issuing = ("router", "kms", "registry", "job")
    granted = {role: [all_issuers(_LOG_NUMBER)] for role in (*issuing, "ledger")}
    granted["ledger"] += _stream_subjects(stream_name(_LOG_NUMBER))
    # Room is made below what is safe in the log; deleting single messages stays refused by the stream.
    granted["ledger"].append(f"$JS.API.STREAM.PURGE.{stream_name(_LOG_NUMBER)}")
    for bucket in REGISTRY_BUCKETS:
        granted["registry"] += [f"$KV.{bucket}.>", *_stream_subjects(f"KV_{bucket}")]
        # Old sessions, and marks of what was deleted long ago, would fill the store otherwise.
        granted["registry"].append(f"$JS.API.STREAM.PURGE.KV_{bucket}")
    return {
        role: Permissions(publish=tuple(subjects), subscribe=(f"{inbox_prefix(role)}.>",))
        for role, subjects in granted.items()
    }


def render(settings: ServerSettings, keys: Collection[bytes]) -> str:
    """Return the configuration file. Only who shows one of these keys (SHA-256 of its SPKI) gets through TLS."""
    if not keys:
        raise ValueError("nats-server takes no keys at all for any key")
    users = [_user(role, allowed, settings.trust_domain) for role, allowed in permissions().items()]
    control = Permissions(
        publish=tuple(f"$SYS.REQ.SERVER.*.{what}" for what in CONTROLS), subscribe=(f"{inbox_prefix('broker')}.>",)
    )
    configuration = {
        "server_name": settings.name,
        "host": settings.host,
        "port": settings.port,
        "max_payload": _MAX_PAYLOAD_BYTES,
        "jetstream": {
            "store_dir": str(settings.store),
            # An acknowledged publish is on the disk, not only in the page cache.
            "sync_interval": "always",
            "max_mem": _MAX_MEMORY_BYTES,
            "max_file": settings.max_store_bytes,
        },
        "tls": {
            "cert_file": str(settings.credential),
            "key_file": str(settings.credential),
            "ca_file": str(settings.ca),
            "verify_and_map": True,
            "min_version": "1.3",
            # Without it the server greets in plaintext, and a client can be talked out of TLS.
            "handshake_first": True,
            "timeout": _TLS_SECONDS,
            "pinned_certs": sorted(key.hex() for key in keys),
        },
        "accounts": {
            "MESH": {"jetstream": "enabled", "users": users},
            "SYS": {"users": [_user("broker", control, settings.trust_domain)]},
        },
        "system_account": "SYS",
    }
    # JSON is a subset of NATS's configuration language, and escapes what a path may hold.
    return json.dumps(configuration, indent=2) + "\n"


def _user(role: str, allowed: Permissions, trust_domain: str) -> dict[str, object]:
    return {
        # The DNS name in the certificate, which is the role's and so the same for every instance of it.
        "user": f"{role}.{trust_domain}",
        "permissions": {"publish": {"allow": [*allowed.publish]}, "subscribe": {"allow": [*allowed.subscribe]}},
    }


def _stream_subjects(stream: str) -> list[str]:
    """What a client of JetStream publishes to manage one stream and read from it."""
    return [
        "$JS.API.INFO",
        f"$JS.API.STREAM.INFO.{stream}",
        f"$JS.API.STREAM.CREATE.{stream}",
        f"$JS.API.STREAM.UPDATE.{stream}",
        f"$JS.API.STREAM.MSG.GET.{stream}",
        f"$JS.API.DIRECT.GET.{stream}",
        f"$JS.API.DIRECT.GET.{stream}.>",
        f"$JS.API.CONSUMER.CREATE.{stream}",
        f"$JS.API.CONSUMER.CREATE.{stream}.>",
        f"$JS.API.CONSUMER.DURABLE.CREATE.{stream}.>",
        f"$JS.API.CONSUMER.INFO.{stream}.>",
        f"$JS.API.CONSUMER.DELETE.{stream}.>",
        f"$JS.API.CONSUMER.MSG.NEXT.{stream}.>",
        f"$JS.ACK.{stream}.>",
        f"$JS.FC.{stream}.>",
    ]
