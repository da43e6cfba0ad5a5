"""`teemesh verify`: an answer that was kept is judged offline, and a router that logged nothing is named by it."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console

from libs import jcs
from libs.client import exchange_file
from libs.client.http import RouterRefused
from libs.client.session import Patience
from libs.errors import MeshError
from libs.policy.revocation import Revocation, RevocationKind, sign_revocation
from libs.transparency.cosignature import cosigner_key
from services.cli.__main__ import main
from services.cli.chat.command import chat
from services.cli.terminal.inputs import OutputExists, OutputUnwritable
from tests.fakes.attested_mesh import TRUST_DOMAIN, AttestedMesh
from tests.fakes.entry_schema import require_documented_exchange
from tests.fakes.gathered import describe, gathered
from tests.fakes.https_router import API_KEY, RouterTwin, serving

QUICK = Patience(settle=0.05, between=0.01, silence=0.5)
REQUEST, RESPONSE = b'{"messages":[]}', b'{"choices":[]}'


@pytest.fixture
async def router(tmp_path: Path) -> AsyncIterator[RouterTwin]:
    twin = RouterTwin(AttestedMesh.create(int(time.time())))
    async with serving(twin, tmp_path):
        describe(twin.mesh, tmp_path, twin.url, API_KEY)
        yield twin


Verify = Callable[..., tuple[int, str]]


@pytest.fixture
def verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Verify:
    """Run the command on the test's file, by the test's mesh.json; return its exit status and all that it said."""

    def run(*more: object, mesh: bool = True) -> tuple[int, str]:
        by = ["--mesh", str(tmp_path / "mesh.json")] if mesh else []
        code = main(["verify", str(tmp_path / "kept.json"), *by, *map(str, more)])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def _saying(lie: Callable[[bytes], bytes]) -> Callable[[RouterTwin], None]:
    return lambda twin: twin.lies.update(response=lie)


async def keep(folder: Path) -> bool:
    """Ask, and keep what comes; say whether `teemesh chat` found all of it right."""
    console = Console(file=io.StringIO())
    return await chat(folder, "hello?", console=console, save=folder / "kept.json", patience=QUICK)


def kept_offline(folder: Path) -> AttestedMesh:
    """Keep an honest exchange; return the mesh that it was with."""
    mesh = AttestedMesh.create(int(time.time()))
    describe(mesh, folder, "https://127.0.0.1:1", API_KEY)
    (folder / "kept.json").write_bytes(exchange_file.encode(gathered(mesh, REQUEST, RESPONSE)))
    return mesh


async def test_answer_that_was_kept_is_complete_without_the_router(router: RouterTwin, tmp_path: Path) -> None:
    assert await keep(tmp_path)
    path = tmp_path / "kept.json"
    assert path.stat().st_mode & 0o777 == 0o600
    prompt = bytes.fromhex(json.loads(path.read_bytes())["exchange"]["request"])
    assert json.loads(prompt)["messages"] == [{"role": "user", "content": "hello?"}]
    asked = len(router.seen_keys)
    assert main(["verify", str(path), "--policy", str(tmp_path / "policy.json"), "--ca", str(tmp_path / "ca.pem")]) == 0
    assert len(router.seen_keys) == asked


async def test_router_that_logs_nothing_is_named_by_what_the_client_kept(
    router: RouterTwin, tmp_path: Path, verify: Verify
) -> None:
    router.not_yet = 10**6
    assert not await keep(tmp_path)
    code, said = verify()
    assert code == 5
    assert "FAIL 11 ledger acknowledged the entry: " in said
    assert said.count("PROOF_MISSING: the commitment could not be had: ROUTER_REFUSED: 404 not_found: not there") == 5
    assert said.count("PASS") == 7
    assert said.splitlines()[-1].startswith("UNLOGGED: the response has no valid acknowledgement")


async def test_acknowledgement_that_the_router_made_itself_is_named(
    router: RouterTwin, tmp_path: Path, verify: Verify
) -> None:
    router.mesh.ack_key = Ed25519PrivateKey.generate()
    assert not await keep(tmp_path)
    code, said = verify("--json")
    value = json.loads(said)
    assert (code, value["status"], value["verdict"]) == (5, 5, "unlogged")
    assert {each["number"]: each["reason"] for each in value["checks"] if not each["passed"]} == {
        11: "ACKNOWLEDGEMENT_INVALID"
    }


async def test_acknowledgement_of_another_answer_is_named(router: RouterTwin, tmp_path: Path, verify: Verify) -> None:
    logged = router.mesh.serve(b"{}", b"logged").commitment
    router.lies["commitment"] = lambda own: jcs.dumps(
        {**jcs.loads_object(own), "acknowledgement": logged["acknowledgement"]}
    )
    assert not await keep(tmp_path)
    code, said = verify()
    assert (code, "FAIL 11 ledger acknowledged the entry: ACKNOWLEDGEMENT_OF_ANOTHER_ENTRY" in said) == (5, True)


async def test_acknowledgement_of_another_log_is_named(router: RouterTwin, tmp_path: Path, verify: Verify) -> None:
    mesh = router.mesh
    other = mesh.prove("ledger", mesh.workloads["ledger"].claims | {"origin": "mesh.local/ledger/2"})
    mesh.evidence["other ledger"] = other
    named = mesh.ledger_name(other) | {"origin": "mesh.local/ledger/2"}
    router.lies["commitment"] = lambda own: jcs.dumps({**jcs.loads_object(own), "acknowledged_by": named})
    assert not await keep(tmp_path)
    code, said = verify()
    assert (code, "FAIL 11 ledger acknowledged the entry: ACKNOWLEDGEMENT_INVALID" in said) == (5, True)


async def test_router_whose_words_have_no_bytes_does_not_prevent_the_file(
    router: RouterTwin, tmp_path: Path, verify: Verify
) -> None:
    router.refusal = b'{"error":{"type":"\\ud800","message":"\\udfff"}}'
    router.not_yet = 10**6
    assert not await keep(tmp_path)
    code, said = verify()
    assert code == 5
    assert "ROUTER_REFUSED: 404 \\ud800: \\udfff" in said


async def test_answer_without_a_receipt_is_unattested(router: RouterTwin, tmp_path: Path, verify: Verify) -> None:
    router.extra_headers["X-Receipt-Id"] = "no/\udcff/id"
    assert not await keep(tmp_path)
    code, said = verify()
    assert code == 3
    assert "FAIL  3 receipt is signed by the router: PROOF_MISSING: the receipt could not be had: RECEIPT_NOT" in said
    assert said.splitlines()[-1].startswith("UNATTESTED")


async def test_answer_without_a_message_is_kept_all_the_same(
    router: RouterTwin, tmp_path: Path, verify: Verify
) -> None:
    router.lies["response"] = lambda _: b'{"choices":[]}'
    said, path = io.StringIO(), tmp_path / "kept.json"
    console = Console(file=said)
    assert not await chat(tmp_path, "hello?", stream=False, console=console, save=path, patience=QUICK)
    assert f"[ANSWER_UNREADABLE: the response holds no message]\nkept in {path}\n" in said.getvalue()
    assert json.loads(path.read_bytes())["exchange"]["response"] == b'{"choices":[]}'.hex()
    assert verify()[0] == 4


@pytest.mark.parametrize(
    ("twist", "reason", "status", "shown"),
    [
        (lambda twin: twin.extra_headers.update({"Content-Encoding": "gzip"}), "ANSWER_UNREADABLE", 8, b"world"),
        (_saying(lambda body: body + b":" + b"x" * (2 << 20)), "ANSWER_TOO_LARGE", 4, b"world"),
        (_saying(lambda body: body + (b":" + b"x" * 500_000 + b"\n\n") * 70), "ANSWER_TOO_LARGE", 4, b"world"),
        (_saying(lambda body: body[:-10]), "ANSWER_BROKEN_OFF", 4, b"world"),
        (lambda twin: twin.extra_headers.update({"Content-Length": "99999"}), "ROUTER_UNREACHABLE", 8, b"world"),
        (lambda twin: setattr(twin, "breaking_off", True), "ROUTER_UNREACHABLE", 8, b"world"),
        (lambda twin: setattr(twin, "hanging_up", True), "ROUTER_UNREACHABLE", 3, b""),
        (lambda twin: setattr(twin, "refusing", True), "ROUTER_REFUSED", 3, b"no node serves it"),
    ],
    ids=["encoded", "one long event", "34 MiB", "cut", "stalls", "closes", "says nothing", "refuses"],
)
async def test_nothing_that_a_router_sends_prevents_the_file(
    router: RouterTwin,
    tmp_path: Path,
    verify: Verify,
    twist: Callable[[RouterTwin], None],
    reason: str,
    status: int,
    shown: bytes,
) -> None:
    twist(router)
    assert not await keep(tmp_path)
    kept = json.loads((tmp_path / "kept.json").read_bytes())["exchange"]
    assert kept["broken_off"] == reason
    assert shown in bytes.fromhex(kept["response"])
    code, said = verify()
    assert code == status
    assert f"FAIL 13 answer could be read: ANSWER_NOT_WHOLE: whoever asked read no more of it: {reason}\n" in said


async def test_router_that_logged_nothing_is_named_although_it_never_ends_its_answer(
    router: RouterTwin, tmp_path: Path, verify: Verify
) -> None:
    router.not_yet = 10**6
    router.extra_headers["Content-Length"] = "99999"
    assert not await keep(tmp_path)
    assert verify()[0] == 5


async def test_where_nothing_was_sent_nothing_is_kept(router: RouterTwin, tmp_path: Path) -> None:
    router.lies["report"] = lambda _: router.mesh.report("00" * 32)
    with pytest.raises(MeshError, match="nonce"):
        await keep(tmp_path)
    assert not (tmp_path / "kept.json").exists()


async def test_refusal_that_is_not_to_be_kept_is_raised(router: RouterTwin, tmp_path: Path) -> None:
    router.refusing = True
    with pytest.raises(RouterRefused):
        await chat(tmp_path, "hello?", console=Console(file=io.StringIO()), patience=QUICK)


@pytest.mark.parametrize("stream", [True, False])
async def test_answer_that_came_encrypted_opens_from_the_file(
    router: RouterTwin, tmp_path: Path, verify: Verify, stream: bool
) -> None:
    router.sealing = True
    path, console = tmp_path / "kept.json", Console(file=io.StringIO())
    assert await chat(tmp_path, "hi?", stream=stream, console=console, save=path, sealed=True, patience=QUICK)
    kept = json.loads(path.read_bytes())
    require_documented_exchange(path.read_bytes())
    assert b"world" not in bytes.fromhex(kept["exchange"]["response"])
    code, said = verify()
    assert (code, "PASS 13 answer could be read: 12 characters, opened with the request's own key" in said) == (0, True)
    path.write_bytes(jcs.dumps({**kept, "exchange": {**kept["exchange"], "broken_off": "ROUTER_UNREACHABLE"}}))
    code, said = verify()
    assert (code, "FAIL 13 answer could be read: ANSWER_NOT_WHOLE" in said) == (8, True)
    kept["exchange"]["opening_key"]["nonce"] = "00" * 32
    path.write_bytes(jcs.dumps(kept))
    code, said = verify()
    assert (code, "FAIL 13 answer could be read: ANSWER_NOT_SEALED" in said) == (8, True)
    del kept["exchange"]["opening_key"]
    path.write_bytes(jcs.dumps(kept))
    code, said = verify()
    assert (code, "FAIL  4 receipt is for the request sent: SEALED_FOR_ANOTHER" in said) == (4, True)


async def test_answer_in_clear_to_an_encrypted_prompt_is_kept_as_unread(
    router: RouterTwin, tmp_path: Path, verify: Verify
) -> None:
    path, console = tmp_path / "kept.json", Console(file=io.StringIO())
    assert not await chat(tmp_path, "hi?", console=console, save=path, sealed=True, patience=QUICK)
    assert json.loads(path.read_bytes())["exchange"]["broken_off"] == "ANSWER_NOT_SEALED"
    assert verify()[0] != 0


async def test_file_that_is_there_is_not_overwritten_and_nothing_is_asked(router: RouterTwin, tmp_path: Path) -> None:
    (tmp_path / "kept.json").write_text("evidence")
    with pytest.raises(OutputExists):
        await keep(tmp_path)
    assert (tmp_path / "kept.json").read_text() == "evidence"
    assert router.seen_keys == []


async def test_file_that_cannot_be_written_is_said(router: RouterTwin, tmp_path: Path) -> None:
    with pytest.raises(OutputUnwritable):
        await chat(tmp_path, "hello?", console=Console(file=io.StringIO()), save=tmp_path / "no" / "f", patience=QUICK)


@pytest.mark.parametrize(
    ("change", "status", "word"),
    [
        (lambda value: value["router"].update(nonce="00" * 32), 3, "UNATTESTED"),
        (lambda value: value["exchange"].update(request="7b7d"), 4, "MISFIT"),
        (lambda value: value["exchange"].update(response="7b7d"), 4, "MISFIT"),
        (lambda value: value["proofs"].update(session={"missing": "X", "detail": "gone"}), 6, "UNVERIFIED"),
        (lambda value: value["proofs"].update(commitment="7b7d"), 5, "UNLOGGED"),
    ],
)
def test_a_change_of_a_part_has_its_own_status(
    tmp_path: Path, verify: Verify, change: Callable[[dict[str, Any]], None], status: int, word: str
) -> None:
    kept_offline(tmp_path)
    value = json.loads((tmp_path / "kept.json").read_bytes())
    change(value)
    (tmp_path / "kept.json").write_text(json.dumps(value))
    code, said = verify()
    assert code == status
    assert said.splitlines()[-1].startswith(f"{word}: ")


def test_tree_without_the_cosignatures_that_are_demanded_is_unshown(tmp_path: Path, verify: Verify) -> None:
    kept_offline(tmp_path)
    witness = cosigner_key("w1.example", Ed25519PrivateKey.generate()).text()
    code, said = verify("--witness", witness)
    assert (code, "QUORUM_NOT_REACHED" in said, said.splitlines()[-1][:8]) == (7, True, "UNSHOWN:")


def test_a_router_that_was_revoked_since_is_unattested(tmp_path: Path, verify: Verify) -> None:
    mesh = kept_offline(tmp_path)
    assert verify()[0] == 0
    measured = mesh.workloads["router"].measurement.compose_hash
    revocation = Revocation(TRUST_DOMAIN, RevocationKind.MEASUREMENT, measured, "leaks prompts", mesh.now)
    (tmp_path / "revocation.json").write_bytes(sign_revocation(revocation, mesh.operators[0]).document)
    code, said = verify("--revocation", tmp_path / "revocation.json")
    assert (code, "MEASUREMENT_REVOKED" in said, "1 revocations counted" in said) == (3, True, True)


def test_a_day_later_it_is_judged_as_of_when_it_was_made(tmp_path: Path, verify: Verify) -> None:
    """The ledger's certificate ran out since; by the clock of the reader nothing old would ever hold."""
    mesh = AttestedMesh.create(int(time.time()) - 86_000)
    describe(mesh, tmp_path, "https://127.0.0.1:1", API_KEY)
    (tmp_path / "kept.json").write_bytes(exchange_file.encode(gathered(mesh, REQUEST, RESPONSE)))
    assert verify()[0] == 0
    code, said = verify("--now", mesh.now + 85_000)
    assert (code, "FAIL 12 entry is in the signed log: CERTIFICATE_NOT_ACCEPTED" in said) == (7, True)
    assert said.count("FAIL") == 1


