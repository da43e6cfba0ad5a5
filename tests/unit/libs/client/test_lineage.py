"""From weights to data, offline: what holds, and one test per way to be refused."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import ValidationError

from libs import jcs
from libs.aci import receipt as receipts
from libs.client import lineage_file
from libs.client.lineage import Lineage, Terms, WeightsNotNamed, check_lineage, served_weights
from libs.client.lineage_file import LineageFileMalformed
from libs.errors import MeshError
from libs.events.keyset import PreviousIssuer
from libs.events.pipeline import Artifact, Stage, Step
from libs.events.records import Entry, commit_to, parse_entry
from libs.events.stage_signature import sign_stage
from libs.policy.document import Policy
from libs.policy.revocation import Revocation, RevocationKind, RevocationSet, sign_revocation
from libs.transparency.chain import entry_id
from libs.transparency.cosignature import cosigner_key
from libs.transparency.leaf import Kind, Leaf
from libs.transparency.leaf import parse as parse_leaf
from libs.transparency.quorum import Quorum
from tests.fakes.attested_mesh import TRUST_DOMAIN, WEIGHTS, AttestedMesh
from tests.fakes.entry_schema import require_documented_lineage
from tests.fakes.lineages import BASE, CLEANED, CORPUS, Job, Log, forged, tuned

MADE = (Artifact("weights", bytes.fromhex(WEIGHTS)),)
NAMES = [
    "weights are known",
    "ledger is attested",
    "tree is signed by the ledger",
    "weights were made by stage 1",
    "stage 1 is in the signed tree",
    "stage 1 is signed by an allowed job",
    "stage 1 took what was made before",
    "stage 2 is in the signed tree",
    "stage 2 is signed by an allowed job",
    "stage 2 took what was made before",
    "the weights lead to their data",
]


@pytest.fixture(scope="module")
def mesh() -> AttestedMesh:
    return AttestedMesh.create(int(time.time()))


@pytest.fixture(scope="module")
def honest(mesh: AttestedMesh) -> Lineage:
    return tuned(mesh)


@pytest.fixture(scope="module")
def log(mesh: AttestedMesh) -> Log:
    """A log of a test's own, with the jobs that the policy allows."""
    return Log(mesh)


def terms(mesh: AttestedMesh, **changes: Any) -> Terms:
    return replace(Terms(mesh.policy(), mesh.ca.der, mesh.now), **changes)


def failed(lineage: Lineage, by: Terms, weights: str = WEIGHTS) -> dict[int, str | None]:
    checks = check_lineage(lineage, lambda: bytes.fromhex(weights), by)
    return {check.number: check.reason for check in checks if not check.passed}


def test_weights_lead_to_their_data(mesh: AttestedMesh, honest: Lineage) -> None:
    require_documented_lineage(lineage_file.encode(honest))
    again = lineage_file.decode(lineage_file.encode(honest))
    assert again == honest
    checks = check_lineage(again, lambda: bytes.fromhex(WEIGHTS), terms(mesh, data=frozenset({CORPUS, BASE})))
    assert [check.name for check in checks] == NAMES
    assert [check.reason for check in checks] == [None] * len(NAMES)
    assert checks[4].detail.startswith("fine_tuning 'fine_tuning', leaf ")
    assert mesh.workloads["job"].measurement.compose_hash in checks[5].detail
    assert checks[6].detail == "1 of 2 inputs from stages shown here"
    assert checks[10].detail == f"'base' {BASE.hex()}; 'corpus' {CORPUS.hex()}"


def test_other_weights_and_other_data_are_not_what_was_made(mesh: AttestedMesh, honest: Lineage) -> None:
    assert failed(honest, terms(mesh), "78" * 32) == {4: "WEIGHTS_NOT_MADE"}
    assert failed(honest, terms(mesh, data=frozenset({CLEANED}))) == {11: "DATA_NOT_USED"}


