"""Every check fails for its own reason when one thing was tampered with, and what rests on it says so."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs import jcs
from libs.aci.encoding import digest
from libs.aci.receipt import parse as parse_receipt
from libs.aci.receipt import sign as sign_receipt
from libs.aci.receipt_events import ServedByForeign, ServedByNode
from libs.client.checks import Materials, run_checks
from libs.client.http import RouterUnreachable
from libs.errors import MeshError
from libs.policy.document import read
from libs.transparency import checkpoint as checkpoints
from libs.transparency import cosignature
from libs.transparency.leaf import Leaf
from libs.transparency.leaf import parse as parse_leaf
from libs.transparency.quorum import Quorum
from tests.fakes.attested_mesh import MODEL, AttestedMesh, Ca
from tests.fakes.gathered import gathered

REQUEST, RESPONSE = b'{"messages":[]}', b'{"choices":[]}'
RESTS = "RESTS_ON_FAILED_CHECK"
WITNESS_NAME = "w1.example"


@pytest.fixture(scope="module")
def mesh() -> AttestedMesh:
    """Tests change what they were given, never the mesh."""
    return AttestedMesh.create(int(time.time()))


@pytest.fixture(scope="module")
def honest(mesh: AttestedMesh) -> Materials:
    return gathered(mesh, REQUEST, RESPONSE)


def _failures(materials: Materials) -> dict[int, str | None]:
    return {check.number: check.reason for check in run_checks(materials) if not check.passed}


def _served(honest: Materials, mesh: AttestedMesh, session: bytes, **how: Any) -> Materials:
    """The same exchange, served under another session."""
    served = mesh.serve(REQUEST, RESPONSE, session, **how)
    exchange = replace(honest.exchange, receipt_id=served.receipt_id)
    commitment = jcs.dumps(served.commitment)
    return replace(honest, exchange=exchange, receipt=served.receipt, session=session, commitment=commitment)


def _commitment(honest: Materials, change: Callable[[dict[str, Any]], None]) -> Materials:
    assert isinstance(honest.commitment, bytes)
    value = json.loads(honest.commitment)
    change(value)
    return replace(honest, commitment=jcs.dumps(value))


def cosigned(commitment: bytes, witness: Ed25519PrivateKey) -> bytes:
    """The same commitment, its checkpoint cosigned."""
    value = json.loads(commitment)
    note = value["checkpoint"].encode()
    line = cosignature.cosign(checkpoints.parse(note), WITNESS_NAME, witness, 1_700_000_000)
    value["checkpoint"] = cosignature.attach(note, [line]).decode()
    return jcs.dumps(value)


def _flipped(text: str) -> str:
    """Hex with its last bit flipped."""
    return text[:-1] + f"{int(text[-1], 16) ^ 1:x}"


def test_an_honest_exchange_passes_every_check(honest: Materials) -> None:
    checks = run_checks(honest)

    assert [check.number for check in checks] == list(range(1, 13))
    assert all(check.passed for check in checks)
    assert all(check.detail for check in checks)


def test_checkpoint_counts_only_with_the_cosignatures_that_are_demanded(honest: Materials) -> None:
    witness, other = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (7, 8))
    key, others = (cosignature.cosigner_key(WITNESS_NAME, each) for each in (witness, other))
    demanding = replace(honest, quorum=Quorum((key,), 1))
    assert _failures(demanding) == {12: "QUORUM_NOT_REACHED"}
    assert isinstance(honest.commitment, bytes)
    witnessed = replace(demanding, commitment=cosigned(honest.commitment, witness))
    assert _failures(witnessed) == {}
    assert run_checks(witnessed)[11].detail.endswith(f"cosigned by {WITNESS_NAME}")
    assert _failures(replace(witnessed, quorum=Quorum((others,), 1))) == {12: "QUORUM_NOT_REACHED"}
    second = cosignature.cosigner_key("w2.example", other)
    assert _failures(replace(witnessed, quorum=Quorum((key, second), 2))) == {12: "QUORUM_NOT_REACHED"}
    assert _failures(replace(witnessed, quorum=Quorum((key, second), 1))) == {}
    assert _failures(replace(honest, commitment=witnessed.commitment)) == {}


def test_development_roots_are_said_where_hardware_is_claimed(honest: Materials) -> None:
    details = {check.number: check.detail for check in run_checks(honest)}

    assert "DEVELOPMENT ROOT devtee" in details[1]
    assert "DEVELOPMENT ROOT devtee" in details[7]


def test_a_report_for_another_nonce_fails_the_first_check_and_what_rests_on_it(honest: Materials) -> None:
    failures = _failures(replace(honest, nonce="00" * 32))

    assert failures[1] == "REPORT_DATA_MISMATCH"
    assert {failures[number] for number in range(2, 12)} == {RESTS}
    assert 12 not in failures


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (frozenset({"00" * 32}), "TLS_KEY_NOT_ATTESTED"),
        (frozenset[str](), "CONNECTION_UNKNOWN"),
    ],
)
def test_a_connection_that_ended_elsewhere_fails(honest: Materials, seen: frozenset[str], reason: str) -> None:
    assert _failures(replace(honest, observed_spkis=seen)) == {2: reason}


def test_one_wrong_connection_among_right_ones_fails(honest: Materials) -> None:
    assert _failures(replace(honest, observed_spkis=honest.observed_spkis | {"00" * 32})) == {2: "TLS_KEY_NOT_ATTESTED"}


def test_an_altered_receipt_fails_its_signature(honest: Materials) -> None:
    assert isinstance(honest.receipt, bytes)
    value = jcs.loads_object(honest.receipt)
    value["model"] = "another"
    failures = _failures(replace(honest, receipt=jcs.dumps(value)))

    assert failures[3] == "RECEIPT_SIGNATURE_INVALID"
    assert {failures[number] for number in (4, 5, 6, 7, 8, 9)} == {RESTS}


def test_a_receipt_of_another_keyset_fails(honest: Materials, mesh: AttestedMesh) -> None:
    later = replace(mesh, now=mesh.now + 1)  # A keyset with another expiry is another keyset.
    served = later.serve(REQUEST, RESPONSE)

    assert _failures(replace(honest, receipt=served.receipt))[3] == "RECEIPT_OF_OTHER_KEYSET"


def test_another_request_fails_alone(honest: Materials) -> None:
    changed = replace(honest, exchange=replace(honest.exchange, request=REQUEST + b" "))

    assert _failures(changed) == {4: "REQUEST_NOT_RECEIPTED"}


def test_an_answer_that_went_to_another_key_fails_alone(honest: Materials, mesh: AttestedMesh) -> None:
    """Or to none: whoever ends TLS on the way may have taken the encryption off, or put an own key in place."""
    assert _failures(_sealed_to(honest, "5e" * 32)) == {4: "SEALED_FOR_ANOTHER"}
    sealed = _served(honest, mesh, mesh.session(), sealed_to="5f" * 32)
    assert _failures(sealed) == {4: "SEALED_FOR_ANOTHER"}
    assert _failures(_sealed_to(sealed, "5e" * 32)) == {4: "SEALED_FOR_ANOTHER"}
    assert _failures(_sealed_to(sealed, "5f" * 32)) == {}


def _sealed_to(materials: Materials, key: str) -> Materials:
    return replace(materials, exchange=replace(materials.exchange, sealed_to=key))


def test_a_changed_response_byte_fails_alone(honest: Materials) -> None:
    changed = replace(honest, exchange=replace(honest.exchange, response_hash=digest(RESPONSE + b" ")))

    assert _failures(changed) == {5: "RESPONSE_NOT_RECEIPTED"}


def test_serving_that_was_not_required_to_be_verified_fails(honest: Materials, mesh: AttestedMesh) -> None:
    failures = _failures(_served(honest, mesh, mesh.session(), required=False))

    assert failures == {6: "SERVING_NOT_VERIFIED", 7: RESTS}


def test_an_old_receipt_of_an_equal_exchange_fails(honest: Materials) -> None:
    late = replace(honest.exchange, sent_at=honest.now + 300, received_at=honest.now + 301)

    assert _failures(replace(honest, exchange=late))[6] == "SERVED_AT_IMPLAUSIBLE"


def test_an_altered_session_is_not_the_cited_one(honest: Materials) -> None:
    assert isinstance(honest.session, bytes)
    altered = honest.session.replace(b"127.0.0.1:7000", b"127.0.0.1:7001")

    assert _failures(replace(honest, session=altered)) == {7: "SESSION_ID_MISMATCH"}


def test_a_session_bound_to_another_key_than_its_evidence_fails(honest: Materials, mesh: AttestedMesh) -> None:
    assert _failures(_served(honest, mesh, mesh.session(spki_sha256="00" * 32))) == {7: "CHANNEL_NOT_EVIDENCED"}


def test_a_session_with_the_evidence_of_another_role_fails(honest: Materials, mesh: AttestedMesh) -> None:
    failures = _failures(_served(honest, mesh, mesh.session(mesh.evidence["ledger"])))

    assert failures == {7: "MEASUREMENT_NOT_ALLOWED"}


def test_a_receipt_that_names_another_node_than_its_session_fails(honest: Materials, mesh: AttestedMesh) -> None:
    other = mesh.session(mesh.prove("node"))  # Genuine evidence of the same node, but not what the receipt names.

    assert _failures(_served(honest, mesh, other)) == {7: "NODE_NOT_EVIDENCED"}


def test_a_receipt_that_names_other_weights_than_the_node_claims_fails(honest: Materials, mesh: AttestedMesh) -> None:
    assert _failures(_served(honest, mesh, mesh.session(), weights="88" * 32)) == {7: "NODE_NOT_EVIDENCED"}


def _naming(honest: Materials, mesh: AttestedMesh, **members: Any) -> Materials:
    """The same, with a receipt that says something else of the node."""
    assert isinstance(honest.receipt, bytes)
    receipt = parse_receipt(honest.receipt)
    events = tuple(replace(event, **members) if isinstance(event, ServedByNode) else event for event in receipt.events)
    signed = sign_receipt(replace(receipt, events=events), mesh.receipt_key)
    return replace(honest, receipt=signed, commitment=jcs.dumps(mesh.commit(signed)))


@pytest.mark.parametrize("other", [{"engine": "vllm 0.0.1"}, {"engine_args_sha256": "01" * 32}], ids=str)
def test_a_receipt_that_names_another_engine_or_other_arguments_than_the_node_claims_fails(
    honest: Materials, mesh: AttestedMesh, other: dict[str, str]
) -> None:
    assert _failures(_naming(honest, mesh, **other)) == {7: "NODE_NOT_EVIDENCED"}


@pytest.mark.parametrize("wrong", ["prompt", "key", "digest", "engine"])
def test_a_nodes_receipt_that_is_not_of_this_prompt_and_that_node_fails(
    honest: Materials, mesh: AttestedMesh, wrong: str
) -> None:
    own = mesh.node_receipt(
        b"another" if wrong == "prompt" else REQUEST,
        RESPONSE,
        Ed25519PrivateKey.generate() if wrong == "key" else None,
        "another" if wrong == "engine" else "embedded/1",
    )
    named = hashlib.sha256(b"another" if wrong == "digest" else own).hexdigest()
    served = _naming(honest, mesh, receipt=own.decode(), receipt_sha256=named)
    assert _failures(served) == {7: "NODE_NOT_EVIDENCED"}


def test_a_receipt_of_an_earlier_version_names_the_nodes_by_its_digest_alone(
    honest: Materials, mesh: AttestedMesh
) -> None:
    assert _failures(_naming(honest, mesh, receipt=None, engine_args_sha256=None)) == {}


def test_a_node_whose_weights_policy_does_not_list_fails(honest: Materials, mesh: AttestedMesh) -> None:
    draft = mesh.policy_draft()
    draft["models"] = {MODEL: ["88" * 32]}

    assert _failures(replace(honest, policy=read(draft))) == {7: "MODEL_NOT_ALLOWED"}


@pytest.mark.parametrize(("role", "number"), [("router", 1), ("node", 7), ("ledger", 10)])
def test_a_policy_without_a_measurement_fails_that_roles_check(
    honest: Materials, mesh: AttestedMesh, role: str, number: int
) -> None:
    draft = mesh.policy_draft()
    draft["roles"][role]["measurements"] = []

    assert _failures(replace(honest, policy=read(draft)))[number] == "MEASUREMENT_NOT_ALLOWED"


def test_evidence_that_another_ca_dated_fails_wherever_it_counts(honest: Materials, mesh: AttestedMesh) -> None:
    other = Ca.create(mesh.now)
    failures = _failures(
        replace(_commitment(honest, lambda document: document.update(mesh_ca=other.der.hex())), mesh_ca=None)
    )

    assert failures == {
        7: "CHALLENGE_ISSUER_NOT_TRUSTED",
        9: "CHALLENGE_ISSUER_NOT_TRUSTED",
        10: "CERTIFICATE_NOT_ACCEPTED",
        11: RESTS,
        12: "CERTIFICATE_NOT_ACCEPTED",
    }


def test_another_mesh_ca_than_the_known_one_fails(honest: Materials, mesh: AttestedMesh) -> None:
    assert _failures(replace(honest, mesh_ca=Ca.create(mesh.now).der))[9] == "MESH_CA_UNEXPECTED"


def test_an_entry_with_another_receipt_fails(honest: Materials) -> None:
    def change(document: dict[str, Any]) -> None:
        entry = json.loads(document["entry"])
        entry["body"]["served_at"] += 1
        document["entry"] = jcs.dumps(entry).decode()

    assert _failures(_commitment(honest, change)) == {8: "ENTRY_NOT_THIS_RECEIPT"}


def test_an_entry_under_another_name_is_not_the_committed_one(honest: Materials) -> None:
    def change(document: dict[str, Any]) -> None:
        entry = json.loads(document["entry"])
        entry["tenant"] = "cd" * 16
        document["entry"] = jcs.dumps(entry).decode()

    assert _failures(_commitment(honest, change)) == {8: "ENTRY_NOT_COMMITTED"}


@pytest.mark.parametrize("member", ["salt", "entry_id"])
def test_another_salt_or_id_fails_the_entry(honest: Materials, member: str) -> None:
    changed = _commitment(honest, lambda document: document.update({member: _flipped(document[member])}))

    assert _failures(changed) == {8: "ENTRY_NOT_COMMITTED"}


def test_another_boot_number_gives_another_issuer(honest: Materials) -> None:
    changed = _commitment(honest, lambda document: document.update(issuer_boot="00" * 16))

    assert _failures(changed) == {9: "ISSUER_NOT_THIS_ROUTER"}


def test_an_issuer_with_another_receipt_key_is_not_this_router(honest: Materials, mesh: AttestedMesh) -> None:
    claims = mesh.workloads["router"].claims | {"receipt_key": "00" * 32}
    other = mesh.prove("router", claims)
    changed = _commitment(honest, lambda document: document.update(issuer_evidence_sha256=other.digest.hex()))

    assert _failures(replace(changed, issuer_evidence=other.document)) == {9: "ISSUER_NOT_THIS_ROUTER"}


def test_a_receipt_key_of_an_earlier_keyset_counts_while_the_issuers_evidence_claims_it(
    honest: Materials, mesh: AttestedMesh
) -> None:
    own = mesh.workloads["router"].claims["receipt_key"]
    renewed = {"receipt_key": "00" * 32, "earlier_receipt_keys": ["11" * 32, own]}
    for earlier, failures in (
        (renewed, {}),
        (renewed | {"earlier_receipt_keys": ["11" * 32]}, {9: "ISSUER_NOT_THIS_ROUTER"}),
        (renewed | {"earlier_receipt_keys": own}, {9: "ISSUER_NOT_THIS_ROUTER"}),
        (renewed | {"earlier_receipt_keys": 7}, {9: "ISSUER_NOT_THIS_ROUTER"}),
    ):
        other = mesh.prove("router", mesh.workloads["router"].claims | earlier)
        changed = _commitment(honest, lambda document: document.update(issuer_evidence_sha256=other.digest.hex()))  # noqa: B023
        assert _failures(replace(changed, issuer_evidence=other.document)) == failures


def test_a_receipt_of_a_keyset_that_has_ended_is_refused(honest: Materials) -> None:
    """Whoever kept its key, or found it, signs for nobody who asks now."""
    (ended, *others) = _failures(replace(honest, now=honest.now + 8 * 86400)).items()
    assert ended == (1, "KEYSET_EXPIRED")
    assert (3, "RESTS_ON_FAILED_CHECK") in others


def test_evidence_that_is_not_the_named_document_fails(honest: Materials, mesh: AttestedMesh) -> None:
    changed = replace(honest, issuer_evidence=mesh.prove("router").document)

    assert _failures(changed) == {9: "EVIDENCE_NOT_THE_NAMED_ONE"}


def test_a_ledger_certificate_for_other_evidence_fails(honest: Materials, mesh: AttestedMesh) -> None:
    other = mesh.prove("ledger")
    changed = _commitment(honest, lambda document: document["ledger"].update(evidence_sha256=other.digest.hex()))

    assert _failures(replace(changed, ledger_evidence=other.document)) == {12: "LEDGER_NOT_ATTESTED"}


def test_a_ledger_that_restarted_since_is_judged_by_what_it_was_then(honest: Materials, mesh: AttestedMesh) -> None:
    """Another start has other keys: the acknowledgement is the old one's, the checkpoint the new one's."""
    new_key = Ed25519PrivateKey.generate()
    claims = mesh.workloads["ledger"].claims | {
        "ack_key": Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex(),
        "checkpoint_key": new_key.public_key().public_bytes_raw().hex(),
    }
    restarted = mesh.prove("ledger", claims)

    def change(document: dict[str, Any]) -> None:
        document["ledger"] = mesh.ledger_name(restarted)
        root = base64.b64decode(document["checkpoint"].split("\n")[2])
        document["checkpoint"] = mesh.checkpoint(document["inclusion"]["size"], root, new_key)

    assert _failures(replace(_commitment(honest, change), ledger_evidence=restarted.document)) == {}


def test_an_acknowledgement_by_a_ledger_that_never_was_fails(honest: Materials, mesh: AttestedMesh) -> None:
    other = mesh.prove("ledger", mesh.workloads["ledger"].claims | {"ack_key": "00" * 32})
    changed = _commitment(honest, lambda document: document.update(acknowledged_by=mesh.ledger_name(other)))

    assert _failures(replace(changed, acknowledger_evidence=other.document)) == {11: "ACKNOWLEDGEMENT_INVALID"}
    assert _failures(changed) == {10: "EVIDENCE_NOT_THE_NAMED_ONE", 11: RESTS}


def test_an_acknowledgement_by_another_log_fails(honest: Materials, mesh: AttestedMesh) -> None:
    other = mesh.prove("ledger", mesh.workloads["ledger"].claims | {"origin": "mesh.local/ledger/2"})
    named = mesh.ledger_name(other) | {"origin": "mesh.local/ledger/2"}
    changed = _commitment(honest, lambda document: document.update(acknowledged_by=named))

    assert _failures(replace(changed, acknowledger_evidence=other.document)) == {
        11: "ACKNOWLEDGEMENT_INVALID",
        12: "LEDGER_NOT_ATTESTED",
    }


def test_an_entry_that_one_log_acknowledged_is_not_shown_by_another(honest: Materials, mesh: AttestedMesh) -> None:
    other = mesh.prove("ledger", mesh.workloads["ledger"].claims | {"origin": "mesh.local/ledger/2"})
    named = mesh.ledger_name(other) | {"origin": "mesh.local/ledger/2"}
    shown = _commitment(honest, lambda document: document.update(ledger=named))

    assert _failures(replace(shown, ledger_evidence=other.document)) == {12: "LEDGER_NOT_ATTESTED"}


@pytest.mark.parametrize("role", ["router", "ledger"])
def test_a_stream_may_outlast_the_evidence_that_stood_when_it_began(mesh: AttestedMesh, role: str) -> None:
    """It is served when its prompt is handed over; router and ledger may be certified anew before its end."""
    honest, later = gathered(mesh, REQUEST, RESPONSE), replace(mesh, now=mesh.now + 600)
    exchange = replace(honest.exchange, received_at=mesh.now + 601)
    outlasted = _backed(replace(honest, exchange=exchange, now=mesh.now + 602), later, role)

    assert _failures(outlasted) == {}


@pytest.mark.parametrize(
    ("role", "failures"),
    [("router", {9: "COLLATERAL_TOO_OLD"}), ("ledger", {10: "CERTIFICATE_NOT_ACCEPTED", 11: RESTS})],
)
def test_evidence_that_ran_out_before_the_answer_was_served_counts_for_nothing(
    mesh: AttestedMesh, honest: Materials, role: str, failures: dict[int, str]
) -> None:
    assert _failures(_backed(honest, replace(mesh, now=mesh.now - 8 * 86_400), role)) == failures


def _backed(materials: Materials, then: AttestedMesh, role: str) -> Materials:
    """The same entry, with evidence from then of the router that issued it or the ledger that acknowledged it."""
    evidence = then.prove(role)
    if role == "router":
        named: dict[str, Any] = {"issuer_evidence_sha256": evidence.digest.hex()}
        changed = replace(materials, issuer_evidence=evidence.document)
    else:
        named = {"acknowledged_by": then.ledger_name(evidence)}
        changed = replace(materials, acknowledger_evidence=evidence.document)
    return _commitment(changed, lambda document: document.update(named))


def test_when_the_answer_came_is_not_what_the_ledger_is_judged_by(honest: Materials) -> None:
    """It is the client's word, and whoever has the file can change it."""
    late = replace(honest.exchange, received_at=honest.now + 3 * 86_400)

    assert _failures(replace(honest, exchange=late)) == {}