def test_what_cannot_be_judged_is_status_2_and_one_line(tmp_path: Path, verify: Verify) -> None:
    mesh = kept_offline(tmp_path)
    late = json.loads((tmp_path / "kept.json").read_bytes())
    late["gathered_at"] = mesh.now + 10**7
    (tmp_path / "late.json").write_text(json.dumps(late))
    other = AttestedMesh.create(mesh.now)
    unsigned = replace(other, operators=mesh.operators)
    (tmp_path / "unsigned.json").write_bytes(
        unsigned.trust().signed_policy.replace(b'"signature":"', b'"signature":"00', 1)
    )
    original = (tmp_path / "kept.json").read_bytes()
    for content, more, reason in (
        (b"{}", (), "EXCHANGE_FILE_MALFORMED"),
        (b"\xff", (), "EXCHANGE_FILE_MALFORMED"),
        ((tmp_path / "late.json").read_bytes(), (), "POLICY_NOT_VALID_NOW"),
        (original, ("--now", 5), "POLICY_NOT_VALID_NOW"),
        (original, ("--policy", tmp_path / "unsigned.json"), "POLICY_"),
        (original, ("--policy", tmp_path / "none.json"), "INPUT_UNREADABLE"),
        (original, ("--quorum", 1), "WITNESSES_TOO_FEW"),
    ):
        (tmp_path / "kept.json").write_bytes(content)
        code, said = verify(*more)
        assert (code, len(said.splitlines())) == (2, 1), said
        assert said.startswith(f"teemesh: {reason}")