def test_weights_that_are_not_known_are_led_nowhere(mesh: AttestedMesh, honest: Lineage) -> None:
    def unknown() -> bytes:
        raise WeightsNotNamed("nobody served")

    reasons = [check.reason for check in check_lineage(honest, unknown, terms(mesh)) if not check.passed]
    assert reasons == ["WEIGHTS_NOT_NAMED", "RESTS_ON_FAILED_CHECK"]


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("member", ["name", "inputs", "parameters_sha256", "stage", "began_ms"])
def test_one_edited_stage_breaks_it(mesh: AttestedMesh, honest: Lineage, place: int, member: str) -> None:
    other: dict[str, Any] = {
        "name": "another",
        "inputs": [],
        "parameters_sha256": "01" * 32,
        "stage": "training",
        "began_ms": 999,
    }
    stages = list(honest.stages)
    stages[place] = forged(stages[place], **{member: other[member]})
    found = failed(replace(honest, stages=tuple(stages)), terms(mesh))
    assert found[5 + 3 * place] == "ENTRY_NOT_COMMITTED"
    assert found[11] == "ENTRY_NOT_COMMITTED"


def test_an_edited_stage_with_a_leaf_of_its_own_is_in_no_signed_tree(mesh: AttestedMesh, honest: Lineage) -> None:
    edited = forged(honest.stages[1], inputs=[])
    leaf = parse_leaf(edited.leaf_data)
    own = Leaf(leaf.kind, leaf.issuer_seq, leaf.issuer, leaf.tag, commit_to(edited.salt, edited.canonical)).data()
    stages = (honest.stages[0], replace(edited, leaf_data=own))
    assert failed(replace(honest, stages=stages), terms(mesh))[8] == "PROOF_INVALID"


def test_a_tree_that_the_ledger_did_not_sign_is_refused(mesh: AttestedMesh, honest: Lineage) -> None:
    other = mesh.checkpoint(9, bytes(32), Ed25519PrivateKey.generate()).encode()
    assert failed(replace(honest, checkpoint=other), terms(mesh))[3] == "NOTE_SIGNATURE_INVALID"
    smaller = mesh.checkpoint(9, bytes(32)).encode()
    found = failed(replace(honest, checkpoint=smaller), terms(mesh))
    assert {found[number] for number in (5, 6, 8, 9)} == {"PROOF_INVALID"}


def test_a_tree_without_the_cosignatures_that_are_demanded_is_refused(mesh: AttestedMesh, honest: Lineage) -> None:
    witness = cosigner_key("witness.example", Ed25519PrivateKey.generate())
    assert failed(honest, terms(mesh, quorum=Quorum((witness,), 1)))[3] == "QUORUM_NOT_REACHED"


def test_a_ledger_of_another_mesh_is_refused(mesh: AttestedMesh, honest: Lineage) -> None:
    other = AttestedMesh.create(mesh.now)
    assert failed(honest, terms(mesh, mesh_ca=other.ca.der))[2] == "CERTIFICATE_NOT_ACCEPTED"


@pytest.mark.parametrize("role", ["job", "ledger", "router"])
def test_a_stage_of_a_workload_that_policy_does_not_allow_is_refused(
    mesh: AttestedMesh, honest: Lineage, role: str
) -> None:
    draft = mesh.policy_draft()
    draft["roles"]["job"]["measurements"] = [] if role == "job" else [mesh.workloads[role].measurement.to_json()]
    found = failed(honest, terms(mesh, policy=_policy(mesh, draft)))
    assert found == {6: "MEASUREMENT_NOT_ALLOWED", 9: "MEASUREMENT_NOT_ALLOWED"}


def test_a_policy_that_has_no_jobs_allows_none(mesh: AttestedMesh, honest: Lineage) -> None:
    draft = mesh.policy_draft()
    del draft["roles"]["job"]
    found = failed(honest, terms(mesh, policy=_policy(mesh, draft)))
    assert found.keys() == {6, 9}


def test_a_job_that_was_revoked_since_is_refused(mesh: AttestedMesh, honest: Lineage) -> None:
    compose = mesh.workloads["job"].measurement.compose_hash
    revoked = Revocation(TRUST_DOMAIN, RevocationKind.MEASUREMENT, compose, "a test", mesh.now * 1000)
    revocations = RevocationSet().union([sign_revocation(revoked, mesh.operators[0])])
    found = failed(honest, terms(mesh, policy=mesh.policy().under(revocations)))
    assert found == {6: "MEASUREMENT_REVOKED", 9: "MEASUREMENT_REVOKED"}


