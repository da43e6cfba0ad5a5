"""Responsible for appraising the mesh's own evidence: a document under one role's rules in, a verdict out.

The function is pure: the same evidence, rules and time give the same verdict, on a live connection and years later.
The steps themselves are `libs.tee.judgement`'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from libs.errors import Code, MeshError
from libs.tee import binding
from libs.tee.challenge import Challenge
from libs.tee.claims import verify_claims, verify_gpu
from libs.tee.eventlog import Event, Identity
from libs.tee.evidence import SNP, TDX, Evidence
from libs.tee.judgement import judge
from libs.tee.measurement import Measured
from libs.tee.nvidia.evidence import GpuVerdict
from libs.tee.role import RoleRules
from libs.tee.rules import FOREVER
from libs.tee.steps import SILENT, Note, Steps
from libs.tee.verified import VerifiedPlatform
from libs.tee.workload import WorkloadClaims, workload_claims


class SpkiMismatch(MeshError):
    """The evidence speaks for another key than the one that must be proved."""

    code = Code.PERMISSION_DENIED
    reason = "SPKI_MISMATCH"


class NonceMismatch(MeshError):
    """The evidence answers another challenge than the verifier's own."""

    code = Code.PERMISSION_DENIED
    reason = "NONCE_MISMATCH"


class ReportDataMismatch(MeshError):
    """The quote does not bind this challenge, key and claims."""

    code = Code.PERMISSION_DENIED
    reason = "REPORT_DATA_MISMATCH"


@dataclass(frozen=True, slots=True)
class OwnNonce:
    """The verifier made the challenge itself; it MUST spend it once and soon, which is not judged here."""

    nonce: bytes


@dataclass(frozen=True, slots=True)
class SignedBy:
    """The challenge must be signed by this key and not be older than this."""

    ca_spki_der: bytes
    max_age_seconds: int


@dataclass(frozen=True, slots=True)
class AppraisalContext:
    """What the verifier knows that neither evidence nor policy says."""

    # Unix seconds.
    now: int
    # SubjectPublicKeyInfo, DER, of the key that must be proved; None leaves that to the caller.
    spki: bytes | None
    challenge: OwnNonce | SignedBy
    policy_version: int


@dataclass(frozen=True, slots=True)
class Appraisal:
    """A verdict. It holds until `valid_until` (unix seconds); whoever relies on it adds its own, shorter, bounds."""

    role: str
    tee_type: str
    measurement: Measured
    spki_sha256: bytes
    evidence_digest: bytes
    policy_version: int
    appraised_at: int
    valid_until: int
    # Lower-case hex. The seed of an instance id lies on the host's disk: it names an instance, it proves no machine.
    instance_id: str
    app_id: str
    device_id: str
    cpu_family: str
    tcb_status: str
    advisories: tuple[str, ...]
    # Which vendor root vouched: development evidence is told apart by it.
    vendor_root_sha256: bytes
    # The devices that answered the same challenge; that they are in the same machine is not claimed.
    gpu: GpuVerdict | None
    claims: WorkloadClaims
    # What the measured code says of itself, bound by the quote.
    workload_claims: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {
            "role": self.role,
            "tee_type": self.tee_type,
            "measurement": dict(self.measurement.to_json()),
            "spki_sha256": self.spki_sha256.hex(),
            "evidence_digest": self.evidence_digest.hex(),
            "policy_version": self.policy_version,
            "appraised_at": self.appraised_at,
            "valid_until": self.valid_until,
            "instance_id": self.instance_id,
            "app_id": self.app_id,
            "device_id": self.device_id,
            "cpu_family": self.cpu_family,
            "tcb_status": self.tcb_status,
            "advisories": list(self.advisories),
            "vendor_root_sha256": self.vendor_root_sha256.hex(),
            "gpu": None if self.gpu is None else self.gpu.to_json(),
            "claims": self.claims.to_json(),
            "workload_claims": dict(self.workload_claims),
        }


