"""Evidence from a software TEE, and rules that accept exactly it: every test changes one thing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from libs.tee import binding, evidence
from libs.tee.appraisal import AppraisalContext, SignedBy
from libs.tee.challenge import Challenge
from libs.tee.collateral import Collateral
from libs.tee.device import DeviceLists
from libs.tee.eventlog import Event
from libs.tee.evidence import Evidence
from libs.tee.measurement import Measurement, MeasurementSet
from libs.tee.nvidia.evidence import GpuEvidence
from libs.tee.role import RoleRules
from libs.tee.tcb import TcbRule
from libs.tee.tdx_platform import TdxRules
from services.devtee.collateral import CollateralShape
from services.devtee.machine import InstanceIdentity, Machine, VirtualTd
from services.devtee.quotes import TD_ATTRIBUTES

NOW = 1_790_000_000
COMPOSE = '{"manifest_version":2,"name":"teemesh-router","teemesh":{"role":"router"}}'
CLAIMS = {"role": "router", "log_key": "00" * 32}
DAY = 24 * 3600
STRICT_TCB = TcbRule(frozenset({"UpToDate"}), frozenset(), 0, 17, 30 * DAY)


@dataclass(frozen=True, slots=True)
class Issuer:
    """A mesh CA: what signs challenges."""

    key: ec.EllipticCurvePrivateKey
    certificate_der: bytes

    @classmethod
    def create(cls) -> Issuer:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mesh.test")])
        moment = datetime.fromtimestamp(NOW, UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(moment - timedelta(days=1))
            .not_valid_after(moment + timedelta(days=1))
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate.public_bytes(Encoding.DER))

    @property
    def spki(self) -> bytes:
        return spki_of(self.key)

    def challenge(self, now: int = NOW) -> Challenge:
        return Challenge.signed("kms/1", "evidence", now, self.key, self.certificate_der)


def spki_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@dataclass(frozen=True, slots=True)
class Bench:
    """One TD on one machine, one mesh CA, one attested key."""

    machine: Machine
    td: VirtualTd
    issuer: Issuer
    spki: bytes

    @classmethod
    def create(cls) -> Bench:
        machine = Machine.create(NOW)
        td = machine.boot(COMPOSE.encode(), InstanceIdentity.random(), NOW)
        return cls(machine, td, Issuer.create(), spki_of(ec.generate_private_key(ec.SECP256R1())))

    @property
    def event_log(self) -> tuple[Event, ...]:
        return tuple(Event(e.imr, e.event_type, e.digest, e.name, e.payload) for e in self.td.events)

    def collateral(self, shape: CollateralShape | None = None) -> Collateral:
        return Collateral.parse(self.machine.collateral(shape or CollateralShape(NOW)).members())

    def evidence(
        self,
        *,
        claims: Mapping[str, Any] = CLAIMS,
        challenge: Challenge | None = None,
        shape: CollateralShape | None = None,
        event_log: Sequence[Event] | None = None,
        app_compose: str = COMPOSE,
        td_attributes: bytes = TD_ATTRIBUTES,
        report_data: bytes | None = None,
        gpu_evidence: GpuEvidence | None = None,
    ) -> Evidence:
        challenge = challenge or self.issuer.challenge()
        bound = report_data or binding.report_data(challenge.nonce, self.spki, claims)
        return evidence.assemble(
            quote=self.td.quote(bound, td_attributes=td_attributes),
            event_log=self.event_log if event_log is None else event_log,
            app_compose=app_compose,
            spki=self.spki,
            claims=claims,
            challenge=challenge,
            collateral=self.collateral(shape),
            gpu_evidence=gpu_evidence,
        )

    @property
    def measurement(self) -> Measurement:
        rtmrs = self.td.rtmrs
        return Measurement(
            compose_hash=hashlib.sha256(COMPOSE.encode()).hexdigest(),
            app_id=self.td.identity.app_id.hex(),
            os_image_hash=self.machine.image.os_image_hash.hex(),
            key_provider=hashlib.sha256(self.machine.kms.provider.encode()).hexdigest(),
            mrtd=self.machine.image.mrtd.hex(),
            rtmr0=rtmrs[0].hex(),
            rtmr1=rtmrs[1].hex(),
            rtmr2=rtmrs[2].hex(),
        )

    def rules(self, role: str = "router") -> RoleRules:
        return RoleRules(
            role=role,
            tdx=self.tdx(),
            snp=None,
            devices=DeviceLists().rule(),
            gpu=None,
            gpu_required=False,
            models={},
        )

    def tdx(self, **changes: Any) -> TdxRules:
        rules = TdxRules(
            vendor_roots=(self.machine.vendor_root,),
            tcb=STRICT_TCB,
            td_attributes=frozenset({TD_ATTRIBUTES.hex()}),
            measurements=MeasurementSet(frozenset({self.measurement})),
        )
        return replace(rules, **changes)

    def tcb(self, **changes: Any) -> RoleRules:
        return replace(self.rules(), tdx=self.tdx(tcb=replace(STRICT_TCB, **changes)))

    def context(self, now: int = NOW) -> AppraisalContext:
        return AppraisalContext(now, self.spki, SignedBy(self.issuer.spki, 300), policy_version=7)