@pytest.mark.parametrize("seconds", [-300, 7200])
def test_when_the_proofs_were_gathered_is_nothing_against_the_ledger_that_acknowledged(
    honest: Materials, seconds: int
) -> None:
    failures = _failures(replace(honest, now=honest.now + seconds))

    assert 12 in failures
    assert not {9, 10, 11} & failures.keys()


def test_a_ledger_of_now_without_evidence_takes_nothing_from_the_one_that_acknowledged(honest: Materials) -> None:
    gone: MeshError = RouterUnreachable("away")

    assert _failures(replace(honest, ledger_evidence=gone)) == {12: "ROUTER_UNREACHABLE"}


@pytest.mark.parametrize("named", [None, "rcpt-another"])
def test_a_receipt_that_the_response_did_not_name_is_not_its_receipt(honest: Materials, named: str | None) -> None:
    changed = replace(honest, exchange=replace(honest.exchange, receipt_id=named))

    assert _failures(changed) == {5: "RECEIPT_NOT_THE_NAMED_ONE"}


def test_an_answer_that_broke_off_fails_a_thirteenth_check(honest: Materials) -> None:
    broken = replace(honest.exchange, broken_off="ROUTER_UNREACHABLE")

    assert _failures(replace(honest, exchange=broken)) == {13: "ANSWER_NOT_WHOLE"}


