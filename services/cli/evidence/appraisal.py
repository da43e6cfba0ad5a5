"""It is responsible for appraising a file step by step for the record, and for what is known when it is accepted.

The steps are `libs.tee`'s, the same that every service takes. What is added here is only that nothing is thrown away.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from libs.errors import MeshError
from libs.policy.document import Policy
from libs.policy.hardware import VendorRoot
from libs.tee import evidence as evidences
from libs.tee.appraisal import Appraisal, AppraisalContext, OwnNonce, SignedBy, appraise
from libs.tee.collateral import Collateral
from libs.tee.evidence import Evidence
from libs.tee.ratls.certificate import read_certificate
from libs.tee.ratls.verification import IssuedBy, RatlsContext, verify_ratls
from libs.tee.steps import Record, Step
from services.cli.terminal.inputs import InputUnreadable
from services.cli.terminal.words import Json


@dataclass(frozen=True, slots=True)
class DocumentTerms:
    """What an evidence document is judged by, beside the policy."""

    now: int
    role: str | None
    """None: the role that the claims name."""
    challenge: OwnNonce | SignedBy
    spki: bytes | None


@dataclass(frozen=True, slots=True)
class CertificateTerms:
    """What an RA-TLS certificate is judged by, beside the policy."""

    now: int
    role: str
    collateral: Collateral
    issued: IssuedBy | None
    app_id: bytes | None


@dataclass(frozen=True, slots=True)
class Accepted:
    """What all steps together prove."""

    role: str
    valid_until: int
    """Unix seconds."""
    vendor_root: VendorRoot
    spki_sha256: bytes
    """Of the key that the evidence speaks for."""
    measurement: Mapping[str, str]
    findings: Json
    """The whole result."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Why it is not."""

    role: str | None
    """None where the document could not be read, and nobody said for which."""
    refusal: MeshError


@dataclass(frozen=True, slots=True)
class Examination:
    """Every step that was begun, and what came of them."""

    steps: tuple[Step, ...]
    outcome: Accepted | Refused


def examine_document(data: bytes, policy: Policy, terms: DocumentTerms) -> Examination:
    """Appraise an evidence document. Raises `InputUnreadable` when nobody says for which role."""
    steps = Record()
    role = terms.role
    try:
        with steps.step(1) as note:
            evidence = evidences.parse(data, note)
        role = terms.role if terms.role is not None else _claimed_role(evidence)
        context = AppraisalContext(terms.now, terms.spki, terms.challenge, policy.version)
        appraisal = appraise(evidence, policy.rules(role), context, steps)
    except InputUnreadable:
        raise
    except MeshError as refusal:
        return Examination(tuple(steps.steps), Refused(role, refusal))
    return Examination(tuple(steps.steps), accepted(appraisal, policy))


def accepted(appraisal: Appraisal, policy: Policy) -> Accepted:
    root = _named(policy, appraisal.vendor_root_sha256)
    return Accepted(
        appraisal.role,
        appraisal.valid_until,
        root,
        appraisal.spki_sha256,
        appraisal.measurement.to_json(),
        appraisal.to_json(),
    )


def examine_certificate(der: bytes, policy: Policy, terms: CertificateTerms) -> Examination:
    """Appraise a dstack RA-TLS certificate. Whether its peer holds the key is the handshake's to show."""
    steps = Record()
    context = RatlsContext(terms.now, terms.issued, terms.app_id)
    try:
        verdict = verify_ratls(der, terms.collateral, policy.rules(terms.role), context, steps)
    except MeshError as refusal:
        return Examination(tuple(steps.steps), Refused(terms.role, refusal))
    platform = verdict.platform
    root = _named(policy, platform.vendor_root_sha256)
    spki_sha256 = hashlib.sha256(read_certificate(der).spki).digest()
    findings: Json = {
        "role": terms.role,
        "measurement": dict(verdict.measurement.to_json()),
        "spki_sha256": spki_sha256.hex(),
        "policy_version": policy.version,
        "appraised_at": terms.now,
        "valid_until": verdict.valid_until,
        "instance_id": verdict.identity.instance_id.hex(),
        "app_id": verdict.identity.app_id.hex(),
        "device_id": platform.device.id,
        "cpu_family": platform.device.family,
        "tcb_status": platform.tcb.status,
        "advisories": list(platform.tcb.advisories),
        "vendor_root_sha256": platform.vendor_root_sha256.hex(),
    }
    measurement = verdict.measurement.to_json()
    return Examination(
        tuple(steps.steps), Accepted(terms.role, verdict.valid_until, root, spki_sha256, measurement, findings)
    )


def _claimed_role(evidence: Evidence) -> str:
    role = evidence.claims.get("role")
    if not isinstance(role, str):
        raise InputUnreadable("the evidence claims no role: say with --role for which it is to be judged")
    return role


def _named(policy: Policy, root_sha256: bytes) -> VendorRoot:
    """Return the policy's root; the steps have proven that it is one of them."""
    return next(
        root for root in policy.hardware.vendor_roots if hashlib.sha256(root.certificate).digest() == root_sha256
    )
