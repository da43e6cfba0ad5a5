"""`teemesh sessions`: what a session proves offline, and how each thing that is wrong with one is told."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from teemesh.registry.v1 import registry_pb2 as pb

from libs import jcs
from libs.aci.session import session_id
from libs.errors import MeshError
from libs.policy.revocation import Revocation, RevocationKind, sign_revocation
from services.cli.sessions.command import add_parser
from services.cli.terminal.verdicts import ACCEPTED, REFUSED, UNUSABLE
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh
from tests.fakes.operators_mesh import MODEL, Node, OperatorsMesh, operators_mesh

ONE = f"spiffe://{TRUST_DOMAIN}/node/one"


@pytest.fixture
async def running(mesh: JoinedMesh, tmp_path: Path) -> AsyncIterator[OperatorsMesh]:
    async with operators_mesh(mesh, tmp_path) as running:
        yield running


@pytest.fixture
async def node(running: OperatorsMesh) -> Node:
    return await running.node("one")


@dataclass(frozen=True, slots=True)
class Desk:
    """Sessions as files, and the command that judges them."""

    running: OperatorsMesh
    capsys: pytest.CaptureFixture[str]

    async def run(self, *arguments: str) -> tuple[int, str]:
        parser = argparse.ArgumentParser()
        add_parser(parser.add_subparsers(required=True))
        args = parser.parse_args(["sessions", *arguments])
        self.capsys.readouterr()
        code = await asyncio.to_thread(args.run, args)
        said = self.capsys.readouterr()
        return code, said.out + said.err

    async def verify(self, session: str, *more: str) -> tuple[int, dict[int, str], dict[str, Any]]:
        """Verify with the mesh's policy; return the exit status, why which check failed, and all that was said."""
        mesh = () if "--ca" in more else ("--mesh", str(self.running.mesh))
        code, said = await self.run("verify", session, *mesh, *more, "--json")
        report: dict[str, Any] = json.loads(said)
        failed = {check["number"]: check["reason"] for check in report["checks"] if not check["passed"]}
        return code, failed, report

    def write(self, document: bytes) -> str:
        path = self.running.folder / "session.json"
        path.write_bytes(document)
        return str(path)

    def edited(self, node: Node, **members: Any) -> str:
        return self.write(jcs.dumps({**jcs.loads_object(node.session.document), **members}))


@pytest.fixture
def desk(running: OperatorsMesh, capsys: pytest.CaptureFixture[str]) -> Desk:
    return Desk(running, capsys)


async def test_a_session_by_its_id_and_as_a_file_proves_the_same(desk: Desk, node: Node) -> None:
    by_id = await desk.verify(node.session.session_id)
    by_file = await desk.verify(desk.write(node.session.document), "--id", node.session.session_id)
    assert by_id == by_file
    code, failed, report = by_id
    assert (code, failed, report["verified"]) == (ACCEPTED, {}, True)
    current = node.member.identity.current
    assert report["proven"]["key"] == current.certificate.spki_sha256.hex()
    assert report["proven"]["claims"]["models"][0]["id"] == MODEL
    assert "name and endpoint" in report["not_proven"]


async def test_it_is_offline_with_files_alone(desk: Desk, node: Node, running: OperatorsMesh) -> None:
    await running.stack.aclose()
    pins = ("--policy", str(running.folder / "policy"), "--ca", str(running.folder / "mesh_ca"))
    code, failed, _ = await desk.verify(desk.write(node.session.document), *pins)
    assert (code, failed) == (ACCEPTED, {})


async def test_people_read_what_it_proves_and_what_not(desk: Desk, node: Node, running: OperatorsMesh) -> None:
    code, shown = await desk.run("verify", desk.write(node.session.document), "--mesh", str(running.mesh))
    assert code == ACCEPTED
    for part in ("DEVELOPMENT", "VERIFIED: 6 of 6 checks passed", "it does not prove name and endpoint"):
        assert part in shown


async def test_another_document_than_that_of_the_id_is_refused(desk: Desk, node: Node) -> None:
    edited = desk.edited(node, upstream_name=f"spiffe://{TRUST_DOMAIN}/node/two")
    code, failed, _ = await desk.verify(edited, "--id", node.session.session_id)
    assert (code, failed[1]) == (REFUSED, "SESSION_ID_MISMATCH")


async def test_a_registry_that_gives_out_another_session_is_caught(desk: Desk, node: Node) -> None:
    other = jcs.dumps({**jcs.loads_object(node.session.document), "expires_at": 4_000_000_000})
    desk.running.registry.sessions[bytes.fromhex(node.session.session_id)] = other
    code, failed, _ = await desk.verify(node.session.session_id)
    assert (code, failed[1]) == (REFUSED, "SESSION_ID_MISMATCH")
    with pytest.raises(MeshError) as error:
        await desk.run("show", node.session.session_id, "--mesh", str(desk.running.mesh))
    assert error.value.reason == "SESSION_ID_MISMATCH"


async def test_a_session_bound_to_another_key_is_refused(desk: Desk, node: Node) -> None:
    (bound,) = jcs.loads_object(node.session.document)["channel_binding"]
    edited = desk.edited(node, channel_binding=[{**bound, "spki_sha256": "ab" * 32}])
    code, failed, _ = await desk.verify(edited)
    assert (code, failed) == (REFUSED, {3: "SESSION_CONTRADICTS_EVIDENCE"})