def test_reader_with_another_meshs_ca_is_told_so(tmp_path: Path, verify: Verify) -> None:
    mesh = kept_offline(tmp_path)
    (tmp_path / "other.pem").write_bytes(AttestedMesh.create(mesh.now).ca.pem)
    code, said = verify("--policy", tmp_path / "policy.json", "--ca", tmp_path / "other.pem", mesh=False)
    assert (code, said.startswith("teemesh: MESH_CA_UNEXPECTED: "), len(said.splitlines())) == (2, True, 1)


async def test_router_that_names_another_ca_than_its_mesh_has_is_judged(
    router: RouterTwin, tmp_path: Path, verify: Verify
) -> None:
    other = AttestedMesh.create(router.mesh.now).ca.der.hex()
    router.lies["commitment"] = lambda own: jcs.dumps({**jcs.loads_object(own), "mesh_ca": other})
    assert not await keep(tmp_path)
    code, said = verify()
    assert (code, "MESH_CA_UNEXPECTED" in said) == (5, True)


def test_receipt_is_named_as_the_router_signed_it_and_not_as_the_file_says(tmp_path: Path, verify: Verify) -> None:
    kept_offline(tmp_path)
    value = json.loads((tmp_path / "kept.json").read_bytes())
    signed = value["exchange"]["receipt_id"]
    assert json.loads(verify("--json")[1])["receipt_id"] == signed
    value["exchange"]["receipt_id"] = "rcpt-of-another"
    (tmp_path / "kept.json").write_text(json.dumps(value))
    code, said = verify("--json")
    assert (code, json.loads(said)["receipt_id"]) == (4, signed)
    value["proofs"]["receipt"] = value["proofs"]["receipt"].replace(signed.encode().hex(), b"rcpt-x".hex())
    (tmp_path / "kept.json").write_text(json.dumps(value))
    code, said = verify("--json")
    assert (code, json.loads(said)["receipt_id"]) == (3, None)


