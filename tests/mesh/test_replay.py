"""What was allowed at each time, from the log of a real mesh: the same decisions come out, and attacks are seen."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs import jcs
from libs.aci.session import verify_session
from libs.events.records import SALT_SIZE, commit_to, parse_entry
from libs.policy.revocation import RevocationKind
from libs.transparency import leaf as leaves
from libs.transparency.leaf import Kind
from libs.transparency.note import VerifierKey
from services.cli.decisions.log_copy import Copied
from services.cli.policy.draft import read_signed
from services.cli.policy.publish import publish_policy
from services.cli.policy.revoke import revoke
from tests.mesh.operating import revocation, successor
from tests.mesh.running import RunningMesh, running_mesh, short_folder, teemesh

pytestmark = pytest.mark.mesh

PATIENCE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Told:
    """A copy of the log of a mesh in which much happened, and what it takes to replay it offline."""

    folder: Path
    copy: Path
    pins: tuple[str, ...]

    def replay(self, copy: Path, *more: str) -> tuple[int, str]:
        done = teemesh("policy", "replay", str(copy), *self.pins, *more)
        return done.returncode, done.stdout + done.stderr

    def altered(self, change: Callable[[list[tuple[bytes, bytes | None]]], None]) -> Path:
        """A copy in which somebody changed something."""
        copied = Copied.decode(self.copy.read_bytes())
        rows = list(copied.rows)
        change(rows)
        path = self.folder / "altered.json"
        path.write_bytes(Copied(copied.checkpoint, tuple(rows)).encode())
        return path


def decisions(mesh: RunningMesh, *more: str) -> list[dict[str, Any]]:
    done = teemesh("policy", "replay", "--json", "--mesh", str(mesh.state / "mesh.json"), *more)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["decisions"]
    return [each for each in found if each["spiffe_id"].endswith("/node/local")]


def until(mesh: RunningMesh, **members: Any) -> None:
    """Wait until the log has a decision about the node with these members."""
    ends_at = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < ends_at:
        found = decisions(mesh)
        if any(all(each[name] == value for name, value in members.items()) for each in found):
            return
    raise AssertionError(f"no {members} in {found}")


def listed_again(mesh: RunningMesh) -> dict[str, str]:
    """Wait until the node is listed."""
    ends_at = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < ends_at:
        if said := teemesh("providers", "list", "--json", "--mesh", str(mesh.state / "mesh.json")).stdout:
            found: dict[str, str] = json.loads(said)
            return found
    raise AssertionError("the node is not listed again")


def publish(mesh: RunningMesh, changes: Mapping[str, Any]) -> None:
    path = mesh.state / "next.json"
    current = mesh.state / "newest.json"
    signed = successor(mesh, current.read_bytes() if current.exists() else mesh.file("policy"), dict(changes))
    path.write_bytes(signed)
    asyncio.run(publish_policy(read_signed(path), mesh.state / "mesh.json", 30))
    current.write_bytes(signed)


@pytest.fixture(scope="module")
def told() -> Iterator[Told]:
    """A node is admitted under version 1; version 2 takes its measurement off; 3 gives it back; its key is revoked."""
    with short_folder() as folder, running_mesh(folder) as mesh:
        until(mesh, decision="admitted", policy_version=1)
        roles = jcs.loads_object(mesh.file("policy"))["policy"]["roles"]
        publish(mesh, {"roles": {**roles, "node": {**roles["node"], "measurements": []}}})
        until(mesh, recorded="MEASUREMENT_NOT_ALLOWED")
        publish(mesh, {"roles": roles})
        signed = revocation(mesh, RevocationKind.KEY, listed_again(mesh)["spki_sha256"])
        asyncio.run(revoke(signed, mesh.state / "mesh.json", 30))
        until(mesh, recorded="KEY_REVOKED", decision="withdrawn")
        copy = folder / "log.json"
        decisions(mesh, "--out", str(copy))
        pins = ("--ca", "mesh-ca.pem", "--compose", "compose.json", "--vkey", mesh.mesh["ledger_vkey"])
        (folder / "mesh-ca.pem").write_bytes(mesh.file("mesh_ca"))
        (folder / "compose.json").write_bytes((mesh.state / "compose" / "kms.json").read_bytes())
        yield Told(folder, copy, tuple(str(folder / pin) if pin.endswith((".pem", ".json")) else pin for pin in pins))


def index_of(rows: list[tuple[bytes, bytes | None]], kind: Kind, which: int = 0) -> int:
    return [number for number, (leaf, _) in enumerate(rows) if leaves.parse(leaf).kind is kind][which]


def body_of(row: tuple[bytes, bytes | None]) -> Mapping[str, Any]:
    assert row[1] is not None
    return parse_entry(row[1][SALT_SIZE:]).body


def test_every_decision_comes_out_as_it_was_taken_offline(told: Told) -> None:
    code, said = told.replay(told.copy, "--json")
    assert code == 0, said
    report = json.loads(said)
    made = [
        (each["decision"], each["recorded"], each["rule"]) for each in report["decisions"] if each["verdict"] == "SAME"
    ]
    assert {each["verdict"] for each in report["decisions"]} == {"SAME", "NOT REPEATABLE"}
    assert ("admitted", "ADMITTED", "roles.node.measurements[0]") in made
    assert ("withdrawn", "MEASUREMENT_NOT_ALLOWED", "roles.node.measurements") in made
    (revoked,) = {rule for _, recorded, rule in made if recorded == "KEY_REVOKED"}
    assert revoked.startswith('revocations."')
    assert report["policy_versions"] == [1, 2, 3]


def test_people_read_the_verdicts_and_what_the_log_cannot_tell(told: Told) -> None:
    code, said = told.replay(told.copy)
    assert code == 0, said
    assert "0 DIFFERENT" in said.splitlines()[-1]
    assert "The log has no times" in said


def edit_body(rows: list[tuple[bytes, bytes | None]]) -> None:
    """Another decision in the place of one."""
    number = next(place for place, (_, body) in enumerate(rows) if body is not None and b'"admitted"' in body)
    leaf, body = rows[number]
    assert body is not None
    rows[number] = (leaf, body.replace(b'"policy_version":1', b'"policy_version":2'))


def edit_leaf_too(rows: list[tuple[bytes, bytes | None]]) -> None:
    """The leaf of the edited decision is made to fit."""
    number = next(place for place, (_, body) in enumerate(rows) if body is not None and b'"admitted"' in body)
    leaf, body = rows[number]
    assert body is not None
    changed = body.replace(b'"policy_version":1', b'"policy_version":2')
    commitment = leaves.parse(leaf).commitment
    rows[number] = (leaf.replace(commitment, commit_to(changed[:SALT_SIZE], changed[SALT_SIZE:])), changed)


def withhold(kind: Kind, which: int = 0) -> Callable[[list[tuple[bytes, bytes | None]]], None]:
    def change(rows: list[tuple[bytes, bytes | None]]) -> None:
        number = index_of(rows, kind, which)
        rows[number] = (rows[number][0], None)

    return change


def drop(kind: Kind) -> Callable[[list[tuple[bytes, bytes | None]]], None]:
    def change(rows: list[tuple[bytes, bytes | None]]) -> None:
        del rows[index_of(rows, kind)]

    return change


def swap_evidence(rows: list[tuple[bytes, bytes | None]]) -> None:
    """Other evidence in the session that an admission stands on."""
    number = index_of(rows, Kind.SESSION)
    leaf, body = rows[number]
    assert body is not None
    session = dict(body_of(rows[number]))
    entry = jcs.loads_object(body[SALT_SIZE:])
    entry["body"] = session | {"evidence": session["evidence"] | {"digest": "sha256:" + "00" * 32}}
    rows[number] = (leaf, body[:SALT_SIZE] + jcs.dumps(entry))


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        (edit_body, "ENTRY_DAMAGED"),
        (edit_leaf_too, "LOG_ROOT_MISMATCH"),
        (withhold(Kind.POLICY, 1), "POLICY_WITHHELD"),
        (withhold(Kind.REVOCATION), "REVOCATION_WITHHELD"),
        (withhold(Kind.ADMISSION), "DECISION_WITHHELD"),
        (withhold(Kind.SESSION), "DECISION_WITHHELD"),
        (drop(Kind.POLICY), "LOG_ROOT_MISMATCH"),
        (drop(Kind.REVOCATION), "LOG_ROOT_MISMATCH"),
        (swap_evidence, "ENTRY_DAMAGED"),
    ],
)
def test_what_was_done_to_the_log_is_noticed(told: Told, attack: Callable[..., None], reason: str) -> None:
    code, said = told.replay(told.altered(attack))
    assert code == 2, said
    assert said.startswith(f"teemesh: {reason}: ")


def test_another_logs_key_is_refused(told: Told) -> None:
    name, public = "mesh.local/ledger/1", Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    code, said = told.replay(told.copy, "--vkey", VerifierKey(name, public).text())
    assert (code, "NOTE_SIGNATURE_INVALID" in said) == (2, True), said


def test_evidence_that_is_not_the_one_of_the_certificate_is_noticed(told: Told) -> None:
    """Certificates name their evidence by digest; the documents come from the archive, so from elsewhere."""
    rows = Copied.decode(told.copy.read_bytes()).rows
    certified = [body_of(row) for row in rows if leaves.parse(row[0]).kind is Kind.ADMISSION and row[1]]
    node = next(body for body in certified if body["decision"] == "certified" and "/node/" in body["spiffe_id"])
    session = next(body_of(row) for row in rows if leaves.parse(row[0]).kind is Kind.SESSION)
    folder = told.folder / "evidence"
    folder.mkdir()
    document = evidence_in(session)
    right = folder / f"{hashlib.sha256(document).hexdigest()}.json"
    right.write_bytes(document)
    code, said = told.replay(told.copy, "--evidence", str(folder), "--json")
    same = [each for each in json.loads(said)["decisions"] if each["decision"] == "certified"]
    assert (code, [each["verdict"] for each in same if "/node/" in each["spiffe_id"]][:1]) == (0, ["SAME"])
    (folder / f"{node['evidence_sha256']}.json").write_bytes(document + b" ")
    code, said = told.replay(told.copy, "--evidence", str(folder), "--json")
    swapped = [each["repeated"] for each in json.loads(said)["decisions"] if each["verdict"] == "DIFFERENT"]
    assert (code, set(swapped)) == (1, {"EVIDENCE_SWAPPED"})


def evidence_in(session: Mapping[str, Any]) -> bytes:
    document = jcs.dumps(dict(session))
    return verify_session(document, hashlib.sha256(document).hexdigest()).evidence