async def test_a_session_of_another_kind_of_verifier_is_not_judged_as_ours(desk: Desk, node: Node) -> None:
    code, failed, _ = await desk.verify(desk.edited(node, verifier_id="somebody/else/v1"))
    assert (code, failed[2]) == (REFUSED, "SESSION_VERIFIER_UNKNOWN")


async def test_evidence_that_was_old_at_that_time_is_refused(desk: Desk, node: Node) -> None:
    later = jcs.loads_object(node.session.document)["established_at"] + 3901
    code, failed, _ = await desk.verify(desk.write(node.session.document), "--now", str(later))
    assert (code, failed[2]) == (REFUSED, "CHALLENGE_TOO_OLD")


async def test_a_policy_that_was_not_in_force_at_that_time_refuses(desk: Desk, node: Node) -> None:
    draft = desk.running.joined.draft
    established = jcs.loads_object(node.session.document)["established_at"]
    late = {**draft, "not_before": established + 1, "not_after": established + 9000}
    policy = desk.running.folder / "late.json"
    policy.write_bytes(desk.running.joined.sign(late))
    code, failed, _ = await desk.verify(desk.write(node.session.document), "--policy", str(policy))
    assert (code, failed) == (REFUSED, {6: "POLICY_NOT_VALID_NOW"})


async def test_a_policy_that_lists_other_code_refuses(desk: Desk, node: Node) -> None:
    draft = desk.running.joined.draft
    policy = desk.running.folder / "other.json"
    policy.write_bytes(desk.running.joined.sign({**draft, "roles": desk.running.joined.without("node")}))
    code, failed, _ = await desk.verify(desk.write(node.session.document), "--policy", str(policy))
    assert (code, failed[2]) == (REFUSED, "MEASUREMENT_NOT_ALLOWED")


@pytest.mark.parametrize("kind", [RevocationKind.KEY, RevocationKind.NODE])
async def test_revocations_count_when_they_are_given_or_known(desk: Desk, node: Node, kind: RevocationKind) -> None:
    value = node.member.identity.current.certificate.spki_sha256.hex() if kind is RevocationKind.KEY else ONE
    session = desk.write(node.session.document)
    signed = sign_revocation(Revocation(TRUST_DOMAIN, kind, value, "a test", 1), desk.running.joined.operators[2])
    file = desk.running.folder / "revocation.json"
    file.write_bytes(signed.document)
    expected = {4: f"{kind.upper()}_REVOKED"}
    assert (await desk.verify(session, "--revocation", str(file)))[:2] == (REFUSED, expected)
    assert (await desk.verify(session, "--known-revocations"))[:2] == (ACCEPTED, {})
    await desk.running.revoke(kind, value)
    assert (await desk.verify(session, "--known-revocations"))[:2] == (REFUSED, expected)


@pytest.mark.parametrize("garbage", [b"", b"{}", b'{"a":1}', b"[1]", b"\xff" * 100])
async def test_what_is_no_session_is_refused_or_unusable(desk: Desk, garbage: bytes) -> None:
    code, said = await desk.run("verify", desk.write(garbage), "--mesh", str(desk.running.mesh))
    assert code in (REFUSED, UNUSABLE)
    assert ("JSON_MALFORMED" in said) == (code == UNUSABLE)
    assert ("SESSION_MALFORMED" in said) == (code == REFUSED)


async def test_a_session_that_nobody_has_is_unusable(desk: Desk) -> None:
    code, said = await desk.run("verify", "ab" * 32, "--mesh", str(desk.running.mesh))
    assert (code, "SESSION_UNKNOWN" in said) == (UNUSABLE, True)


async def test_without_a_ca_or_a_policy_nothing_is_judged(
    desk: Desk, node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    session = desk.write(node.session.document)
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    assert (await desk.run("verify", session))[0] == UNUSABLE
    assert (await desk.run("verify", session, "--policy", str(tmp_path / "policy")))[0] == UNUSABLE


async def test_show_states_and_warns_and_writes_the_very_document(desk: Desk, node: Node, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    mesh = ("--mesh", str(desk.running.mesh))
    code, shown = await desk.run("show", node.session.session_id, "--out", str(out), *mesh)
    assert code == 0
    assert "UNVERIFIED" in shown
    assert ONE in shown
    assert out.read_bytes() == node.session.document
    assert session_id(out.read_bytes()) == node.session.session_id


async def test_the_list_is_put_together_from_pages_and_cannot_steer_a_terminal(desk: Desk) -> None:
    desk.running.registry.summaries = [
        pb.SessionSummary(session_id=bytes([number]) * 32, spiffe_id="a/\x1b[2J", models=["\x07m"])
        for number in range(5)
    ]
    mesh = ("--mesh", str(desk.running.mesh))
    code, said = await desk.run("list", "--json", *mesh)
    listed = [json.loads(line) for line in said.splitlines()]
    assert (code, [each["session_id"] for each in listed]) == (0, [f"{number:02x}" * 32 for number in range(5)])
    _, shown = await desk.run("list", "--node", "one", "--model", "m", "--current", *mesh)
    assert not set("\x1b\x07") & set(shown)
    assert (desk.running.registry.calls[-1].spiffe_id, desk.running.registry.calls[-1].current) == (ONE, True)