def test_another_role_than_the_ledger_signs_for_no_log(honest: Materials, mesh: AttestedMesh) -> None:
    def change(document: dict[str, Any]) -> None:
        document["ledger"]["certificate"] = mesh.certificate("node").hex()

    assert _failures(_commitment(honest, change)) == {12: "LEDGER_NOT_ATTESTED"}


def test_another_log_than_the_attested_one_fails(honest: Materials) -> None:
    def rename(which: str) -> Materials:
        return _commitment(honest, lambda document: document[which].update(origin="mesh.local/ledger/2"))

    assert _failures(rename("ledger")) == {12: "LEDGER_NOT_ATTESTED"}
    assert _failures(rename("acknowledged_by")) == {10: "LEDGER_NOT_ATTESTED", 11: RESTS}


def test_a_forged_acknowledgement_fails_alone(honest: Materials) -> None:
    def change(document: dict[str, Any]) -> None:
        promise = document["acknowledgement"]
        promise["signature"] = _flipped(promise["signature"])

    assert _failures(_commitment(honest, change)) == {11: "ACKNOWLEDGEMENT_INVALID"}


def test_the_acknowledgement_of_another_entry_fails(honest: Materials, mesh: AttestedMesh) -> None:
    other = mesh.serve(REQUEST, b"other").commitment["acknowledgement"]

    assert _failures(_commitment(honest, lambda document: document.update(acknowledgement=other))) == {
        11: "ACKNOWLEDGEMENT_OF_ANOTHER_ENTRY"
    }


