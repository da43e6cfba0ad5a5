"""What may enter the log: one test per way to be refused, each with its reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs import jcs
from libs.events.batches import encode_batch
from libs.events.keyset import Keyset, PreviousIssuer
from libs.events.pipeline import Artifact, Stage, Step
from libs.events.records import Entry, Record, seal
from libs.events.stage_signature import sign_stage
from libs.events.vault import VaultKey
from libs.policy.revocation import RevocationKind, RevocationSignatureInvalid, parse_revocation
from libs.policy.signatures import parse_signed
from libs.transparency.leaf import Kind
from services.ledger.intake.admission import REPLAYED, Judged
from services.ledger.intake.issuers import KINDS_OF_ROLE, MAX_DELAY_SECONDS
from services.ledger.intake.logged_writers import LoggedWriters
from services.ledger.intake.policies import LoggedPolicies, PolicyNotInChain, SeedPolicyMissing
from tests.fakes.joined_mesh import JoinedMesh, KmsCore

from .conftest import SOURCE, open_store, sequencer
from .writers import VAULT, Gatekeeper, LogWriter, describe_log, gatekeeper


@pytest.fixture
def gate(mesh: JoinedMesh, kms: KmsCore) -> Gatekeeper:
    return gatekeeper(mesh, kms)


@pytest.fixture
def router(mesh: JoinedMesh, kms: KmsCore, gate: Gatekeeper) -> LogWriter:
    """A router whose keyset is in the log."""
    writer = LogWriter(mesh, kms, "router")
    assert not gate.judge(writer.batch(writer.introduce())).refusals
    return writer


def details(judged: Judged) -> str:
    return "; ".join(refusal.detail for refusal in judged.refusals)


def test_an_attested_issuers_entries_are_admitted_with_its_keyset_first(
    mesh: JoinedMesh, kms: KmsCore, gate: Gatekeeper
) -> None:
    writer = LogWriter(mesh, kms, "router")
    sealed = [writer.introduce(), writer.seal(Kind.RECEIPT, vault=VAULT), writer.seal(Kind.USAGE, vault=VAULT)]
    judged = gate.judge(writer.batch(*sealed))
    assert not judged.refusals
    assert [candidate.issuer_seq for candidate in judged.candidates] == [1, 2, 3]
    assert judged.candidates[1].commitment == sealed[1].record.header.commitment


def test_an_issuer_nobody_knows_is_refused_without_telling_it(mesh: JoinedMesh, kms: KmsCore, gate: Gatekeeper) -> None:
    writer = LogWriter(mesh, kms, "router")
    writer.introduce()
    (refusal,) = gate.judge(writer.batch(writer.seal(Kind.RECEIPT, vault=VAULT))).refusals
    assert refusal.reason.name == "ISSUER_UNKNOWN"
    assert not refusal.reason.is_proven


def test_a_batch_signed_by_another_key_is_refused_without_telling_the_issuer(
    gate: Gatekeeper, router: LogWriter
) -> None:
    forged = router.batch(router.seal(Kind.RECEIPT, vault=VAULT), key=Ed25519PrivateKey.generate())
    (refusal,) = gate.judge(forged).refusals
    assert refusal.reason.name == "SIGNATURE_INVALID"
    assert not refusal.reason.is_proven


def test_a_keyset_signed_by_another_key_is_refused_without_telling_the_issuer(
    mesh: JoinedMesh, kms: KmsCore, gate: Gatekeeper
) -> None:
    writer = LogWriter(mesh, kms, "router")
    forged = writer.batch(writer.introduce(), key=Ed25519PrivateKey.generate())
    assert gate.reasons(forged) == ["SIGNATURE_INVALID"]


def test_a_keyset_under_another_issuers_name_is_refused(mesh: JoinedMesh, kms: KmsCore, gate: Gatekeeper) -> None:
    writer, other = LogWriter(mesh, kms, "router"), LogWriter(mesh, kms, "router")
    stolen = writer.issuer.seal(Kind.KEYSET, other.keyset.body(), None)
    assert gate.reasons(writer.batch(stolen)) == ["MESSAGE_MALFORMED"]


def test_evidence_that_names_another_log_key_is_refused(mesh: JoinedMesh, kms: KmsCore, gate: Gatekeeper) -> None:
    writer = LogWriter(mesh, kms, "router", claims={"log_key": "00" * 32})
    judged = gate.judge(writer.batch(writer.introduce(), writer.seal(Kind.RECEIPT, vault=VAULT)))
    assert [refusal.reason.name for refusal in judged.refusals] == ["KEYSET_REFUSED", "KEYSET_REFUSED"]
    assert "KEYSET_NOT_ATTESTED" in details(judged)
    assert not judged.candidates


def test_a_measurement_that_policy_does_not_list_is_refused(mesh: JoinedMesh, kms: KmsCore, gate: Gatekeeper) -> None:
    writer = LogWriter(mesh, kms, "router", td=mesh.boot("router", "another image"))
    judged = gate.judge(writer.batch(writer.introduce()))
    assert [refusal.reason.name for refusal in judged.refusals] == ["KEYSET_REFUSED"]
    assert "MEASUREMENT_NOT_ALLOWED" in details(judged)


def revoking(mesh: JoinedMesh, kms: KmsCore, gate: Gatekeeper, *signed: bytes) -> None:
    """Have the KMS log revocations."""
    writer = LogWriter(mesh, kms, "kms")
    keyset = writer.introduce()
    entries = [writer.seal(Kind.REVOCATION, jcs.loads_object(each)) for each in signed]
    assert not gate.judge(writer.batch(keyset, *entries)).refusals


def test_a_new_issuer_that_a_logged_revocation_names_is_refused(
    mesh: JoinedMesh, kms: KmsCore, gate: Gatekeeper, router: LogWriter
) -> None:
    revoking(mesh, kms, gate, mesh.revocation(RevocationKind.MEASUREMENT, mesh.tds["router"].compose_hash.hex()))
    late = LogWriter(mesh, kms, "router")
    assert "MEASUREMENT_REVOKED" in details(gate.judge(late.batch(late.introduce())))
    # What was admitted before goes on: it was judged once.
    assert not gate.reasons(router.batch(router.seal(Kind.RECEIPT, vault=VAULT)))


def test_a_logged_revocation_that_no_operator_signed_withdraws_nothing(
    mesh: JoinedMesh, kms: KmsCore, gate: Gatekeeper
) -> None:
    compose = mesh.tds["router"].compose_hash.hex()
    stranger = JoinedMesh(mesh.folder, mesh.machine)  # Other operators.
    other_mesh = mesh.revocation(RevocationKind.MEASUREMENT, compose, mesh="other.test")
    revoking(mesh, kms, gate, stranger.revocation(RevocationKind.MEASUREMENT, compose), other_mesh, b"{}")
    late = LogWriter(mesh, kms, "router")
    assert not gate.reasons(late.batch(late.introduce()))


def test_a_logged_revocation_changes_nothing_again_and_vouches_for_no_other_signature(mesh: JoinedMesh) -> None:
    policies = LoggedPolicies(describe_log(mesh))
    policies.offer_seed(mesh.seed)
    signed = mesh.revocation(RevocationKind.TENANT, "12" * 16)
    for _ in range(2):
        policies.revoke(signed)
        assert policies.newest.revoked.tenants == {"12" * 16}
    forged = signed.replace(parse_revocation(signed).signature.hex().encode(), b"00" * 64)
    with pytest.raises(RevocationSignatureInvalid):
        policies.revoke(forged)


def test_a_logged_policy_lifts_a_logged_revocation(mesh: JoinedMesh, kms: KmsCore, gate: Gatekeeper) -> None:
    signed = mesh.revocation(RevocationKind.MEASUREMENT, mesh.tds["router"].compose_hash.hex())
    revoking(mesh, kms, gate, signed)
    lifted = [parse_revocation(signed).revocation.id.hex()]
    second = mesh.successor(parse_signed(mesh.seed).policy, lifted_revocations=lifted)
    writer = LogWriter(mesh, kms, "kms")
    keyset = writer.introduce()
    policies = [writer.seal(Kind.POLICY, jcs.loads_object(each)) for each in (mesh.seed, second)]
    assert not gate.reasons(writer.batch(keyset, *policies))
    late = LogWriter(mesh, kms, "router")
    assert not gate.reasons(late.batch(late.introduce()))


def test_a_certificate_of_another_ca_is_refused(mesh: JoinedMesh, kms: KmsCore, gate: Gatekeeper) -> None:
    other = LogWriter(mesh, mesh.kms("other", root=b"\x01" * 32), "router")
    judged = gate.judge(other.batch(other.introduce()))
    assert "CERTIFICATE_NOT_ACCEPTED" in details(judged)


@pytest.mark.parametrize("role", ["agent", "node"])
def test_a_role_that_writes_to_no_log_is_refused(mesh: JoinedMesh, kms: KmsCore, gate: Gatekeeper, role: str) -> None:
    writer = LogWriter(mesh, kms, role)
    assert gate.reasons(writer.batch(writer.introduce())) == ["KEYSET_REFUSED"]


def test_a_job_writes_stages_that_are_stages_and_lie_open(mesh: JoinedMesh, kms: KmsCore, gate: Gatekeeper) -> None:
    job = LogWriter(mesh, kms, "job")
    assert not gate.reasons(job.batch(job.introduce(), job.seal(Kind.PIPELINE, STAGE)))
    assert gate.reasons(job.batch(job.seal(Kind.PIPELINE, {**STAGE, "note": "any text"}))) == ["ENTRY_MALFORMED"]
    with pytest.raises(ValueError, match="does not lie in that vault"):
        job.seal(Kind.PIPELINE, STAGE, vault=VAULT)


STAGE = Stage(Step.TRAINING, "first", (), (Artifact("weights", bytes(32)),), bytes(32), 1, 2).body()


def _as_it_stands(job: LogWriter, number: int, change: Callable[[Entry], Entry]) -> bytes:
    """The job's batch with a stage in it that it did not sign itself, or not so."""
    entry = change(Entry(Kind.PIPELINE, job.issuer.id, number, bytes(32), None, STAGE))
    record = seal(entry.canonical(), entry.kind, entry.issuer, number, bytes(32), None)
    return encode_batch(job.issuer.id, number, [record], job.issuer.key)


