"""The other side of the parsers: attestations and certificates as dstack writes them, each part open to change."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any

import msgpack
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from libs.tee import binding
from services.devtee import der
from services.devtee.eventlog import Event
from services.devtee.machine import VirtualTd

# The library has no types of its own.
messagepack: Any = msgpack

ARC = "1.3.6.1.4.1.62397.1"
NOW = 1_790_000_000
DAY = 24 * 3600


_APP_CA = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "foreign App CA")])


@dataclass(frozen=True, slots=True)
class AppCa:
    """Who issues the certificates of one application."""

    key: ec.EllipticCurvePrivateKey
    der: bytes

    @classmethod
    @cache
    def of(cls, name: str, *, is_authority: bool = True) -> AppCa:
        """Make it, once for each name."""
        key = ec.generate_private_key(ec.SECP256R1())
        start, end = datetime.fromtimestamp(NOW - 9 * DAY, UTC), datetime.fromtimestamp(NOW + 9 * DAY, UTC)
        builder = x509.CertificateBuilder(_APP_CA, _APP_CA, key.public_key(), 1, start, end)
        constraints = x509.BasicConstraints(ca=is_authority, path_length=None)
        made = builder.add_extension(constraints, critical=True).sign(key, hashes.SHA256())
        return cls(key, made.public_bytes(Encoding.DER))


@dataclass(frozen=True, slots=True)
class Subject:
    """A key that wants a certificate."""

    key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls) -> Subject:
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @property
    def spki(self) -> bytes:
        return self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    @property
    def report_data(self) -> bytes:
        return binding.ratls_report_data(self.spki)

    def certificate(
        self,
        extensions: Iterable[x509.UnrecognizedExtension],
        *,
        not_before: int = NOW - DAY,
        not_after: int = NOW + DAY,
        critical: bool = False,
        issuer: AppCa | None = None,
    ) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(_APP_CA)
            .public_key(self.key.public_key())
            .serial_number(1)
            .not_valid_before(datetime.fromtimestamp(not_before, UTC))
            .not_valid_after(datetime.fromtimestamp(not_after, UTC))
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign((issuer or AppCa.of("App CA")).key, hashes.SHA256()).public_bytes(Encoding.DER)


def extension(last_arc: int, content: bytes) -> x509.UnrecognizedExtension:
    """One of dstack's: an OCTET STRING inside the one that every extension has."""
    return raw_extension(last_arc, der.octets(content))


def raw_extension(last_arc: int, value: bytes) -> x509.UnrecognizedExtension:
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(f"{ARC}.{last_arc}"), value)


def legacy_log(events: Sequence[Event]) -> bytes:
    return json.dumps([event.to_json() for event in events]).encode()


def compressed(text: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=31)
    return b"ELGZv1" + deflater.compress(text) + deflater.flush()


def message(td: VirtualTd, report_data: bytes) -> dict[str, Any]:
    """The document of a version 1 attestation, numbers lists where dstack writes byte strings as such."""
    return {
        "version": 1,
        "platform": {
            "kind": "tdx",
            "data": {"quote": list(td.quote(report_data)), "event_log": [_event(event) for event in td.events]},
        },
        "stack": {
            "kind": "dstack",
            "data": {
                "report_data": list(report_data),
                "runtime_events": [{"event": event.name, "payload": event.payload} for event in td.runtime_events],
                "config": td.machine.image.vm_config,
            },
        },
    }


def packed(value: Any) -> bytes:
    blob: bytes = messagepack.packb(value)
    return blob


def _event(event: Event) -> dict[str, Any]:
    return {
        "imr": event.imr,
        "event_type": event.event_type,
        "digest": event.digest,
        "event": event.name,
        "event_payload": event.payload,
    }