def _alone(log: Log, job: Job, shown: Job | None = None) -> Lineage:
    return log.lineage([job.record(Step.TRAINING, (), MADE)], [shown or job])


def test_a_stage_by_another_role_is_no_jobs(mesh: AttestedMesh, honest: Lineage, log: Log) -> None:
    assert failed(_alone(log, Job(log, role="router")), terms(mesh)) == {6: "JOB_NOT_ATTESTED"}


def test_a_stage_under_another_log_key_than_the_attested_one_is_refused(
    mesh: AttestedMesh, honest: Lineage, log: Log
) -> None:
    claims = {"log_key": Job(log).issuer.log_key.hex()}
    assert failed(_alone(log, Job(log, claims=claims)), terms(mesh)) == {6: "JOB_NOT_ATTESTED"}
    assert failed(_alone(log, Job(log), Job(log)), terms(mesh)) == {6: "JOB_NOT_ATTESTED"}


def test_a_job_cannot_log_anothers_keyset_as_its_own(mesh: AttestedMesh, honest: Lineage, log: Log) -> None:
    """The ledger admits no such issuer. Whoever is shown the entry need not rely on that."""
    other = Job(log)
    for introduced in (other.keyset, Job(log, claims={"log_key": "00" * 32}).keyset):
        posing = Job(log, keyset=introduced)
        assert failed(_alone(log, posing), terms(mesh)) == {6: "JOB_NOT_ATTESTED"}


def test_an_entry_of_another_kind_is_no_stage_and_no_keyset(mesh: AttestedMesh, honest: Lineage) -> None:
    found = failed(replace(honest, stages=(honest.keysets[0], honest.stages[1])), terms(mesh))
    assert found[5] == "ENTRY_OF_ANOTHER_KIND"
    assert failed(replace(honest, keysets=honest.stages), terms(mesh)) == {
        6: "ENTRY_OF_ANOTHER_KIND",
        9: "ENTRY_OF_ANOTHER_KIND",
    }


def test_a_stage_in_anothers_name_is_not_what_the_leaf_says(mesh: AttestedMesh, honest: Lineage, log: Log) -> None:
    author, posing = Job(log), Job(log)
    sealed = author.issuer.seal(Kind.PIPELINE, parse_entry(honest.stages[1].canonical).body, None)
    commitment = sealed.record.header.commitment
    for issuer, number in ((posing.issuer.id, sealed.issuer_seq), (author.issuer.id, sealed.issuer_seq + 1)):
        leaf = Leaf(Kind.PIPELINE, number, issuer, bytes(16), commitment)
        log.put(sealed, leaf)
        found = failed(log.lineage([sealed.entry_id], [author]), terms(mesh), CLEANED.hex())
        assert {found[number] for number in (4, 5, 6, 7)} == {"ENTRY_NOT_COMMITTED"}


def test_a_keyset_that_the_log_does_not_have_is_refused(mesh: AttestedMesh, honest: Lineage) -> None:
    unlogged = replace(honest.keysets[1], salt=bytes(32))
    found = failed(replace(honest, keysets=(honest.keysets[0], unlogged)), terms(mesh))
    assert found == {6: "ENTRY_NOT_COMMITTED", 9: "ENTRY_NOT_COMMITTED"}


def _invented(log: Log, honest: Lineage, signed: Callable[[Entry], Entry]) -> Lineage:
    """Weights by a stage that the ledger's writer made up, under the name of a job that the log knows."""
    real = parse_entry(honest.stages[0].canonical)
    author = Job(log)
    stage = Stage(Step.TRAINING, "invented", (), MADE, bytes(32), 1_000, 2_000)
    entry = Entry(Kind.PIPELINE, author.issuer.id, 2, real.previous, None, stage.body())
    return log.lineage([log.write(signed(entry))], [author])


