"""Challenges and verdicts: each challenge answered once, each verdict signed for everybody in the mesh."""

from __future__ import annotations

import asyncio
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from teemesh.attestation.v1 import attestation_pb2 as pb
from teemesh.attestation.v1 import attestation_pb2_grpc as pb_grpc

from libs import jcs
from libs.errors import MeshError
from libs.identity.certificate import spki_of_certificate
from libs.tee.archived import Bundle, Refused
from libs.tee.challenge import Challenge
from libs.tee.ear import CONTRAINDICATED, verify_ear
from tests.fakes.joined_mesh import Clock, JoinedMesh, KmsCore
from tests.fakes.refusals import refusal, refused
from tests.fakes.running_attestation import Attestation, appraise, bundle, challenge, ledger_evidence, watched


async def test_a_challenge_is_signed_by_the_service_and_answered_once(
    mesh: JoinedMesh, attestation: Attestation, stub: pb_grpc.AttestationServiceStub
) -> None:
    asked = await challenge(stub)
    asked.verify_signed(attestation.member.identity.current.certificate.spki, int(Clock().now), 60)
    evidence = mesh.evidence("ledger", asked, ec.generate_private_key(ec.SECP256R1()))
    verdict = json.loads((await appraise(stub, evidence.document, "ledger")).appraisal)
    assert (verdict["role"], verdict["evidence_digest"]) == ("ledger", evidence.digest.hex())
    assert await refusal(appraise(stub, evidence.document, "ledger")) == "CHALLENGE_NOT_OPEN"


async def test_challenges_that_are_not_open_are_all_refused_alike(
    mesh: JoinedMesh, kms: KmsCore, attestation: Attestation, stub: pb_grpc.AttestationServiceStub
) -> None:
    """Spent, expired, of another purpose, of another challenger, and one whose nonce was cut or changed."""
    spent = ledger_evidence(mesh, await challenge(stub))
    await appraise(stub, spent, "ledger")
    old = ledger_evidence(mesh, await challenge(stub))
    other_purpose = [ledger_evidence(mesh, await challenge(stub, purpose)) for purpose in ("evidence", "appraisal ")]
    other_issuer = ledger_evidence(mesh, kms.challenges.issue("appraisal"))
    asked = await challenge(stub)
    own = attestation.member.identity.current
    forged = Challenge.signed(asked.issuer, "appraisal", asked.issued_at, own.key, own.certificate.der)
    refusals = [await refused(appraise(stub, document, "ledger")) for document in (spent, *other_purpose, other_issuer)]
    refusals.append(await refused(appraise(stub, ledger_evidence(mesh, forged), "ledger")))
    attestation.clock.now += 61
    refusals.append(await refused(appraise(stub, old, "ledger")))
    assert {(each.reason, str(each)) for each in refusals} == {("CHALLENGE_NOT_OPEN", str(refusals[0]))}
    # None of them was judged, so none of them was recorded.
    assert attestation.feed._sequence == 1001


async def test_a_truncated_nonce_is_refused_like_any_other_that_is_not_open(attestation: Attestation) -> None:
    asked = attestation.challenges.issue("appraisal")
    for nonce in (asked.nonce[:31], asked.nonce[:16], b"", asked.nonce + b"\0"):
        with pytest.raises(MeshError) as error:
            attestation.challenges.spend(nonce, "appraisal")
        assert error.value.reason == "CHALLENGE_NOT_OPEN"
    attestation.challenges.spend(asked.nonce, "appraisal")


async def test_a_challenge_whose_random_part_was_cut_is_no_challenge(
    mesh: JoinedMesh, stub: pb_grpc.AttestationServiceStub
) -> None:
    value = jcs.loads_object(ledger_evidence(mesh, await challenge(stub)))
    value["challenge"]["document"]["random"] = value["challenge"]["document"]["random"][:-2]
    assert await refusal(appraise(stub, jcs.dumps(value), "ledger")) == "CHALLENGE_MALFORMED"


