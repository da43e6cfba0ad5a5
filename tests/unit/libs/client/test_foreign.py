"""A foreign ACI service judged by what was fetched of it: one test per way to be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest

from libs import jcs
from libs.aci.encoding import digest
from libs.aci.keyset import TlsKey
from libs.aci.receipt import RequestNotReceipted, ResponseNotReceipted, ServingNotVerified, SessionNotCited
from libs.aci.report import DIRECT
from libs.aci.session import Session, session_id, verify_session
from libs.client.attestation import Established, ReportEvidenceMalformed, TlsKeyNotAttested, quote_without_collateral
from libs.client.foreign import (
    ForeignEvidence,
    ForeignEvidenceMalformed,
    ForeignKeyRevoked,
    ForeignSubjectNotAccepted,
    SessionNotCurrent,
    parse_evidence,
    pins_of,
    verify_answer,
    verify_service,
    verify_upstream_session,
)
from libs.client.serving import ServedAtImplausible, SessionClaimsInsufficient
from libs.errors import MeshError
from libs.policy.document import Policy
from libs.policy.foreign import ForeignKind, ForeignProvider
from libs.policy.revoked import Revoked
from tests.fakes.attested_mesh import MODEL, TRUST_DOMAIN, AttestedMesh

NONCE = "5a" * 32
ORIGIN = "https://localhost:8443"
SUBJECT = f"spiffe://{TRUST_DOMAIN}/router/a"
REQUEST, RESPONSE = b"request", b"response"


def provider_of(mesh: AttestedMesh, **changes: Any) -> ForeignProvider:
    measurement = mesh.workloads["router"].measurement
    listed = ForeignProvider("other", ForeignKind.ACI, ORIGIN, {"m": MODEL}, frozenset({measurement}), SUBJECT)
    return replace(listed, **changes)


def evidence_of(mesh: AttestedMesh, **changes: Any) -> ForeignEvidence:
    honest = ForeignEvidence(ORIGIN, NONCE, mesh.report(NONCE).decode(), None, ())
    return replace(honest, **changes)


def revoking(mesh: AttestedMesh, revoked: Revoked) -> Policy:
    return replace(mesh.policy(), revoked=revoked)


def establish(mesh: AttestedMesh) -> Established:
    return verify_service(evidence_of(mesh), provider_of(mesh), mesh.policy(), mesh.now)


def test_an_honest_service_is_established_and_its_evidence_says_it_again(mesh: AttestedMesh) -> None:
    evidence = parse_evidence(evidence_of(mesh, session_ids=("aa" * 32,)).document())
    assert evidence == evidence_of(mesh, report=evidence.report, session_ids=("aa" * 32,))
    established = verify_service(evidence, provider_of(mesh), mesh.policy(), mesh.now)
    assert established.keyset.digest == mesh.keyset.digest


def test_no_channel_is_bound_by_a_report_that_names_another_hosts_key(mesh: AttestedMesh) -> None:
    (key,) = mesh.keyset.tls_public_keys
    host = str(urlsplit(provider_of(mesh).origin).hostname)
    scoped = replace(mesh.keyset, tls_public_keys=(key, TlsKey("bb" * 32, "b.example")))
    established = replace(establish(mesh), keyset=scoped, named=TlsKey(key.spki_sha256, host))
    assert pins_of(established, provider_of(mesh), Revoked()) == {key.spki_sha256}
    for named in (TlsKey("bb" * 32, host), TlsKey("bb" * 32, "b.example"), TlsKey(key.spki_sha256, "b.example")):
        with pytest.raises(TlsKeyNotAttested):
            pins_of(replace(established, named=named), provider_of(mesh), Revoked())


def test_collateral_of_ones_own_serves_where_a_report_brings_none(mesh: AttestedMesh) -> None:
    value = json.loads(mesh.report(NONCE))
    assert quote_without_collateral(mesh.report(NONCE)) is None
    del value["attestation"]["evidence"]["collateral"]
    bare = jcs.dumps(value)
    assert quote_without_collateral(bare) is not None
    with pytest.raises(ReportEvidenceMalformed):
        verify_service(evidence_of(mesh, report=bare.decode()), provider_of(mesh), mesh.policy(), mesh.now)
    given = evidence_of(mesh, report=bare.decode(), collateral=mesh.collateral)
    assert parse_evidence(given.document()) == given
    verify_service(given, provider_of(mesh), mesh.policy(), mesh.now)


def test_evidence_about_another_origin_is_refused(mesh: AttestedMesh) -> None:
    with pytest.raises(ForeignEvidenceMalformed):
        verify_service(evidence_of(mesh, origin="https://other"), provider_of(mesh), mesh.policy(), mesh.now)


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        (lambda mesh: (provider_of(mesh, subject="another"), Revoked()), ForeignSubjectNotAccepted),
        (
            lambda mesh: (provider_of(mesh, subject=None), Revoked(spiffe_ids=frozenset({SUBJECT}))),
            ForeignSubjectNotAccepted,
        ),
        (
            lambda mesh: (provider_of(mesh), Revoked(keys=frozenset({mesh.keyset.tls_public_keys[0].spki_sha256}))),
            ForeignKeyRevoked,
        ),
    ],
    ids=["subject", "revoked subject", "revoked key"],
)
def test_a_service_that_policy_or_a_revocation_excludes_is_refused(
    mesh: AttestedMesh, change: Callable[[AttestedMesh], tuple[ForeignProvider, Revoked]], refusal: type[MeshError]
) -> None:
    provider, revoked = change(mesh)
    with pytest.raises(refusal):
        verify_service(evidence_of(mesh), provider, revoking(mesh, revoked), mesh.now)


def test_a_keyset_without_a_key_for_the_host_is_refused(mesh: AttestedMesh) -> None:
    keyset = mesh.keyset
    elsewhere = replace(keyset, tls_public_keys=tuple(replace(k, domain="b.example") for k in keyset.tls_public_keys))
    evidence = evidence_of(mesh, report=mesh.report(NONCE, elsewhere).decode())
    with pytest.raises(TlsKeyNotAttested):
        verify_service(evidence, provider_of(mesh), mesh.policy(), mesh.now)


@pytest.mark.parametrize(
    "damage",
    [
        lambda value: value.update(format="teemesh/foreign-aci/v2"),
        lambda value: value.update(nonce="00"),
        lambda value: value.update(report=""),
        lambda value: value.pop("session_ids"),
        lambda value: value.update(more=1),
    ],
    ids=["format", "nonce", "report", "sessions", "more"],
)
def test_evidence_that_could_be_misread_is_refused(
    mesh: AttestedMesh, damage: Callable[[dict[str, Any]], object]
) -> None:
    value = json.loads(evidence_of(mesh).document())
    damage(value)
    with pytest.raises(ForeignEvidenceMalformed):
        parse_evidence(jcs.dumps(value))


def test_a_session_is_accepted_while_it_holds(mesh: AttestedMesh) -> None:
    document = mesh.session()
    name = session_id(document)
    for now in (mesh.now - 65, mesh.now + 3599):
        assert verify_upstream_session(document, name, provider_of(mesh), now).session_id == name
    for now in (mesh.now - 66, mesh.now + 3600):
        with pytest.raises(SessionNotCurrent):
            verify_upstream_session(document, name, provider_of(mesh), now)


def _session(mesh: AttestedMesh, **changes: Any) -> tuple[bytes, str]:
    document = jcs.dumps({**json.loads(mesh.session()), **changes})
    return document, session_id(document)


def test_a_session_that_binds_no_channel_is_refused(mesh: AttestedMesh) -> None:
    with pytest.raises(SessionNotCurrent, match="no channel"):
        verify_upstream_session(*_session(mesh, channel_binding=[]), provider_of(mesh), mesh.now)


@pytest.mark.parametrize(
    ("claims", "wanted"),
    [
        ({}, frozenset()),
        ({"tee_attested": {"status": "asserted", "source": "provider_asserted", "reason": "so"}}, frozenset()),
        (
            {"tee_attested": {"status": "asserted", "source": "hardware_proven", "reason": "so"}},
            frozenset({"gpu_attested"}),
        ),
    ],
    ids=["nothing", "word", "no gpu"],
)
def test_a_session_that_claims_too_little_is_refused(
    mesh: AttestedMesh, claims: dict[str, Any], wanted: frozenset[str]
) -> None:
    with pytest.raises(SessionClaimsInsufficient):
        verify_upstream_session(*_session(mesh, claims=claims), provider_of(mesh, session_claims=wanted), mesh.now)


def judged(mesh: AttestedMesh, accepted: dict[str, Session] | None = None, **changes: Any) -> None:
    served = mesh.serve(REQUEST, RESPONSE, required=changes.pop("required", True))
    session = mesh.session()
    given = {session_id(session): verify_session(session, session_id(session))} if accepted is None else accepted
    asked: dict[str, Any] = {
        "request_body": REQUEST,
        "response_hash": digest(RESPONSE),
        "sent_at": mesh.now,
        "received_at": mesh.now,
        **changes,
    }
    established = asked.pop("established", None) or establish(mesh)
    verify_answer(served.receipt, established, given, **asked)


def test_an_answer_with_its_receipt_passes(mesh: AttestedMesh) -> None:
    judged(mesh)


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"request_body": b"other"}, RequestNotReceipted),
        ({"response_hash": digest(b"other")}, ResponseNotReceipted),
        ({"sent_at": 1e10, "received_at": 1e10}, ServedAtImplausible),
        ({"accepted": {}}, SessionNotCited),
        ({"required": False}, ServingNotVerified),
    ],
    ids=["request", "response", "time", "session", "not required"],
)
def test_a_receipt_of_something_else_is_refused(
    mesh: AttestedMesh, changes: dict[str, Any], refusal: type[MeshError]
) -> None:
    with pytest.raises(refusal):
        judged(mesh, **changes)


def test_a_service_that_serves_by_itself_needs_no_session(mesh: AttestedMesh) -> None:
    judged(mesh, accepted={}, established=replace(establish(mesh), serving=DIRECT))
