"""`teemesh tenants` against a real KMS and a registry that lies: what it gives out counts only under the signature."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.errors import MeshError
from libs.policy.tenant_record import TenantRecord, unrestricted
from libs.policy.tenants import TenantSignatureInvalid, sign_tenant, verify_tenant
from services.cli.mesh.registry_access import ListingEndless
from services.cli.tenants.access import TenantAccess, TenantForeign
from services.cli.tenants.command import add_parser
from tests.fakes.joined_mesh import JoinedMesh
from tests.fakes.operators_mesh import OperatorsMesh, operators_mesh

SECONDS = 10.0
RECORD = TenantRecord("ab" * 16, 1, "Acme", unrestricted("11" * 32))


@pytest.fixture
async def running(mesh: JoinedMesh, tmp_path: Path) -> AsyncIterator[OperatorsMesh]:
    async with operators_mesh(mesh, tmp_path) as running:
        yield running


@pytest.fixture
def admin(running: OperatorsMesh) -> Ed25519PrivateKey:
    """Whom the policy in force names."""
    return running.joined.operators[0]


def give_out(running: OperatorsMesh, record: TenantRecord, signer: Ed25519PrivateKey, under: str = "") -> None:
    running.tenants.records[bytes.fromhex(under or record.tenant_id)] = sign_tenant(record, signer)


def others(number: int) -> TenantRecord:
    return replace(RECORD, tenant_id=f"{number:032x}")


async def test_what_the_administrator_signed_is_read_page_by_page(
    running: OperatorsMesh, admin: Ed25519PrivateKey
) -> None:
    for number in range(5):
        give_out(running, others(number), admin)
    listed = await TenantAccess(running.mesh, SECONDS).all()
    assert [each.record for each in listed] == [others(number) for number in range(5)]
    assert await TenantAccess(running.mesh, SECONDS).one(others(3).tenant_id) == others(3)


async def test_what_an_operator_signed_is_shown_as_nobodys_record(
    running: OperatorsMesh, admin: Ed25519PrivateKey, capsys: pytest.CaptureFixture[str]
) -> None:
    give_out(running, others(1), admin)
    give_out(running, others(2), running.joined.operators[1])
    with pytest.raises(TenantSignatureInvalid):
        await TenantAccess(running.mesh, SECONDS).one(others(2).tenant_id)
    assert await run(running, "list", "--json") == 1
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [record.get("refused") for record in said] == [None, "TENANT_SIGNATURE_INVALID"]


async def test_another_tenants_genuine_record_is_not_taken_for_it(
    running: OperatorsMesh, admin: Ed25519PrivateKey
) -> None:
    give_out(running, others(1), admin, under=others(2).tenant_id)
    with pytest.raises(TenantForeign):
        await TenantAccess(running.mesh, SECONDS).one(others(2).tenant_id)


async def test_a_registry_that_goes_on_giving_pages_is_not_believed(running: OperatorsMesh) -> None:
    running.tenants.endless = True
    with pytest.raises(ListingEndless):
        await TenantAccess(running.mesh, 60.0).all()


async def test_a_record_under_another_key_never_reaches_the_registry(
    running: OperatorsMesh, admin: Ed25519PrivateKey, tmp_path: Path
) -> None:
    with pytest.raises(MeshError) as refused:
        await run(running, "create", "Acme", "--sign-key", str(key_file(tmp_path, running.joined.operators[1])))
    assert refused.value.reason == "TENANT_SIGNATURE_INVALID"
    assert running.tenants.put == []
    assert await run(running, "create", "Acme", "--sign-key", str(key_file(tmp_path, admin))) == 0
    (signed,) = running.tenants.put
    assert verify_tenant(signed, admin.public_key().public_bytes_raw()).name == "Acme"


async def run(running: OperatorsMesh, *arguments: str) -> int:
    """Run a command, which has an event loop of its own, beside the services that it asks."""
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(["tenants", *arguments, "--mesh", str(running.mesh)])
    command: Callable[[argparse.Namespace], int] = args.run
    return await asyncio.to_thread(command, args)


def key_file(folder: Path, key: Ed25519PrivateKey) -> Path:
    path = folder / "admin.pem"
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))
    path.chmod(0o600)
    return path