def test_a_stage_enters_only_with_its_jobs_signature(mesh: JoinedMesh, kms: KmsCore, gate: Gatekeeper) -> None:
    job, other = LogWriter(mesh, kms, "job"), LogWriter(mesh, kms, "job")
    gate.judge(job.batch(job.introduce()))
    gate.judge(other.batch(other.introduce()))
    before = _as_it_stands(job, 2, lambda entry: replace(entry, body={**STAGE, "v": 1}))
    assert gate.reasons(before) == ["STAGE_NOT_SIGNED"]
    others = _as_it_stands(job, 3, lambda entry: sign_stage(entry, other.issuer.key))
    judged = gate.judge(others)
    assert [refusal.reason.name for refusal in judged.refusals] == ["ENTRY_MALFORMED"]
    assert "STAGE_SIGNATURE_INVALID" in details(judged)
    moved = _as_it_stands(
        job, 4, lambda entry: replace(sign_stage(replace(entry, issuer_seq=9), job.issuer.key), issuer_seq=4)
    )
    assert "STAGE_SIGNATURE_INVALID" in details(gate.judge(moved))
    assert gate.reasons(_as_it_stands(job, 5, lambda entry: sign_stage(entry, job.issuer.key))) == []


def test_a_job_whose_next_start_came_writes_no_more(mesh: JoinedMesh, kms: KmsCore, gate: Gatekeeper) -> None:
    ended = LogWriter(mesh, kms, "job")
    gate.judge(ended.batch(ended.introduce()))
    later = LogWriter(mesh, kms, "job", previous=PreviousIssuer(ended.issuer.id, 1))
    gate.judge(later.batch(later.introduce()))
    assert gate.reasons(ended.batch(ended.seal(Kind.PIPELINE, STAGE))) == ["SEQUENCE_CLOSED"]