def test_file_without_an_end_is_not_read(tmp_path: Path, verify: Verify) -> None:
    kept_offline(tmp_path)
    path = tmp_path / "kept.json"
    path.unlink()
    os.mkfifo(path)
    assert verify() == (2, f"teemesh: INPUT_UNREADABLE: cannot read {path}: no ordinary file\n")
    path.unlink()
    path.symlink_to("/dev/zero")
    assert verify() == (2, f"teemesh: INPUT_UNREADABLE: cannot read {path}: no ordinary file\n")
    path.unlink()
    with path.open("wb") as file:
        file.truncate(exchange_file.MAX_BYTES + 1)
    code, said = verify()
    assert (code, said.startswith("teemesh: INPUT_UNREADABLE: "), len(said.splitlines())) == (2, True, 1)


def test_another_meshs_policy_or_ca_finds_nothing_proven(tmp_path: Path, verify: Verify) -> None:
    mesh = kept_offline(tmp_path)
    other = AttestedMesh.create(mesh.now)
    (tmp_path / "other.json").write_bytes(other.trust().signed_policy)
    (tmp_path / "other.pem").write_bytes(other.ca.pem)
    policies, authorities = ("policy.json", "other.json"), ("ca.pem", "other.pem")
    found = {
        (policy, ca): verify("--policy", tmp_path / policy, "--ca", tmp_path / ca, mesh=False)[0]
        for policy in policies
        for ca in authorities
    }
    assert found == {
        ("policy.json", "ca.pem"): 0,
        ("policy.json", "other.pem"): 2,
        ("other.json", "ca.pem"): 3,
        ("other.json", "other.pem"): 3,
    }