def appraise(evidence: Evidence, rules: RoleRules, context: AppraisalContext, steps: Steps = SILENT) -> Appraisal:
    """Judge evidence under one role's rules, or raise the reason of the first step that refuses."""
    presented = _Presented(evidence, context)
    verdict = judge(presented, rules, context.now, steps)
    tcb, device = verdict.platform.tcb, verdict.platform.device
    return Appraisal(
        role=rules.role,
        tee_type=evidence.tee_type,
        measurement=verdict.measurement,
        spki_sha256=hashlib.sha256(evidence.spki).digest(),
        evidence_digest=evidence.digest,
        policy_version=context.policy_version,
        appraised_at=context.now,
        valid_until=verdict.valid_until,
        instance_id=verdict.identity.instance_id.hex(),
        app_id=verdict.identity.app_id.hex(),
        device_id=device.id,
        cpu_family=device.family,
        tcb_status=tcb.status,
        advisories=tcb.advisories,
        vendor_root_sha256=verdict.platform.vendor_root_sha256,
        gpu=presented.gpu,
        claims=workload_claims(evidence.tee_type, tcb, presented.gpu, has_models=presented.has_models),
        workload_claims=evidence.claims,
    )


class _Presented:
    """An evidence document on its way through the steps; see `libs.tee.judgement.Presented`."""

    def __init__(self, evidence: Evidence, context: AppraisalContext) -> None:
        self._evidence = evidence
        self._context = context
        self.gpu: GpuVerdict | None = None
        self.has_models = False

    @property
    def event_log(self) -> tuple[Event, ...]:
        return self._evidence.event_log

    @property
    def app_compose(self) -> str:
        return self._evidence.app_compose

    def verify_quote(self, rules: RoleRules, now: int, note: Note) -> VerifiedPlatform:
        note("technology", self._evidence.tee_type, lambda: _technologies(rules))
        return rules.verify_quote(self._evidence.quote, self._evidence.collateral, now, note)

    def verify_binding(self, report_data: bytes, now: int, note: Note) -> None:
        evidence, context = self._evidence, self._context
        challenge, nonce = evidence.challenge, evidence.challenge.nonce
        note("purpose of the challenge", challenge.purpose, "any")
        match context.challenge:
            case OwnNonce(own):
                note("nonce of the challenge", nonce, own)
                if nonce != own:
                    raise NonceMismatch("the evidence answers another challenge")
            case SignedBy(ca_spki_der, max_age_seconds):
                note("key that signed the challenge, SHA-256", lambda: _signer(challenge), lambda: _sha256(ca_spki_der))
                note("age of the challenge, s", now - challenge.issued_at, f"{max_age_seconds} or less")
                challenge.verify_signed(ca_spki_der, now, max_age_seconds)
        if context.spki is not None:
            required = context.spki
            note("SHA-256 of the key", lambda: _sha256(evidence.spki), lambda: _sha256(required))
            if evidence.spki != context.spki:
                raise SpkiMismatch("the evidence speaks for another key")
        bound = binding.report_data(nonce, evidence.spki, evidence.claims)
        note("report data", report_data, bound)
        if bound != report_data:
            raise ReportDataMismatch("the quote does not bind this challenge, key and claims")

    def verify_gpu(self, rules: RoleRules, now: int, note: Note) -> int:
        self.gpu = verify_gpu(self._evidence, rules, now, note)
        return FOREVER if self.gpu is None else self.gpu.valid_until

    def verify_claims(self, rules: RoleRules, identity: Identity, note: Note) -> None:
        self.has_models = verify_claims(self._evidence, rules, note)


def _technologies(rules: RoleRules) -> tuple[str, ...]:
    return tuple(name for name, stated in ((TDX, rules.tdx), (SNP, rules.snp)) if stated is not None)


def _signer(challenge: Challenge) -> object:
    """Return the digest of the key that a challenge's certificate names, signed by it or not."""
    certificate_der = challenge.certificate_der
    if certificate_der is None:
        return "nobody"
    return _sha256(_spki(certificate_der))


def _spki(certificate_der: bytes) -> bytes:
    key = x509.load_der_x509_certificate(certificate_der).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