def test_a_keyset_may_wait_for_the_broker_for_days_but_not_for_ever(
    mesh: JoinedMesh, kms: KmsCore, gate: Gatekeeper
) -> None:
    waited, forgotten = LogWriter(mesh, kms, "router"), LogWriter(mesh, kms, "router")
    assert not gate.reasons(waited.batch(waited.introduce()), later_seconds=24 * 3600)
    judged = gate.judge(forgotten.batch(forgotten.introduce()), later_seconds=MAX_DELAY_SECONDS + 2 * 3600)
    assert "KEYSET_TOO_LATE" in details(judged)


def test_later_batches_of_a_refused_issuer_are_refused_and_told(
    mesh: JoinedMesh, kms: KmsCore, gate: Gatekeeper
) -> None:
    writer = LogWriter(mesh, kms, "router", claims={})
    gate.judge(writer.batch(writer.introduce()))
    receipt = writer.seal(Kind.RECEIPT, vault=VAULT)
    (refusal,) = gate.judge(writer.batch(receipt)).refusals
    assert (refusal.reason.name, refusal.reason.is_proven) == ("KEYSET_REFUSED", True)
    assert gate.reasons(writer.batch(receipt, key=Ed25519PrivateKey.generate())) == ["SIGNATURE_INVALID"]