def _with(signature: str) -> Callable[[Entry], Entry]:
    return lambda entry: replace(entry, body={**entry.body, "signature": signature})


def test_a_stage_that_its_job_did_not_sign_is_refused(mesh: AttestedMesh, honest: Lineage, log: Log) -> None:
    """Whoever has the ledger's writer can put it into the signed tree, and no further."""
    of_another_stage: str = parse_entry(honest.stages[0].canonical).body["signature"]
    another_jobs = Job(log).issuer.key
    attacks = {
        "another job's key": lambda entry: sign_stage(entry, another_jobs),
        "a key of nobody's": lambda entry: sign_stage(entry, Ed25519PrivateKey.generate()),
        "another stage's signature": _with(of_another_stage),
        "zeros": _with("00" * 64),
    }
    for attack, signed in attacks.items():
        assert failed(_invented(log, honest, signed), terms(mesh)) == {6: "STAGE_SIGNATURE_INVALID"}, attack


def test_a_stage_without_a_signature_reads_as_one_and_counts_for_nothing(
    mesh: AttestedMesh, honest: Lineage, log: Log
) -> None:
    """So did jobs write them once. Leaving the signature out of one of today gives no stage at all."""
    before = _invented(log, honest, lambda entry: replace(entry, body={**entry.body, "v": 1}))
    assert failed(before, terms(mesh)) == {6: "STAGE_NOT_SIGNED"}
    found = failed(_invented(log, honest, lambda entry: entry), terms(mesh))
    assert {found[number] for number in (4, 5, 6, 7, 8)} == {"STAGE_MALFORMED"}


def test_a_signed_stage_cannot_be_logged_in_another_place(mesh: AttestedMesh, honest: Lineage, log: Log) -> None:
    """A job that made the same weights twice is not shown with one way for the other."""
    author, next_run = Job(log), Job(log)
    made = author.record(Step.TRAINING, (Artifact("corpus", CORPUS),), MADE)
    entry = parse_entry(log.show(made).canonical)
    for moved in (
        replace(entry, issuer_seq=3),
        replace(entry, issuer=next_run.issuer.id),
        replace(entry, previous=bytes(32)),
    ):
        shown = log.lineage([log.write(moved)], [author, next_run])
        assert failed(shown, terms(mesh)) == {6: "STAGE_SIGNATURE_INVALID"}


def test_a_log_key_counts_no_more_once_a_later_start_closed_its_sequence(
    mesh: AttestedMesh, honest: Lineage, log: Log
) -> None:
    ended = Job(log)
    within = ended.record(Step.DATA_PREPROCESSING, (), (Artifact("cleaned", CLEANED),))
    closing = PreviousIssuer(ended.issuer.id, 2)
    later, another = Job(log, previous=closing), Job(log, previous=closing, instance="2")
    beyond = ended.record(Step.TRAINING, (), MADE)
    assert failed(log.lineage([beyond], [ended, later]), terms(mesh)) == {6: "JOB_ENDED_BEFORE"}
    assert failed(log.lineage([beyond], [ended, another]), terms(mesh)) == {}
    assert failed(log.lineage([within], [ended, later]), terms(mesh), CLEANED.hex()) == {}


def test_a_jobs_certificate_of_another_ca_is_refused(mesh: AttestedMesh, honest: Lineage, log: Log) -> None:
    job = Job(log, ca=ec.generate_private_key(ec.SECP256R1()))
    assert failed(_alone(log, job), terms(mesh)) == {6: "CERTIFICATE_NOT_ACCEPTED"}


def test_a_missing_link_is_refused(mesh: AttestedMesh, honest: Lineage) -> None:
    assert failed(replace(honest, stages=honest.stages[:1]), terms(mesh)) == {7: "STAGE_MISSING"}
    assert failed(replace(honest, keysets=honest.keysets[:1]), terms(mesh)) == {9: "JOB_NOT_ATTESTED"}
    assert failed(replace(honest, stages=()), terms(mesh)) == {4: "WEIGHTS_NOT_MADE"}