async def test_the_verdict_comes_signed_for_everybody_in_the_mesh(
    mesh: JoinedMesh, kms: KmsCore, attestation: Attestation, stub: pb_grpc.AttestationServiceStub
) -> None:
    asked = await challenge(stub)
    response = await appraise(stub, ledger_evidence(mesh, asked), "ledger")
    ca_spki = spki_of_certificate(kms.ca.certificate)
    result = verify_ear(response.result, ca_spki, int(attestation.clock.now), nonce=asked.nonce)
    assert result.issuer == attestation.member.spiffe_id
    assert result.appraisal == json.loads(response.appraisal)
    assert result.status == {"cpu": CONTRAINDICATED}  # The mesh of the tests has a development root.
    assert result.claims["teemesh"]["record_digest"] == response.record_digest.hex()


async def test_refused_evidence_has_spent_its_challenge_and_is_recorded(
    mesh: JoinedMesh, attestation: Attestation, stub: pb_grpc.AttestationServiceStub
) -> None:
    document = ledger_evidence(mesh, await challenge(stub))
    events = attestation.feed.follow(0)
    told = asyncio.ensure_future(anext(events))
    assert await refusal(appraise(stub, document, "kms")) == "MEASUREMENT_NOT_ALLOWED"
    assert await refusal(appraise(stub, document, "ledger")) == "CHALLENGE_NOT_OPEN"
    made = (await told).made
    assert made is not None
    outcome = Bundle.decode(await bundle(stub, made.record_digest)).record.outcome
    assert isinstance(outcome, Refused)
    assert (outcome.reason, outcome.step, made.refusal) == ("MEASUREMENT_NOT_ALLOWED", 8, "MEASUREMENT_NOT_ALLOWED")


async def test_what_never_was_evidence_pushes_nothing_out_of_the_archive(
    mesh: JoinedMesh, attestation: Attestation, stub: pb_grpc.AttestationServiceStub
) -> None:
    good = await appraise(stub, ledger_evidence(mesh, await challenge(stub)), "ledger")
    attestation.archive._files._limit_bytes = 200 * 1024
    copied = jcs.loads_object(ledger_evidence(mesh, await challenge(stub)))
    for size in range(3):
        padded = {**copied, "challenge": (await challenge(stub)).to_json(), "app_compose": "x" * (150_000 + size)}
        assert await refusal(appraise(stub, jcs.dumps(padded), "ledger")) == "REPORT_DATA_MISMATCH"
    assert await bundle(stub, good.record_digest)
    for event in await watched(stub, 1001, 3):
        assert (event.made.refusal, event.made.record_digest) == ("REPORT_DATA_MISMATCH", b"")
        request = pb.GetEvidenceRequest(digest=event.made.evidence_digest)
        assert await refusal(stub.GetEvidence(request, timeout=10)) == "EVIDENCE_UNKNOWN"


async def test_an_unknown_role_and_a_broken_document_are_refused(
    mesh: JoinedMesh, stub: pb_grpc.AttestationServiceStub
) -> None:
    document = ledger_evidence(mesh, await challenge(stub))
    for role in ("nobody", "", "operator", "x" * 1000):
        assert await refusal(appraise(stub, document, role)) == "ROLE_UNKNOWN"
    assert await refusal(appraise(stub, document[:-1], "ledger")) == "JSON_MALFORMED"
    await appraise(stub, document, "ledger")  # Neither of them was judged, so the challenge is still open.


async def test_a_purpose_that_nobody_could_read_back_is_refused(stub: pb_grpc.AttestationServiceStub) -> None:
    for purpose in ("", "x" * 257):
        call = stub.CreateChallenge(pb.CreateChallengeRequest(purpose=purpose), timeout=10)
        assert await refusal(call) == "CHALLENGE_MALFORMED"


async def test_a_service_whose_policy_is_stale_appraises_nobody(
    mesh: JoinedMesh, attestation: Attestation, stub: pb_grpc.AttestationServiceStub
) -> None:
    policy = attestation.member.policy
    policy.accept(mesh.successor(policy.current, not_after=mesh.draft["not_before"] + 60))
    assert await refusal(appraise(stub, b"{}", "ledger")) == "POLICY_NOT_VALID_NOW"


async def test_while_policy_is_stale_no_challenge_is_spent(
    mesh: JoinedMesh, attestation: Attestation, stub: pb_grpc.AttestationServiceStub
) -> None:
    document = ledger_evidence(mesh, await challenge(stub))
    policy = attestation.member.policy
    policy.accept(mesh.successor(policy.current, not_after=mesh.draft["not_before"] + 60))
    for _ in range(2):
        assert await refusal(attestation.appraiser.appraise(document, "ledger")) == "POLICY_NOT_VALID_NOW"
