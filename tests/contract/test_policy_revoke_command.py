"""`teemesh policy revoke` and `revocations` against a KMS: what an operator signs counts, and is shown to them."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console

from libs.errors import MeshError
from libs.identity.certificate import Subject, key_pem, pem_of
from libs.policy.revocation import Revocation, RevocationKind, SignedRevocation, sign_revocation
from services.cli.policy.revoke import print_revocations, read_revocations, revoke
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh, KmsCore
from tests.fakes.running_kms import RunningKms, running_kms

TENANT = "12" * 16


@pytest.fixture
async def running(mesh: JoinedMesh, kms: KmsCore) -> AsyncIterator[RunningKms]:
    async with running_kms(mesh, kms) as kms_service:
        yield kms_service


@pytest.fixture
def described(running: RunningKms, tmp_path: Path) -> Path:
    """A mesh.json with what these commands need."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = running.core.ca.issue_svid(
        Subject(TRUST_DOMAIN, "operator", "ada", None), key.public_key(), time.time()
    )
    files = {
        "mesh_ca": running.member.ca_pem,
        "operator_cert": pem_of(certificate),
        "operator_key": key_pem(key),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    path = tmp_path / "mesh.json"
    members = {"kms_grpc": running.target, "trust_domain": TRUST_DOMAIN, **{name: name for name in files}}
    path.write_text(json.dumps(members))
    return path


def signed_by(key: Ed25519PrivateKey) -> SignedRevocation:
    return sign_revocation(Revocation(TRUST_DOMAIN, RevocationKind.TENANT, TENANT, "left", 1_800_000_000_000), key)


async def test_what_one_operator_revokes_counts_and_is_listed(
    mesh: JoinedMesh, running: RunningKms, described: Path
) -> None:
    signed = signed_by(mesh.operators[2])
    assert await revoke(signed, described, 10) == 1
    assert running.core.policy.current.revoked.tenants == {TENANT}
    known = await read_revocations(described, 10)
    assert known.revocations == (signed,)
    console = Console(record=True)
    print_revocations(known, console)
    shown = console.export_text()
    for part in (f"tenant {TENANT}: in force", "left", signed.key.hex(), signed.revocation.id.hex(), "version 1"):
        assert part in shown


async def test_what_is_lifted_or_doubtful_is_marked(mesh: JoinedMesh, running: RunningKms, described: Path) -> None:
    signed = signed_by(mesh.operators[2])
    await revoke(signed, described, 10)
    lifting = mesh.successor(running.core.policy.current, lifted_revocations=[signed.revocation.id.hex()])
    running.core.policy.accept(lifting)
    known = await read_revocations(described, 10)
    console = Console(record=True)
    print_revocations(known, console)
    print_revocations(replace(known, revocations=(replace(signed, signature=bytes(64)),)), console)
    shown = console.export_text()
    assert "lifted" in shown
    assert "REVOCATION_SIGNATURE_INVALID" in shown


async def test_a_strangers_revocation_is_refused_with_the_kms_reason(running: RunningKms, described: Path) -> None:
    with pytest.raises(MeshError) as error:
        await revoke(signed_by(Ed25519PrivateKey.generate()), described, 10)
    assert error.value.reason == "REVOCATION_SIGNATURE_INVALID"