def test_a_stage_that_nothing_leads_to_is_refused(mesh: AttestedMesh, honest: Lineage, log: Log) -> None:
    job = Job(log)
    other, made = job.record(Step.EVALUATION, (), (Artifact("report", BASE),)), job.record(Step.TRAINING, (), MADE)
    assert failed(log.lineage([made, other], [job]), terms(mesh)) == {11: "STAGE_NOT_ON_THE_WAY"}
    assert failed(log.lineage([made, made], [job]), terms(mesh)) == {11: "STAGE_NOT_ON_THE_WAY"}


def test_an_input_that_its_stage_did_not_make_is_refused(mesh: AttestedMesh, honest: Lineage, log: Log) -> None:
    job = Job(log)
    cleaned = job.record(Step.DATA_PREPROCESSING, (), (Artifact("cleaned", CLEANED),))
    made = job.record(Step.TRAINING, (Artifact("cleaned", CORPUS, cleaned),), MADE)
    assert failed(log.lineage([made, cleaned], [job]), terms(mesh)) == {7: "INPUT_NOT_MADE"}


def test_stages_that_rest_on_each_other_are_refused(mesh: AttestedMesh, honest: Lineage, log: Log) -> None:
    """A job knows the id of its next entry, so it can name one that does not exist yet."""
    first, second = Job(log), Job(log)
    next_of_second = second.issuer.id, 2
    one = first.record(Step.TRAINING, (Artifact("two", BASE, entry_id(*next_of_second)),), MADE)
    two = second.record(Step.TRAINING, (Artifact("one", MADE[0].sha256, one),), (Artifact("two", BASE),))
    assert two == entry_id(*next_of_second)
    assert failed(log.lineage([one, two], [first, second]), terms(mesh)) == {7: "STAGE_NOT_BEFORE"}
    itself = Job(log)
    own = itself.record(Step.TRAINING, (Artifact("weights", MADE[0].sha256, entry_id(itself.issuer.id, 2)),), MADE)
    assert failed(log.lineage([own], [itself]), terms(mesh)) == {7: "STAGE_NOT_BEFORE"}


def test_weights_are_the_receipts(mesh: AttestedMesh) -> None:
    receipt = receipts.parse(mesh.serve(b"{}", b"{}").receipt)
    assert served_weights(receipt).hex() == WEIGHTS
    with pytest.raises(WeightsNotNamed):
        served_weights(replace(receipt, events=()))


CHANGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "v": lambda value: value.update(v=2),
    "more": lambda value: value.update(more=1),
    "less": lambda value: value.pop("ledger"),
    "capitals": lambda value: value.update(checkpoint="AB"),
    "no list": lambda value: value.update(stages={}),
    "too many": lambda value: value.update(stages=value["stages"][:1] * 257),
    "short salt": lambda value: value["stages"][0].update(salt="00"),
    "negative": lambda value: value["stages"][0].update(index=-1),
    "long path": lambda value: value["keysets"][0].update(path=["00" * 32] * 65),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_form_is_refused(honest: Lineage, change: str) -> None:
    value = jcs.loads_object(lineage_file.encode(honest))
    CHANGES[change](value)
    with pytest.raises(LineageFileMalformed):
        lineage_file.decode(jcs.dumps(value))
    with pytest.raises(ValidationError):
        require_documented_lineage(jcs.dumps(value))


@settings(max_examples=200, deadline=None)
@given(place=st.integers(0, 2**20), byte=st.integers(0, 255))
def test_no_change_of_the_file_adds_to_what_it_proves(
    mesh: AttestedMesh, honest: Lineage, place: int, byte: int
) -> None:
    data = bytearray(lineage_file.encode(honest))
    data[place % len(data)] = byte
    try:
        changed = lineage_file.decode(bytes(data))
    except MeshError:
        return
    # The time is the word of whoever gathered it.
    if replace(changed, gathered_at=honest.gathered_at) != honest:
        assert failed(changed, terms(mesh))


def _policy(mesh: AttestedMesh, draft: dict[str, Any]) -> Policy:
    return mesh.trust(draft).policy(mesh.now)