@pytest.mark.parametrize(
    ("role", "kind"),
    [
        ("router", Kind.POLICY),
        ("router", Kind.START),
        ("router", Kind.ADMISSION),
        ("kms", Kind.SESSION),
        ("registry", Kind.POLICY),
        ("registry", Kind.QUARANTINE),
        ("ledger", Kind.ADMISSION),
        ("kms", Kind.ERASURE),
        ("registry", Kind.REFUSALS),
        ("router", Kind.PIPELINE),
        ("job", Kind.SESSION),
        ("job", Kind.POLICY),
    ],
)
def test_a_kind_of_another_role_is_refused(
    mesh: JoinedMesh, kms: KmsCore, gate: Gatekeeper, role: str, kind: Kind
) -> None:
    writer = LogWriter(mesh, kms, role)
    assert gate.reasons(writer.batch(writer.introduce(), writer.seal(kind))) == ["KIND_NOT_ALLOWED"]


def test_a_router_may_say_how_many_it_did_not_let_in(gate: Gatekeeper, router: LogWriter) -> None:
    said = {"from": 1, "until": 3601, "counts": {"API_KEY_INVALID": 3}}
    assert gate.reasons(router.batch(router.seal(Kind.REFUSALS, said))) == []


def test_only_the_ledger_writes_what_is_the_ledgers() -> None:
    for kind in Kind:
        if kind.is_ledgers:
            assert [role for role, kinds in KINDS_OF_ROLE.items() if kind in kinds] == ["ledger"]


def renewed(mesh: JoinedMesh, kms: KmsCore, router: LogWriter, role: str = "router", **others: Any) -> Keyset:
    """A later keyset of the issuer, with evidence of its own."""
    said = {"log_key": router.issuer.log_key.hex(), "receipt_key": "07" * 32}
    return router.attested(mesh, kms, role, said, **others)


def test_an_issuer_may_renew_its_keyset_and_writes_on(
    mesh: JoinedMesh, kms: KmsCore, gate: Gatekeeper, router: LogWriter
) -> None:
    keyset = router.seal(Kind.KEYSET, renewed(mesh, kms, router).body())
    assert gate.reasons(router.batch(keyset, router.seal(Kind.RECEIPT, vault=VAULT))) == []


def test_a_keyset_is_renewed_by_its_own_service_alone(
    mesh: JoinedMesh, kms: KmsCore, gate: Gatekeeper, router: LogWriter
) -> None:
    """Its issuer is told, and writes on under the keyset before."""
    other = LogWriter(mesh, kms, "router")
    forged = {
        "another instance's": renewed(mesh, kms, router, instance="2"),
        "another role's": renewed(mesh, kms, router, role="registry"),
        "another log key's": router.attested(mesh, kms, "router", {"log_key": other.issuer.log_key.hex()}),
        "one that closes": replace(renewed(mesh, kms, router), previous=PreviousIssuer(other.issuer.id, 2)),
        "evidence of before": replace(renewed(mesh, kms, router), evidence=router.keyset.evidence),
    }
    told = {
        what: gate.reasons(router.batch(router.seal(Kind.KEYSET, keyset.body()))) for what, keyset in forged.items()
    }
    assert told == {what: ["KEYSET_NOT_RENEWED"] for what in forged}
    assert gate.reasons(router.batch(router.seal(Kind.KEYSET, other.keyset.body()))) == ["KEYSET_MALFORMED"]
    assert gate.reasons(router.batch(router.seal(Kind.RECEIPT, vault=VAULT))) == []


