"""A mesh without processes: genuine evidence, receipts, log and policy from a software TEE, all made on the spot.

It behaves honestly. Tests that need a lie change one artifact after it was made.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from libs import jcs
from libs.aci import keyset as keysets
from libs.aci import receipt as receipts
from libs.aci import report as reports
from libs.aci.e2ee.suites import SUITES, X25519_ALGO
from libs.aci.encoding import digest
from libs.aci.keyset import Keyset, TlsKey
from libs.aci.receipt_events import (
    Encrypted,
    Generated,
    PolicyInForce,
    RequestForwarded,
    RequestReceived,
    ResponseReturned,
    ServedByNode,
    UpstreamVerified,
)
from libs.aci.session import TlsBinding, session_document, session_id
from libs.client.trust import Trust
from libs.events.records import FIRST_PREVIOUS, Entry, commit_to
from libs.identity.certificate import Subject, issue
from libs.policy.document import Policy, read
from libs.policy.signatures import SignedPolicy, sign
from libs.tee import binding, evidence
from libs.tee.challenge import Challenge
from libs.tee.collateral import Collateral
from libs.tee.eventlog import Event
from libs.tee.evidence import Evidence
from libs.tee.measurement import Measurement
from libs.tee.nvidia.evidence import GpuEvidence, RawReport
from libs.tee.nvidia.token import DetachedEat
from libs.tee.verified import Tcb
from libs.tee.workload import workload_claims
from libs.transparency import checkpoint as checkpoints
from libs.transparency import merkle
from libs.transparency.acknowledgement import Statement, acknowledge
from libs.transparency.chain import entry_id, issuer_id, log_id
from libs.transparency.checkpoint import Checkpoint
from libs.transparency.leaf import Kind, Leaf
from services.devtee.collateral import CollateralShape
from services.devtee.findings import PostedReport
from services.devtee.machine import InstanceIdentity, Machine, VirtualTd
from services.devtee.nras import ISSUER
from services.router.workload.generation import E2eeKey
from tests.fakes.policy_draft import gpu_member, gpu_root, policy_draft

TRUST_DOMAIN = "mesh.local"
ORIGIN = f"{TRUST_DOMAIN}/ledger/1"
MODEL = "smollm2-135m"
WEIGHTS = "77" * 32
RECEIPT_KEY_ID = "router-receipt"
TENANT = "ab" * 16
E2EE_KEY = E2eeKey.generate(SUITES[X25519_ALGO])
_LEAVES_BEFORE = 5


@dataclass(frozen=True, slots=True)
class Ca:
    """The mesh CA, which signs challenges, mesh certificates and outward ones."""

    key: ec.EllipticCurvePrivateKey
    der: bytes

    @classmethod
    def create(cls, now: int) -> Ca:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mesh CA")])
        builder = _builder(name, name, key.public_key(), now).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        return cls(key, builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER))

    @property
    def pem(self) -> bytes:
        return x509.load_der_x509_certificate(self.der).public_bytes(Encoding.PEM)

    def outward(self, key: ec.EllipticCurvePrivateKey, now: int) -> bytes:
        """Return a certificate (PEM) for 127.0.0.1 and localhost."""
        return self.outward_of(key.public_key(), now)

    def outward_of(
        self, key: ec.EllipticCurvePublicKey, now: int, given: Sequence[str] = ("localhost", "127.0.0.1")
    ) -> bytes:
        """The same for a key of which only the public half is known, and for other names."""
        issuer = x509.load_der_x509_certificate(self.der).subject
        names = [
            x509.IPAddress(ipaddress.ip_address(name)) if name[0].isdigit() else x509.DNSName(name) for name in given
        ]
        builder = (
            _builder(x509.Name([]), issuer, key, now)
            .add_extension(x509.SubjectAlternativeName(names), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM)


@dataclass(slots=True)
class Workload:
    """One attested service: its TD, its mesh key, what it claims."""

    role: str
    td: VirtualTd
    key: ec.EllipticCurvePrivateKey
    claims: dict[str, Any]

    @property
    def spki(self) -> bytes:
        return self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    @property
    def event_log(self) -> tuple[Event, ...]:
        return tuple(Event(e.imr, e.event_type, e.digest, e.name, e.payload) for e in self.td.events)

    @property
    def measurement(self) -> Measurement:
        machine, rtmrs = self.td.machine, self.td.rtmrs
        return Measurement(
            compose_hash=self.td.compose_hash.hex(),
            app_id=self.td.identity.app_id.hex(),
            os_image_hash=machine.image.os_image_hash.hex(),
            key_provider=hashlib.sha256(machine.kms.provider.encode()).hexdigest(),
            mrtd=machine.image.mrtd.hex(),
            rtmr0=rtmrs[0].hex(),
            rtmr1=rtmrs[1].hex(),
            rtmr2=rtmrs[2].hex(),
        )


@dataclass(frozen=True, slots=True)
class Served:
    """What a router keeps of one request."""

    receipt_id: str
    receipt: bytes
    commitment: dict[str, Any]


@dataclass(slots=True)
class AttestedMesh:
    now: int
    machine: Machine
    ca: Ca
    workloads: dict[str, Workload]
    operators: list[Ed25519PrivateKey]
    receipt_key: Ed25519PrivateKey
    node_receipt_key: Ed25519PrivateKey
    log_key: Ed25519PrivateKey
    ack_key: Ed25519PrivateKey
    checkpoint_key: Ed25519PrivateKey
    tls_key: ec.EllipticCurvePrivateKey
    evidence: dict[str, Evidence] = field(default_factory=dict)
    boot: bytes = field(default_factory=lambda: secrets.token_bytes(16))

    @classmethod
    def create(cls, now: int) -> AttestedMesh:
        machine, ca = Machine.create(now), Ca.create(now)
        receipt_key, node_receipt_key, log_key, ack_key, checkpoint_key = (
            Ed25519PrivateKey.generate() for _ in range(5)
        )
        claims: dict[str, dict[str, Any]] = {
            "router": {"log_key": _raw(log_key), "receipt_key": _raw(receipt_key), "hpke_key": "00"},
            "node": {
                "engine": "embedded/1",
                "engine_args_sha256": "00" * 32,
                "models": [{"id": MODEL, "weights_sha256": WEIGHTS}],
                "gpu_evidence_sha256": None,
                "receipt_key": _raw(node_receipt_key),
            },
            "ledger": {"ack_key": _raw(ack_key), "checkpoint_key": _raw(checkpoint_key), "origin": ORIGIN},
        }
        mesh = cls(
            now=now,
            machine=machine,
            ca=ca,
            workloads={role: _workload(machine, role, now, said) for role, said in claims.items()},
            operators=[Ed25519PrivateKey.generate() for _ in range(3)],
            receipt_key=receipt_key,
            node_receipt_key=node_receipt_key,
            log_key=log_key,
            ack_key=ack_key,
            checkpoint_key=checkpoint_key,
            tls_key=ec.generate_private_key(ec.SECP256R1()),
        )
        mesh.evidence = {role: mesh.prove(role) for role in claims}
        return mesh

    @property
    def collateral(self) -> Collateral:
        return Collateral.parse(self.machine.collateral(CollateralShape(self.now)).members())

    def policy_draft(self) -> dict[str, Any]:
        return policy_draft(
            TRUST_DOMAIN,
            self.operators,
            self.machine.vendor_root,
            {role: workload.measurement for role, workload in self.workloads.items()},
            not_before=self.now - 60,
            not_after=self.now + 86400,
            models={MODEL: [WEIGHTS]},
        )

    def gpu_policy_draft(self) -> dict[str, Any]:
        """The same, but that nodes need a GPU, for which the machine's own will do."""
        draft, gpus = self.policy_draft(), self.machine.gpus
        draft["vendor_roots"].append(gpu_root(gpus.device_root))
        draft["roles"]["node"]["gpu_required"] = True
        return {**draft, "gpu": gpu_member(ISSUER, gpus.nras.authority.root.der)}

    def trust(self, draft: Mapping[str, Any] | None = None) -> Trust:
        policy = read(dict(draft or self.policy_draft()))
        signatures = tuple(sign(policy.document, key) for key in self.operators[:2])
        return Trust(
            signed_policy=SignedPolicy(policy, signatures).document,
            operator_keys=tuple(key.public_key().public_bytes_raw() for key in self.operators),
            operator_threshold=2,
            trust_domain=TRUST_DOMAIN,
            ca_pem=self.ca.pem,
        )

    def policy(self) -> Policy:
        return self.trust().policy(self.now)

    def prove(self, role: str, claims: Mapping[str, Any] | None = None, *, gpus: bool = False) -> Evidence:
        """Return fresh evidence of a role, with other claims if given, and with that of the machine's GPUs."""
        workload = self.workloads[role]
        said = {"role": role, **(workload.claims if claims is None else claims)}
        challenge = Challenge.signed("kms/1", "evidence", self.now, self.ca.key, self.ca.der)
        shown = self.gpu_evidence(binding.gpu_nonce(challenge.nonce, workload.spki)) if gpus else None
        if shown is not None:
            said["gpu_evidence_sha256"] = shown.digest.hex()
        return evidence.assemble(
            quote=workload.td.quote(binding.report_data(challenge.nonce, workload.spki, said)),
            event_log=workload.event_log,
            app_compose=workload.td.app_compose,
            spki=workload.spki,
            claims=said,
            challenge=challenge,
            collateral=self.collateral,
            gpu_evidence=shown,
        )

    def gpu_evidence(self, nonce: bytes) -> GpuEvidence:
        """Have every GPU of the machine answer, and its vendor's service vouch for them."""
        gpus = self.machine.gpus
        posted = [PostedReport(gpu.report(nonce), gpu.chain.encode()) for gpu in gpus.devices]
        eat = DetachedEat.parse(gpus.nras.attest(posted, nonce, self.now))
        reports = tuple(RawReport(each.report, each.certificate_chain.decode()) for each in posted)
        return GpuEvidence.of(eat, {gpus.nras.key_id: gpus.nras.signing.chain}, reports)

    @property
    def keyset(self) -> Keyset:
        return self.keyset_of(self.tls_key)

    def keyset_of(self, tls_key: ec.EllipticCurvePrivateKey) -> Keyset:
        spki = tls_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return keysets.build(
            subject=f"spiffe://{TRUST_DOMAIN}/router/a",
            not_after=self.now + 7 * 86400,
            receipt_keys={RECEIPT_KEY_ID: self.receipt_key.public_key().public_bytes_raw()},
            tls_keys=(TlsKey(hashlib.sha256(spki).hexdigest()),),
            e2ee_keys=(E2EE_KEY.entry(),),
        )

    def report(self, nonce: str, keyset: Keyset | None = None) -> bytes:
        keyset = keyset or self.keyset
        td = self.workloads["router"].td
        slot = reports.slot(reports.report_data(keyset.digest, nonce))
        said = {
            "quote": td.quote(slot).hex(),
            "quote_report_data": slot.hex(),
            "event_log": json.dumps([event.to_json() for event in self.workloads["router"].event_log]),
            "app_compose": td.app_compose,
            "vm_config": "{}",
            "collateral": self.collateral.to_json(),
            "key_custody": {
                "provider": "in-tee",
                "keys": [{"role": "receipt", "public_key": key.public_key} for key in keyset.receipt_signing_keys]
                + [{"role": "e2ee", "public_key": key.public_key} for key in keyset.e2ee_public_keys]
                + [{"role": "tls", "spki_sha256": key.spki_sha256} for key in keyset.tls_public_keys],
            },
        }
        return reports.assemble(
            keyset, nonce=nonce, tee_type="tdx", provenance=reports.SourceProvenance(), evidence=said
        )

    def session(self, node: Evidence | None = None, spki_sha256: str | None = None) -> bytes:
        proof = node or self.evidence["node"]
        bound = spki_sha256 or hashlib.sha256(proof.spki).hexdigest()
        return session_document(
            upstream_name=f"spiffe://{TRUST_DOMAIN}/node/a",
            endpoint="https://127.0.0.1:7000",
            verifier_id="teemesh/appraisal/v1",
            established_at=self.now - 5,
            expires_at=self.now + 3600,
            bindings=(TlsBinding("https://127.0.0.1:7000", bound),),
            claims=workload_claims("tdx", Tcb("UpToDate", (), up_to_date=True), None, has_models=True),
            evidence=proof.document,
        )

    def serve(
        self,
        request: bytes,
        response: bytes,
        session: bytes | None = None,
        *,
        required: bool = True,
        weights: str = WEIGHTS,
        sealed_to: str | None = None,
    ) -> Served:
        """Do what the router does once a response is complete: sign, commit, keep."""
        receipt_id = receipts.fresh_receipt_id()
        nodes = self.node_receipt(request, response)
        cited = self.session() if session is None else session
        unsigned = receipts.Receipt(
            receipt_id=receipt_id,
            chat_id="chatcmpl-1",
            model=MODEL,
            workload_keyset_digest=self.keyset.digest,
            endpoint="/v1/chat/completions",
            method="POST",
            served_at=self.now,
            events=(
                RequestReceived(digest(request)),
                RequestForwarded(digest(request)),
                UpstreamVerified(required=required, model_id=MODEL, session_id=session_id(cited)),
                PolicyInForce(version=1, digest=digest(self.policy().document)),
                ServedByNode(
                    spiffe_id=f"spiffe://{TRUST_DOMAIN}/node/a",
                    evidence_digest=f"sha256:{self.evidence['node'].digest.hex()}",
                    receipt_sha256=hashlib.sha256(nodes).hexdigest(),
                    weights_sha256=weights,
                    engine="embedded/1",
                    engine_args_sha256="00" * 32,
                    receipt=nodes.decode(),
                ),
                *(() if sealed_to is None else (Encrypted("2", X25519_ALGO, E2EE_KEY.key_id, sealed_to),)),
                ResponseReturned(digest(response)),
            ),
            key_id=RECEIPT_KEY_ID,
        )
        receipt = receipts.sign(unsigned, self.receipt_key)
        return Served(receipt_id, receipt, self.commit(receipt))

    def node_receipt(
        self,
        request: bytes,
        response: bytes,
        key: Ed25519PrivateKey | None = None,
        engine: str = "embedded/1",
        *,
        gpus: str | None = None,
    ) -> bytes:
        """Sign what the node does of what it was sent and sent back."""
        unsigned = receipts.Receipt(
            receipt_id=receipts.fresh_receipt_id(),
            chat_id=None,
            model=MODEL,
            workload_keyset_digest=digest(b"node"),
            endpoint="/v1/chat/completions",
            method="POST",
            served_at=self.now,
            events=(
                RequestReceived(digest(request)),
                Generated(engine, "00" * 32, WEIGHTS, "{}", gpus=gpus),
                ResponseReturned(digest(response)),
            ),
            key_id="node-receipt",
        )
        return receipts.sign(unsigned, key or self.node_receipt_key)

    def commit(self, receipt: bytes) -> dict[str, Any]:
        """Log a receipt as the ledger would, after some others, and return the router's document about it."""
        spki = self.log_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        issuer, number = issuer_id(spki, self.boot), 2
        entry = Entry(Kind.RECEIPT, issuer, number, FIRST_PREVIOUS, TENANT, jcs.loads_object(receipt)).canonical()
        salt = secrets.token_bytes(32)
        leaf = Leaf(Kind.RECEIPT, number, issuer, bytes(16), commit_to(salt, entry)).data()
        index = _LEAVES_BEFORE
        tree = merkle.CompleteTree(
            [*(merkle.leaf_hash(bytes([other])) for other in range(index)), merkle.leaf_hash(leaf)]
        )
        statement = Statement(index, self.now * 1000, 1, number, 1, issuer, merkle.leaf_hash(leaf))
        (promise,) = acknowledge([(statement.data(), leaf)], log_id=log_id(ORIGIN), signer_epoch=1, key=self.ack_key)
        return {
            "entry": entry.decode(),
            "salt": salt.hex(),
            "issuer": issuer.hex(),
            "issuer_boot": self.boot.hex(),
            "issuer_seq": number,
            "entry_id": entry_id(issuer, number).hex(),
            "leaf_data": leaf.hex(),
            "leaf_index": index,
            "acknowledgement": {
                "statement": promise.statement.hex(),
                "leaf_data": promise.leaf_data.hex(),
                "first": promise.first,
                "count": promise.count,
                "path": [step.hex() for step in promise.path],
                "signer_epoch": promise.signer_epoch,
                "signature": promise.signature.hex(),
            },
            "inclusion": {
                "size": index + 1,
                "path": [step.hex() for step in merkle.inclusion_path(tree, index, index + 1)],
                "leaf_hash": merkle.leaf_hash(leaf).hex(),
            },
            "checkpoint": self.checkpoint(index + 1, merkle.root(tree, index + 1)),
            "acknowledged_by": self.ledger_name(),
            "ledger": self.ledger_name(),
            "issuer_evidence_sha256": self.evidence["router"].digest.hex(),
            "mesh_ca": self.ca.der.hex(),
        }

    def ledger_name(self, proof: Evidence | None = None) -> dict[str, str]:
        """Name a start of the ledger: the present one unless other evidence is given."""
        proof = proof or self.evidence["ledger"]
        return {
            "certificate": self.certificate("ledger", proof).hex(),
            "evidence_sha256": proof.digest.hex(),
            "origin": ORIGIN,
        }

    def checkpoint(self, size: int, root: bytes, key: Ed25519PrivateKey | None = None) -> str:
        return checkpoints.sign(Checkpoint(ORIGIN, size, root), key or self.checkpoint_key).decode()

    def certificate(self, role: str, proof: Evidence | None = None) -> bytes:
        subject = Subject(TRUST_DOMAIN, role, "a", (proof or self.evidence[role]).digest)
        return issue(subject, self.workloads[role].key.public_key(), self.ca.key, self.ca.der, now=self.now)


def pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _workload(machine: Machine, role: str, now: int, claims: dict[str, Any]) -> Workload:
    compose = jcs.dumps({"manifest_version": 2, "name": f"teemesh-{role}", "teemesh": {"role": role}})
    td = machine.boot(compose, InstanceIdentity.random(), now)
    return Workload(role, td, ec.generate_private_key(ec.SECP256R1()), claims)


def _raw(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes_raw().hex()


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: int
) -> x509.CertificateBuilder:
    start = datetime.fromtimestamp(now, UTC) - timedelta(minutes=5)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=1))
    )
