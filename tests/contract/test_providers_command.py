"""`teemesh providers` against a real KMS, real nodes, and a registry that lies as a test makes it."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from rich.console import Console
from teemesh.registry.v1 import registry_pb2 as pb

from libs import jcs
from libs.aci.session import session_id
from libs.errors import MeshError
from libs.policy.revocation import RevocationKind
from services.cli.providers.command import add_parser, examine
from services.cli.providers.report import ProviderReport, listed_json, print_provider, print_providers
from services.cli.providers.revoke import prove
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh
from tests.fakes.operators_mesh import Node, OperatorsMesh, operators_mesh

SECONDS = 10.0
ONE = f"spiffe://{TRUST_DOMAIN}/node/one"


@pytest.fixture
async def running(mesh: JoinedMesh, tmp_path: Path) -> AsyncIterator[OperatorsMesh]:
    async with operators_mesh(mesh, tmp_path) as running:
        yield running


@dataclass(frozen=True, slots=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """The line that the command said itself: services log to the same place in tests."""
        return self.out.splitlines()[-1]


Teemesh = Callable[..., asyncio.Future[Said]]


@pytest.fixture
def teemesh(running: OperatorsMesh, capsys: pytest.CaptureFixture[str]) -> Teemesh:
    """Run a command, which has an event loop of its own, beside the services that it asks."""

    async def run(*arguments: str) -> Said:
        parser = argparse.ArgumentParser()
        add_parser(parser.add_subparsers(required=True))
        args = parser.parse_args(["providers", *arguments, "--mesh", str(running.mesh)])
        code = await asyncio.to_thread(args.run, args)
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return lambda *arguments: asyncio.ensure_future(run(*arguments))


def failed(report: ProviderReport) -> dict[int, str | None]:
    return {check.number: check.reason for check in report.checks if not check.passed}


async def test_a_node_that_is_what_the_registry_says_is_verified(running: OperatorsMesh) -> None:
    node = await running.node("one")
    report = await examine(running.mesh, "one", SECONDS)
    assert report.holds, failed(report)
    assert report.appraisal is not None
    assert report.appraisal.evidence_digest == node.member.identity.current.evidence.digest
    said = report.to_json()
    assert said["verified"] is True
    assert said["registry_says"] == listed_json(running.registry.providers[0])


async def test_what_is_the_registrys_word_stands_apart_from_what_was_verified(running: OperatorsMesh) -> None:
    node = await running.node("one")
    console = Console(record=True, width=200)
    print_provider(await examine(running.mesh, ONE, SECONDS), console)
    shown = console.export_text()
    word, checked = shown.index("the registry says, and nobody else"), shown.index("checked here, under policy")
    assert shown.index("DEVELOPMENT") < word < shown.index("1 running, 2 waiting") < checked
    assert checked < shown.index("VERIFIED: 7 of 7 checks passed")
    assert node.session.session_id in shown[checked:]


def edited(provider: pb.Provider, **changes: object) -> pb.Provider:
    lie = pb.Provider()
    lie.CopyFrom(provider)
    lie.MergeFrom(pb.Provider(**changes))  # type: ignore[arg-type]
    return lie


LIES: dict[str, tuple[Callable[[pb.Provider], pb.Provider], dict[int, str]]] = {
    "another endpoint": (
        lambda provider: edited(provider, endpoint="127.0.0.1:1"),
        {6: "PROVIDER_NOT_CONFIRMED", 7: "PEER_UNREACHABLE"},
    ),
    "another key": (
        lambda provider: edited(provider, spki_sha256=bytes(32)),
        {6: "PROVIDER_NOT_CONFIRMED"},
    ),
    "other evidence": (
        lambda provider: edited(provider, evidence_digest=bytes(32)),
        {6: "PROVIDER_NOT_CONFIRMED"},
    ),
    "one more model": (
        lambda provider: edited(provider, models=[pb.Model(id="gpt-9", weights_sha256=bytes(32))]),
        {6: "PROVIDER_NOT_CONFIRMED"},
    ),
    "another region": (lambda provider: edited(provider, region="us-east"), {6: "PROVIDER_NOT_CONFIRMED"}),
    "another engine": (
        lambda provider: edited(provider, engine=pb.Engine(name="vllm/1")),
        {6: "PROVIDER_NOT_CONFIRMED"},
    ),
}


@pytest.mark.parametrize("lie", LIES)
async def test_what_the_registry_says_otherwise_is_not_confirmed(running: OperatorsMesh, lie: str) -> None:
    node = await running.node("one")
    tell, reasons = LIES[lie]
    running.registry.providers = [tell(node.provider)]
    assert failed(await examine(running.mesh, "one", SECONDS)) == reasons


async def test_the_session_of_another_node_is_not_confirmed(running: OperatorsMesh) -> None:
    one, two = await running.node("one"), await running.node("two")
    running.registry.providers = [edited(one.provider, session_id=bytes.fromhex(two.session.session_id))]
    reasons = failed(await examine(running.mesh, "one", SECONDS))
    assert reasons == {6: "PROVIDER_NOT_CONFIRMED", 7: "PROVIDER_NOT_CONFIRMED"}


async def test_a_whole_other_node_under_this_name_is_not_confirmed(running: OperatorsMesh) -> None:
    """Everything fits together but the name, and that is in no evidence: the certificate says it."""
    one, two = await running.node("one"), await running.node("two")
    renamed = jcs.dumps({**jcs.loads_object(two.session.document), "upstream_name": one.member.spiffe_id})
    identifier = bytes.fromhex(session_id(renamed))
    running.registry.sessions[identifier] = renamed
    lie = edited(two.provider, spiffe_id=one.member.spiffe_id, session_id=identifier)
    running.registry.providers = [lie]
    assert failed(await examine(running.mesh, "one", SECONDS)) == {7: "PROVIDER_NOT_CONFIRMED"}


def resealed(running: OperatorsMesh, node: Node, **members: object) -> pb.Provider:
    """List a node with a session that says something else, under the id that this has."""
    document = jcs.dumps({**jcs.loads_object(node.session.document), **members})
    identifier = bytes.fromhex(session_id(document))
    running.registry.sessions[identifier] = document
    return edited(node.provider, session_id=identifier)


async def test_an_edited_session_is_refused_by_its_id(running: OperatorsMesh) -> None:
    node = await running.node("one")
    document = jcs.dumps({**jcs.loads_object(node.session.document), "expires_at": int(time.time()) + 10**6})
    running.registry.sessions[bytes.fromhex(node.session.session_id)] = document
    reasons = failed(await examine(running.mesh, "one", SECONDS))
    assert reasons[1] == "SESSION_ID_MISMATCH"
    assert {reasons[number] for number in range(2, 8)} == {"RESTS_ON_FAILED_CHECK"}


async def test_a_session_that_claims_more_than_its_evidence_is_refused(running: OperatorsMesh) -> None:
    node = await running.node("one")
    claims = jcs.loads_object(node.session.document)["claims"]
    proven = {"status": "asserted", "source": "hardware_proven", "reason": "all of it"}
    running.registry.providers = [resealed(running, node, claims={**claims, "gpu_attested": proven})]
    assert failed(await examine(running.mesh, "one", SECONDS)) == {3: "SESSION_CONTRADICTS_EVIDENCE"}
    facts = {**claims["extra"], "tcb_status": "Revoked"}
    running.registry.providers = [resealed(running, node, claims={**claims, "extra": facts})]
    assert failed(await examine(running.mesh, "one", SECONDS)) == {3: "SESSION_CONTRADICTS_EVIDENCE"}


async def test_a_session_that_is_over_is_refused(running: OperatorsMesh) -> None:
    node, now = await running.node("one"), int(time.time())
    running.registry.providers = [resealed(running, node, established_at=now - 99, expires_at=now - 1)]
    assert failed(await examine(running.mesh, "one", SECONDS)) == {5: "SESSION_NOT_OPEN"}


async def test_a_session_that_the_registry_withholds_verifies_nothing(running: OperatorsMesh) -> None:
    await running.node("one")
    running.registry.sessions.clear()
    report = await examine(running.mesh, "one", SECONDS)
    assert not report.holds
    assert failed(report)[1] == "SESSION_UNKNOWN"


async def test_what_was_revoked_since_is_refused(running: OperatorsMesh) -> None:
    node = await running.node("one")
    await running.revoke(RevocationKind.DEVICE, (await prove(running.mesh, ONE, SECONDS)).device_id)
    report = await examine(running.mesh, "one", SECONDS)
    assert failed(report)[2] == "DEVICE_REVOKED"
    assert node.session.session_id


async def test_a_policy_that_the_operators_of_mesh_json_did_not_sign_judges_nothing(running: OperatorsMesh) -> None:
    await running.node("one")
    members = json.loads(running.mesh.read_text())
    running.mesh.write_text(json.dumps({**members, "operator_public_keys": ["ab" * 32, "cd" * 32]}))
    with pytest.raises(MeshError) as error:
        await examine(running.mesh, "one", SECONDS)
    assert error.value.reason == "POLICY_SIGNATURES_INSUFFICIENT"


async def test_a_node_that_is_not_listed_is_named_so(running: OperatorsMesh, teemesh: Teemesh) -> None:
    said = await teemesh("show", "nobody")
    assert (said.code, said.out, len(said.err.splitlines())) == (2, "", 1)
    assert "PROVIDER_UNKNOWN" in said.err


async def test_pages_are_put_together_and_terminals_are_not_steered(running: OperatorsMesh, teemesh: Teemesh) -> None:
    names = [f"spiffe://{TRUST_DOMAIN}/node/{number}" for number in range(5)]
    running.registry.providers = [
        pb.Provider(spiffe_id=name, endpoint="\x1b[2J", drained_by="\x07/x", drain_reason="\r") for name in names
    ]
    said = await teemesh("list", "--json")
    assert [json.loads(line)["spiffe_id"] for line in said.out.splitlines()] == names
    shown = (await teemesh("list")).out
    assert not set("\x1b\x07\r") & set(shown)


async def test_a_listing_without_an_end_is_refused(running: OperatorsMesh, teemesh: Teemesh) -> None:
    running.registry.endless = True
    with pytest.raises(MeshError) as error:
        await teemesh("list")
    assert error.value.reason == "LISTING_ENDLESS"


async def test_filters_are_the_registrys_to_apply(running: OperatorsMesh, teemesh: Teemesh) -> None:
    assert (await teemesh("list", "--model", "m", "--state", "drained", "--region", "eu")).code == 0
    (asked,) = running.registry.calls
    assert (asked.model, asked.state, asked.region) == ("m", pb.PROVIDER_STATE_DRAINED, "eu")


async def test_a_table_names_who_drains(running: OperatorsMesh) -> None:
    node = await running.node("one")
    drained = edited(
        node.provider,
        state=pb.PROVIDER_STATE_DRAINING,
        drained_by=f"spiffe://{TRUST_DOMAIN}/operator/ada",
        drain_reason="new disk",
    )
    console = Console(record=True, width=300)
    print_providers([drained], time.time(), console)
    shown = console.export_text()
    for part in ("one", "draining by ada: new disk", node.endpoint, "25 %", "eu-west"):
        assert part in shown


async def test_a_narrow_table_cuts_no_name(running: OperatorsMesh) -> None:
    name = f"{ONE}-of-many-in-the-second-hall"
    console = Console(record=True, width=80)
    print_providers([edited((await running.node("one")).provider, spiffe_id=name)], time.time(), console)
    column = "".join(line.split(" ")[0] for line in console.export_text().splitlines()[1:])
    assert column == "one-of-many-in-the-second-hall"


async def test_drain_and_resume_name_the_node_and_are_the_operators(running: OperatorsMesh, teemesh: Teemesh) -> None:
    await running.node("one")
    assert (await teemesh("drain", "one", "--reason", "new disk")).last.startswith(f"{ONE}: takes no new work")
    drain = running.registry.calls[0]
    assert (drain.spiffe_id, drain.reason) == (ONE, "new disk")
    assert running.registry.callers == [f"spiffe://{TRUST_DOMAIN}/operator/ada"]
    assert (await teemesh("resume", ONE)).last == f"{ONE}: no operator drains it"


@pytest.mark.parametrize("name", ["../etc", "spiffe://other.test/node/one", f"spiffe://{TRUST_DOMAIN}/kms/1", ""])
async def test_what_is_no_node_of_this_mesh_is_asked_of_nobody(
    running: OperatorsMesh, teemesh: Teemesh, name: str
) -> None:
    with pytest.raises(MeshError) as error:
        await teemesh("drain", name, "--reason", "x")
    assert error.value.reason == "INPUT_UNREADABLE"
    assert not running.registry.calls


@pytest.fixture
def operator_key(running: OperatorsMesh) -> str:
    path = running.folder / "operator-3.pem"
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path.write_bytes(running.joined.operators[2].private_bytes(encoding, form, serialization.NoEncryption()))
    path.chmod(0o600)
    return str(path)


@pytest.mark.parametrize("what", [(), ("--key",), ("--measurement",), ("--device",)])
async def test_one_operator_revokes_a_node_by_what_was_verified_of_it(
    running: OperatorsMesh,
    teemesh: Teemesh,
    operator_key: str,
    what: tuple[str, ...],
) -> None:
    await running.node("one")
    appraisal = await prove(running.mesh, ONE, SECONDS)
    said = await teemesh("revoke", "one", *what, "--reason", "broken", "--operator-key", operator_key)
    assert said.last.startswith("revoked: ")
    revoked = running.kms.core.policy.current.revoked
    found = {
        (): (revoked.spiffe_ids, ONE),
        ("--key",): (revoked.keys, appraisal.spki_sha256.hex()),
        ("--measurement",): (revoked.compose_hashes, appraisal.measurement.compose_hash),
        ("--device",): (revoked.devices, appraisal.device_id),
    }
    values, value = found[what]
    assert values == {value}


@pytest.mark.parametrize("what", ["--key", "--measurement", "--device"])
async def test_a_registry_does_not_choose_what_operators_revoke(
    running: OperatorsMesh,
    teemesh: Teemesh,
    operator_key: str,
    what: str,
) -> None:
    one, two = await running.node("one"), await running.node("two")
    document = jcs.dumps({**jcs.loads_object(two.session.document), "upstream_name": one.member.spiffe_id})
    identifier = bytes.fromhex(session_id(document))
    running.registry.sessions[identifier] = document
    running.registry.providers = [edited(two.provider, spiffe_id=one.member.spiffe_id, session_id=identifier)]
    with pytest.raises(MeshError) as error:
        await teemesh("revoke", "one", what, "--reason", "broken", "--operator-key", operator_key)
    assert error.value.reason == "PROVIDER_NOT_PROVEN"
    assert "PROVIDER_NOT_CONFIRMED" in str(error.value)
    assert running.kms.core.policy.revocations.number == 0


async def test_more_of_a_revoked_node_may_be_revoked(running: OperatorsMesh) -> None:
    await running.node("one")
    before = await prove(running.mesh, ONE, SECONDS)
    await running.revoke(RevocationKind.MEASUREMENT, before.measurement.compose_hash)
    again = await prove(running.mesh, ONE, SECONDS)
    assert replace(again, appraised_at=0) == replace(before, appraised_at=0)