def test_a_keyset_is_not_renewed_by_evidence_that_policy_no_longer_admits(
    mesh: JoinedMesh, kms: KmsCore, gate: Gatekeeper, router: LogWriter
) -> None:
    keyset = renewed(mesh, kms, router, td=mesh.tds["node"])
    assert gate.reasons(router.batch(router.seal(Kind.KEYSET, keyset.body()))) == ["KEYSET_NOT_RENEWED"]


def test_a_vault_that_was_never_opened_is_refused(gate: Gatekeeper, router: LogWriter) -> None:
    other_month = replace(VAULT, epoch=VAULT.epoch + 1)
    assert gate.reasons(router.batch(router.seal(Kind.RECEIPT, vault=other_month))) == ["VAULT_UNKNOWN"]


def test_a_body_that_does_not_open_is_refused_alone(gate: Gatekeeper, router: LogWriter) -> None:
    bad, good = router.seal(Kind.RECEIPT, vault=VAULT), router.seal(Kind.RECEIPT, vault=VAULT)
    body = bytes([bad.record.body[0] ^ 1]) + bad.record.body[1:]
    judged = gate.judge(router.batch(replace(bad, record=Record(bad.record.header, body)), good))
    assert [(refusal.issuer_seq, refusal.reason.name) for refusal in judged.refusals] == [(2, "BODY_NOT_OPENED")]
    assert [candidate.issuer_seq for candidate in judged.candidates] == [3]


def test_a_record_that_nobody_vouches_for_is_opened(gate: Gatekeeper, router: LogWriter) -> None:
    sealed = [router.seal(Kind.RECEIPT, vault=VAULT) for _ in range(3)]
    bad = [replace(each, record=Record(each.record.header, bytes(len(each.record.body)))) for each in sealed[:2]]
    judged = gate.judge(router.batch(*bad, sealed[2]), opens={2, 4})
    assert [(refusal.issuer_seq, refusal.reason.name) for refusal in judged.refusals] == [(3, "BODY_NOT_OPENED")]
    assert [candidate.issuer_seq for candidate in judged.candidates] == [2, 4]


def test_vouching_stands_for_the_opening_and_for_nothing_else(
    mesh: JoinedMesh, kms: KmsCore, gate: Gatekeeper, router: LogWriter
) -> None:
    authority, everything = LogWriter(mesh, kms, "kms"), set(range(10))
    gate.judge(authority.batch(authority.introduce()))
    messages = {
        "SIGNATURE_INVALID": router.batch(router.seal(Kind.RECEIPT, vault=VAULT), key=Ed25519PrivateKey.generate()),
        "VAULT_UNKNOWN": router.batch(router.seal(Kind.RECEIPT, vault=replace(VAULT, epoch=VAULT.epoch + 1))),
        "KIND_NOT_ALLOWED": authority.batch(authority.seal(Kind.RECEIPT, vault=VAULT)),
        "POLICY_REFUSED": policy_message(authority, mesh.successor(parse_signed(mesh.seed).policy)),
        "KEYSET_MALFORMED": router.batch(router.seal(Kind.KEYSET, {"n": 1})),
    }
    refused = {
        reason: [each.reason.name for each in gate.judge(message, opens=everything).refusals]
        for reason, message in messages.items()
    }
    assert refused == {reason: [reason] for reason in messages}


def test_a_body_that_is_not_the_one_committed_to_is_refused(gate: Gatekeeper, router: LogWriter) -> None:
    sealed = router.seal(Kind.KEYSET, {"n": 1})
    header = replace(sealed.record.header, commitment=bytes(32))
    judged = gate.judge(router.batch(replace(sealed, record=Record(header, sealed.record.body))))
    assert [refusal.reason.name for refusal in judged.refusals] == ["BODY_NOT_OPENED"]
    assert "COMMITMENT_MISMATCH" in details(judged)


def test_an_entry_that_names_another_tenant_than_its_vaults_is_refused(gate: Gatekeeper, router: LogWriter) -> None:
    foreign = VaultKey(VAULT.vault_id, VAULT.epoch, VAULT.key, "ab" * 16)
    assert gate.reasons(router.batch(router.seal(Kind.RECEIPT, vault=foreign))) == ["ENTRY_MALFORMED"]


