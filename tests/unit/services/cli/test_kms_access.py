"""An operator reaches whichever instance of the KMS is there, and no command that talks to it knows only one."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from teemesh.kms.v1 import kms_pb2, kms_pb2_grpc

from libs.errors import MeshError
from libs.identity.certificate import Subject, key_pem, pem_of
from libs.policy.revocation import Revocation, RevocationKind, sign_revocation
from libs.policy.signatures import parse_signed
from services.cli.kms.keys import _rotate
from services.cli.mesh.kms_access import KmsAccess, read_kms_access
from services.cli.mesh.layout import Layout
from services.cli.mesh.operator_certificate import obtain_certificate
from services.cli.policy.publish import publish_policy
from services.cli.policy.revoke import read_revocations, revoke
from services.cli.terminal.inputs import InputUnreadable
from tests.fakes.joined_fixtures import kms, machine, mesh
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh, KmsCore
from tests.fakes.running_kms import RunningKms, running_kms

__all__ = ["kms", "machine", "mesh"]

NOBODY = "127.0.0.1:9"
TENANT = "12" * 16

Describe = Callable[[object], Path]


@dataclass(slots=True)
class Silent:
    """An address where somebody accepts connections and says nothing."""

    target: str = ""
    connections: list[asyncio.StreamWriter] = field(default_factory=list)


@asynccontextmanager
async def silent() -> AsyncIterator[Silent]:
    there = Silent()
    server = await asyncio.start_server(lambda _, writer: there.connections.append(writer), "127.0.0.1", 0)
    there.target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield there
    finally:
        server.close()
        for writer in there.connections:
            writer.transport.abort()


@pytest.fixture
async def running(mesh: JoinedMesh, kms: KmsCore) -> AsyncIterator[RunningKms]:
    async with running_kms(mesh, kms) as service:
        yield service


@pytest.fixture
def describe(running: RunningKms, tmp_path: Path) -> Describe:
    """Write a mesh.json with what stands for `kms_grpc` there."""
    key = ec.generate_private_key(ec.SECP256R1())
    ada = Subject(TRUST_DOMAIN, "operator", "ada", None)
    certificate = running.core.ca.issue_svid(ada, key.public_key(), time.time())
    files = {"mesh_ca": running.member.ca_pem, "operator_cert": pem_of(certificate), "operator_key": key_pem(key)}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)

    def write(kms_grpc: object) -> Path:
        path = tmp_path / "mesh.json"
        names = {name: name for name in files}
        path.write_text(json.dumps({"kms_grpc": kms_grpc, "trust_domain": TRUST_DOMAIN, **names}))
        return path

    return write


async def version(stub: kms_pb2_grpc.KmsServiceStub, timeout: float) -> int:
    answer = await stub.GetPolicy(kms_pb2.GetPolicyRequest(), timeout=timeout)
    return parse_signed(answer.signed_policy).policy.version


async def refusal(access: KmsAccess, seconds: float = 20) -> str:
    with pytest.raises(MeshError) as error:
        await access.ask(version, seconds)
    return error.value.reason


async def test_one_address_as_older_files_have_it_is_read(running: RunningKms, describe: Describe) -> None:
    assert await read_kms_access(describe(running.target)).ask(version, 20) == 1


@pytest.mark.parametrize("targets", [[], "", [""], None, ["127.0.0.1:1", 2]])
def test_what_names_no_addresses_is_refused(describe: Describe, targets: object) -> None:
    with pytest.raises(InputUnreadable, match="no usable kms_grpc"):
        read_kms_access(describe(targets))


async def test_a_dead_or_silent_instance_leaves_the_next_one_time_to_answer(
    running: RunningKms, describe: Describe, capsys: pytest.CaptureFixture[str]
) -> None:
    async with silent() as first:
        access = read_kms_access(describe([first.target, NOBODY, running.target]))
        assert await access.ask(version, 12) == 1
        assert first.connections
        said = capsys.readouterr().err
        assert f"no answer from the KMS at {first.target}" in said
        assert f"no answer from the KMS at {NOBODY}" in said
        assert running.target not in said


async def test_an_answer_is_not_asked_for_twice_be_it_a_refusal(running: RunningKms, describe: Describe) -> None:
    async def ask(stub: kms_pb2_grpc.KmsServiceStub, timeout: float) -> None:
        await stub.GetPolicy(kms_pb2.GetPolicyRequest(version=7), timeout=timeout)

    async with silent() as second:
        access = read_kms_access(describe([running.target, second.target]))
        assert await access.ask(version, 20) == 1
        with pytest.raises(MeshError) as error:
            await access.ask(ask, 20)
        assert error.value.reason == "POLICY_UNKNOWN"
        assert not second.connections


async def test_an_instance_that_cannot_do_it_now_is_passed_over_and_its_reason_told(
    running: RunningKms, describe: Describe
) -> None:
    async def ask(stub: kms_pb2_grpc.KmsServiceStub, timeout: float) -> None:
        await stub.ListKeys(kms_pb2.ListKeysRequest(), timeout=timeout)

    running.currency_clock.now += 3600
    for targets in ([running.target, NOBODY], [NOBODY, running.target]):
        with pytest.raises(MeshError) as error:
            await read_kms_access(describe(targets)).ask(ask, 20)
        assert error.value.reason == "KEY_STATE_BEHIND"


async def test_where_nobody_answers_the_first_ones_silence_is_told(describe: Describe) -> None:
    async with silent() as first:
        access = read_kms_access(describe([first.target, NOBODY]))
        assert await refusal(access, 0.4) in {"KMS_SILENT", "DEADLINE_EXCEEDED"}
        assert first.connections
    assert await refusal(read_kms_access(describe([NOBODY, NOBODY]))) == "UNAVAILABLE"


@pytest.fixture
def second(running: RunningKms, describe: Describe) -> Path:
    """A mesh.json whose first KMS is dead."""
    return describe([NOBODY, running.target])


async def test_an_operator_revokes_through_the_second(mesh: JoinedMesh, running: RunningKms, second: Path) -> None:
    told = Revocation(TRUST_DOMAIN, RevocationKind.TENANT, TENANT, "left", 1_800_000_000_000)
    signed = sign_revocation(told, mesh.operators[2])
    # Whoever was not heard may have done it: asked again, it changes nothing.
    assert [await revoke(signed, second, 20) for _ in range(2)] == [1, 1]
    assert running.core.policy.current.revoked.tenants == {TENANT}
    assert (await read_revocations(second, 20)).revocations == (signed,)


async def test_an_operator_publishes_through_the_second(mesh: JoinedMesh, running: RunningKms, second: Path) -> None:
    document = parse_signed(mesh.successor(running.core.policy.current))
    for _ in range(2):
        await publish_policy(document, second, 20)
    assert running.core.policy.current.version == 2


async def test_an_operator_rotates_through_the_second_to_one_epoch(running: RunningKms, second: Path) -> None:
    access = read_kms_access(second)
    assert [await _rotate(access, "models/claims", epoch) for epoch in (None, 2)] == [2, 2]


async def test_an_operator_is_certified_by_the_second(mesh: JoinedMesh, running: RunningKms, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state")
    layout.prepare()
    policy, ada = running.core.policy.current, mesh.operators[0]
    credential = await obtain_certificate(layout, [NOBODY, running.bootstrap], policy, ada)
    assert credential.certificate.role == "operator"
    assert layout.operator_certificate.read_bytes() == credential.certificate.pem
    assert layout.mesh_ca.read_bytes() == running.member.ca_pem


async def test_a_refusal_is_told_before_an_absence_and_nothing_is_written(
    mesh: JoinedMesh, running: RunningKms, tmp_path: Path
) -> None:
    layout = Layout(tmp_path / "state")
    layout.prepare()
    stranger = Ed25519PrivateKey.generate()
    for asked in ([NOBODY, running.bootstrap], [running.bootstrap, NOBODY]):
        with pytest.raises(MeshError) as error:
            await obtain_certificate(layout, asked, running.core.policy.current, stranger)
        assert error.value.reason == "OPERATOR_SIGNATURE_INVALID"
    assert not layout.operator_certificate.exists()
