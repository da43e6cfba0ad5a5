"""A complete policy as a plain value, for tests to damage, and the keys of those who sign it."""

from __future__ import annotations

import datetime
import hashlib
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

NOW = 1_800_000_000


def _root() -> bytes:
    key = ec.derive_private_key(7, ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "development vendor root")])
    start = datetime.datetime.fromtimestamp(NOW - 86400, datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, start, start + datetime.timedelta(days=3650))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def _hex(label: str, octets: int) -> str:
    return hashlib.shake_256(label.encode()).hexdigest(octets)


def _measurement(role: str) -> dict[str, str]:
    return {
        "compose_hash": _hex(f"compose {role}", 32),
        "app_id": _hex(f"app {role}", 20),
        "os_image_hash": _hex("image", 32),
        "key_provider": _hex("provider", 32),
        **{register: _hex(register, 48) for register in ("mrtd", "rtmr0", "rtmr1", "rtmr2")},
    }


@pytest.fixture
def operators() -> list[Ed25519PrivateKey]:
    return [Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in range(1, 6)]


@pytest.fixture
def tenant_admin() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(b"t" * 32)


@pytest.fixture
def draft(operators: list[Ed25519PrivateKey], tenant_admin: Ed25519PrivateKey) -> dict[str, Any]:
    """Version 1 of a mesh with operators 0, 1 and 2, two of whom must sign; valid for a day from `NOW`."""
    return {
        "v": 1,
        "version": 1,
        "previous": "0" * 64,
        "not_before": NOW,
        "not_after": NOW + 86400,
        "trust_domain": "mesh.local",
        "operators": {"keys": [key.public_key().public_bytes_raw().hex() for key in operators[:3]], "threshold": 2},
        "vendor_roots": [{"name": "devtee", "tee_type": "tdx", "certificate": _root().hex(), "development": True}],
        "tcb": {
            "statuses": ["UpToDate"],
            "refused_advisories": [],
            "grace_seconds": 0,
            "minimum_evaluation_number": 0,
            "maximum_collateral_age_seconds": 86400,
        },
        "td_attributes": ["0000001000000000"],
        "devices": {"allowed": [], "revoked": [_hex("stolen", 32)]},
        "roles": {
            role: {"measurements": [_measurement(role)], "gpu_required": False} for role in ("kms", "ledger", "node")
        },
        "models": {"smollm2-135m": [_hex("weights", 32)]},
        "key_releases": [
            {"name": "ledger-keyring", "roles": ["ledger"]},
            {"name": "ledger-vault/*", "roles": ["ledger"]},
            {"name": "models/smollm2-135m", "roles": ["node"]},
            {"name": "data/*", "roles": ["node", "router"]},
        ],
        "tenant_admin_key": tenant_admin.public_key().public_bytes_raw().hex(),
        "challenge_max_age_seconds": 3900,
        "evidence_max_age_seconds": 3900,
        "revocations": [],
    }