def test_another_index_than_the_acknowledged_one_fails(honest: Materials) -> None:
    changed = _commitment(honest, lambda document: document.update(leaf_index=4))

    assert _failures(changed) == {11: "ACKNOWLEDGEMENT_OF_ANOTHER_ENTRY", 12: "PROOF_INVALID"}


def test_a_checkpoint_by_another_key_fails_alone(honest: Materials, mesh: AttestedMesh) -> None:
    note = mesh.checkpoint(6, bytes(32), Ed25519PrivateKey.generate())

    assert _failures(_commitment(honest, lambda document: document.update(checkpoint=note))) == {
        12: "NOTE_SIGNATURE_INVALID"
    }


@pytest.mark.parametrize(("size", "reason"), [(6, "PROOF_INVALID"), (7, "CHECKPOINT_OF_ANOTHER_SIZE")])
def test_a_checkpoint_of_another_tree_fails_alone(
    honest: Materials, mesh: AttestedMesh, size: int, reason: str
) -> None:
    note = mesh.checkpoint(size, bytes(32))

    assert _failures(_commitment(honest, lambda document: document.update(checkpoint=note))) == {12: reason}


def test_a_leaf_of_another_issuer_is_not_this_entrys(honest: Materials) -> None:
    def change(document: dict[str, Any]) -> None:
        leaf = parse_leaf(bytes.fromhex(document["leaf_data"]))
        document["leaf_data"] = Leaf(leaf.kind, leaf.issuer_seq, bytes(32), leaf.tag, leaf.commitment).data().hex()

    failures = _failures(_commitment(honest, change))

    assert failures == {
        8: "ENTRY_NOT_COMMITTED",
        11: "ACKNOWLEDGEMENT_OF_ANOTHER_ENTRY",
        12: "PROOF_INVALID",
    }