def test_a_number_far_beyond_the_others_is_refused(gate: Gatekeeper, router: LogWriter) -> None:
    for _ in range(65_537):
        router.issuer._last_seq += 1
    assert gate.reasons(router.batch(router.seal(Kind.RECEIPT, vault=VAULT))) == ["SEQUENCE_TOO_FAR"]


def test_a_restart_closes_the_sequence_before_it(mesh: JoinedMesh, kms: KmsCore, gate: Gatekeeper) -> None:
    old = LogWriter(mesh, kms, "router")
    kept, beyond = old.introduce(), None
    gate.judge(old.batch(kept))
    late, beyond = old.seal(Kind.RECEIPT, vault=VAULT), old.seal(Kind.RECEIPT, vault=VAULT)
    new = LogWriter(mesh, kms, "router", previous=PreviousIssuer(old.issuer.id, 2))
    gate.judge(new.batch(new.introduce()))
    assert not gate.reasons(old.batch(late))
    assert gate.reasons(old.batch(beyond)) == ["SEQUENCE_CLOSED"]


def test_another_service_cannot_close_a_sequence(mesh: JoinedMesh, kms: KmsCore, gate: Gatekeeper) -> None:
    router = LogWriter(mesh, kms, "router")
    gate.judge(router.batch(router.introduce()))
    other = LogWriter(mesh, kms, "router", instance="2", previous=PreviousIssuer(router.issuer.id, 1))
    gate.judge(other.batch(other.introduce()))
    assert not gate.reasons(router.batch(router.seal(Kind.RECEIPT, vault=VAULT)))


def test_a_resend_passes_and_is_left_to_the_sequencer(gate: Gatekeeper, router: LogWriter) -> None:
    message = router.batch(router.seal(Kind.RECEIPT, vault=VAULT))
    first, second = gate.judge(message), gate.judge(message)
    assert first.candidates == second.candidates
    assert not second.refusals


def policy_message(writer: LogWriter, signed: bytes) -> bytes:
    return writer.batch(writer.seal(Kind.POLICY, jcs.loads_object(signed)))


def test_policies_are_admitted_in_the_chain_that_the_log_began(
    mesh: JoinedMesh, kms: KmsCore, gate: Gatekeeper
) -> None:
    writer = LogWriter(mesh, kms, "kms")
    gate.judge(writer.batch(writer.introduce()))
    second = mesh.successor(parse_signed(mesh.seed).policy)
    assert gate.reasons(policy_message(writer, second)) == ["POLICY_REFUSED"]  # The seed must come first.
    assert not gate.reasons(policy_message(writer, mesh.seed))
    assert not gate.reasons(policy_message(writer, second))
    assert not gate.reasons(policy_message(writer, mesh.seed))  # A KMS without its book records them all again.


@pytest.mark.parametrize("signers", [(0,), ()])
def test_a_policy_without_enough_signatures_is_refused(
    mesh: JoinedMesh, kms: KmsCore, gate: Gatekeeper, signers: tuple[int, ...]
) -> None:
    writer = LogWriter(mesh, kms, "kms")
    gate.judge(writer.batch(writer.introduce(), writer.seal(Kind.POLICY, jcs.loads_object(mesh.seed))))
    policy = parse_signed(mesh.seed).policy
    draft = {**mesh.draft, "version": 2, "previous": policy.digest.hex()}
    judged = gate.judge(policy_message(writer, mesh.sign(draft, signers)))
    assert [refusal.reason.name for refusal in judged.refusals] == ["POLICY_REFUSED"]
    assert "POLICY_SIGNATURES_INSUFFICIENT" in details(judged)


def test_a_logged_policy_with_too_few_of_its_signatures_is_refused(
    mesh: JoinedMesh, kms: KmsCore, gate: Gatekeeper
) -> None:
    writer = LogWriter(mesh, kms, "kms")
    gate.judge(writer.batch(writer.introduce(), writer.seal(Kind.POLICY, jcs.loads_object(mesh.seed))))
    judged = gate.judge(policy_message(writer, mesh.sign(mesh.draft, (0,))))
    assert "POLICY_SIGNATURES_INSUFFICIENT" in details(judged)


