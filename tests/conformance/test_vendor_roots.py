"""The root certificate that vendors publish is the one that policy takes for hardware."""

from __future__ import annotations

import datetime
import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from libs.policy.compose import Anchors
from libs.policy.document import PolicyMalformed, read
from libs.policy.hardware import PUBLISHED_VENDOR_ROOTS
from services.cli.policy.composes import render_compose
from services.cli.policy.draft import draft_policy
from services.cli.policy.reference import DeployedCompose, Reference

FIXTURES = os.environ.get("TEEMESH_FIXTURES")
KEYS = (b"k" * 32,)

pytestmark = [
    pytest.mark.conformance,
    pytest.mark.skipif(FIXTURES is None, reason="TEEMESH_FIXTURES names no folder of fixtures"),
]


@pytest.fixture
def intel_root() -> bytes:
    return (Path(FIXTURES or "") / "quotes" / "dcap-qvl" / "intel_sgx_root_ca.der").read_bytes()


@pytest.fixture
def hardware(intel_root: bytes) -> Reference:
    digests = dict.fromkeys(("os_image_hash", "key_provider"), "0a" * 32)
    registers = dict.fromkeys(("mrtd", "rtmr0", "rtmr1", "rtmr2"), "0b" * 48)
    return Reference(
        intel_root,
        False,
        "0000001000000000",
        gpu=None,
        app_ids={},
        device_id=None,
        kms_public_key=None,
        **digests,
        **registers,
    )


def _draft(*references: Reference) -> dict[str, Any]:
    text = render_compose(Anchors("kms", "mesh.example.org", KEYS, 1), "ab" * 32)
    return draft_policy(
        trust_domain="mesh.example.org",
        operator_keys=KEYS,
        threshold=1,
        tenant_admin_key=b"t" * 32,
        references=references,
        composes=[DeployedCompose(text)],
        models={},
        now=1_800_000_000,
    )


def test_intels_published_root_is_hardware(intel_root: bytes, hardware: Reference) -> None:
    assert hashlib.sha256(intel_root).digest() in PUBLISHED_VENDOR_ROOTS["tdx"]
    assert read(_draft(hardware)).development_roots == ()


def test_hardware_does_not_mix_with_a_software_tee(hardware: Reference) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "development vendor root")])
    start = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, start, start + datetime.timedelta(days=1))
    root = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    with pytest.raises(PolicyMalformed, match="must not mix"):
        _draft(hardware, replace(hardware, vendor_root=root, development=True))