def test_what_could_not_be_fetched_fails_with_the_reason_why(honest: Materials) -> None:
    gone: MeshError = RouterUnreachable("away")
    failures = _failures(replace(honest, receipt=gone, session=gone, commitment=gone))

    assert failures[3] == failures[10] == "ROUTER_UNREACHABLE"
    assert set(failures) == set(range(3, 13))


@pytest.mark.parametrize(
    "member", ["salt", "entry", "acknowledgement", "inclusion", "ledger", "acknowledged_by", "mesh_ca"]
)
def test_a_commitment_that_lacks_something_is_malformed(honest: Materials, member: str) -> None:
    failures = _failures(_commitment(honest, lambda document: document.pop(member)))

    assert failures[8] == failures[10] == "COMMITMENT_MALFORMED"


def test_a_provider_outside_the_mesh_that_policy_does_not_list_fails_the_seventh(
    mesh: AttestedMesh, honest: Materials
) -> None:
    assert isinstance(honest.receipt, bytes)
    receipt = parse_receipt(honest.receipt)
    link = ServedByForeign("other", digest(b"{}").removeprefix("sha256:"), "{}")
    events = tuple(link if isinstance(event, ServedByNode) else event for event in receipt.events)
    signed = sign_receipt(replace(receipt, events=events), mesh.receipt_key)
    served = replace(honest, receipt=signed, commitment=jcs.dumps(mesh.commit(signed)))
    assert _failures(served) == {7: "FOREIGN_NOT_LISTED"}