def test_another_policy_of_a_logged_version_is_refused(mesh: JoinedMesh, kms: KmsCore, gate: Gatekeeper) -> None:
    writer = LogWriter(mesh, kms, "kms")
    gate.judge(writer.batch(writer.introduce(), writer.seal(Kind.POLICY, jcs.loads_object(mesh.seed))))
    twin = mesh.sign({**mesh.draft, "not_after": mesh.draft["not_after"] + 1})
    judged = gate.judge(policy_message(writer, twin))
    assert "POLICY_NOT_IN_CHAIN" in details(judged)


def test_an_upgraded_kms_brings_the_policy_that_admits_it(mesh: JoinedMesh, kms: KmsCore, gate: Gatekeeper) -> None:
    old = LogWriter(mesh, kms, "kms")
    gate.judge(old.batch(old.introduce(), old.seal(Kind.POLICY, jcs.loads_object(mesh.seed))))
    upgraded = mesh.boot("kms", "the next image")
    before = LogWriter(mesh, kms, "kms", td=upgraded)
    assert gate.reasons(before.batch(before.introduce())) == ["KEYSET_REFUSED"]
    mesh.tds["kms"] = upgraded
    signed = mesh.successor(parse_signed(mesh.seed).policy, roles=mesh._draft()["roles"])
    after = LogWriter(mesh, kms, "kms", td=upgraded)
    judged = gate.judge(after.batch(after.introduce(), after.seal(Kind.POLICY, jcs.loads_object(signed))))
    assert not judged.refusals


def test_a_router_cannot_bring_a_policy_that_admits_it(mesh: JoinedMesh, kms: KmsCore, gate: Gatekeeper) -> None:
    writer = LogWriter(mesh, kms, "kms")
    gate.judge(writer.batch(writer.introduce(), writer.seal(Kind.POLICY, jcs.loads_object(mesh.seed))))
    mesh.tds["router"] = mesh.boot("router", "the next image")
    signed = mesh.successor(parse_signed(mesh.seed).policy, roles=mesh._draft()["roles"])
    router = LogWriter(mesh, kms, "router")
    message = router.batch(router.introduce(), router.seal(Kind.POLICY, jcs.loads_object(signed)))
    assert gate.reasons(message) == ["KEYSET_REFUSED", "KEYSET_REFUSED"]


def test_a_log_read_again_admits_the_same_writers(
    mesh: JoinedMesh, kms: KmsCore, gate: Gatekeeper, empty_log: Path
) -> None:
    writer = LogWriter(mesh, kms, "kms")
    gate.judge(writer.batch(writer.introduce(), writer.seal(Kind.POLICY, jcs.loads_object(mesh.seed))))
    old = LogWriter(mesh, kms, "router")
    gate.judge(old.batch(old.introduce()))
    new = LogWriter(mesh, kms, "router", previous=PreviousIssuer(old.issuer.id, 1))
    gate.judge(new.batch(new.introduce()))
    stranger = LogWriter(mesh, kms, "registry", previous=PreviousIssuer(new.issuer.id, 1))
    gate.judge(stranger.batch(stranger.introduce()))
    revoking(mesh, kms, gate, mesh.revocation(RevocationKind.MEASUREMENT, mesh.tds["registry"].compose_hash.hex()))
    with open_store(empty_log) as store:
        sequencer(store).append(list(gate.logged.values()), SOURCE, 1, 1)
    with open_store(empty_log) as store:
        again = gatekeeper(mesh, kms, LoggedWriters(store.index, store.reader).of)
        again.admission.replay(store.reader.entry(index) for index in store.index.of_kinds(REPLAYED))
        assert not again.reasons(new.batch(new.seal(Kind.RECEIPT, vault=VAULT)))
        assert again.reasons(old.batch(old.seal(Kind.RECEIPT, vault=VAULT))) == ["SEQUENCE_CLOSED"]
        registry = LogWriter(mesh, kms, "registry")
        assert "MEASUREMENT_REVOKED" in details(again.judge(registry.batch(registry.introduce())))
        second = mesh.successor(parse_signed(mesh.seed).policy)
        assert not again.reasons(policy_message(writer, second))


def test_a_seed_that_the_log_was_not_made_with_is_refused(mesh: JoinedMesh) -> None:
    policies = LoggedPolicies(describe_log(mesh))
    with pytest.raises(SeedPolicyMissing):
        _ = policies.newest
    with pytest.raises(PolicyNotInChain):
        policies.offer_seed(mesh.sign({**mesh.draft, "not_after": mesh.draft["not_after"] + 1}))
