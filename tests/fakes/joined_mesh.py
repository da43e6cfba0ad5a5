"""Members that really join: one software machine, real guest sockets, real certificates, policies signed by operators.

The CA and issuance are the KMS's own; what a test needs of the rest of the KMS it starts itself.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs import jcs
from libs.identity import certificate as certificates
from libs.identity.authority import Authority
from libs.identity.certificate import MAX_LIFETIME_SECONDS
from libs.identity.challenges import Challenges
from libs.identity.freshness import PolicyKeeper
from libs.identity.member import Member, MemberSettings, membership, open_guest
from libs.identity.renewal import Prover
from libs.policy.compose import Anchors
from libs.policy.document import Policy, read
from libs.policy.revocation import Revocation, RevocationKind, sign_revocation
from libs.policy.signatures import SignedPolicy, sign
from libs.policy.statement import Statement
from libs.tee import evidence as evidences
from libs.tee.binding import report_data
from libs.tee.challenge import Challenge
from libs.tee.collateral import Collateral
from libs.tee.eventlog import Event
from libs.tee.evidence import Evidence
from libs.tee.measurement import Measurement
from services.devtee.collateral import CollateralShape
from services.devtee.guest import serving_guest
from services.devtee.machine import InstanceIdentity, Machine, VirtualTd
from services.devtee.methods import GuestMethods
from services.devtee.nras import ISSUER
from services.kms.ca import CertificateAuthority
from services.kms.issuance import Issuance, OwnAuthority
from services.kms.keyring import Keyring
from tests.fakes.policy_draft import gpu_member, gpu_root, policy_draft

TRUST_DOMAIN = "mesh.test"
ROLES = ("agent", "attestation", "broker", "job", "kms", "ledger", "node", "registry", "router")


def _now() -> int:
    return int(time.time())


@dataclass(slots=True)
class Clock:
    """A clock that tests move."""

    now: float = field(default_factory=time.time)

    def __call__(self) -> float:
        return self.now


class MachineCollateral:
    """The machine's own vendor statements, without a PCCS in between."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    async def collateral(self, quote: bytes) -> Collateral:
        return self.current()

    def current(self) -> Collateral:
        return Collateral.parse(self._machine.collateral(CollateralShape(_now())).members())


class JoinedMesh:
    """One machine, three operators of whom two must sign, one measured TD per role, and a first policy."""

    def __init__(self, folder: Path, machine: Machine) -> None:
        self.folder = folder
        self.machine = machine
        self.collateral = MachineCollateral(machine)
        self.operators = tuple(Ed25519PrivateKey.generate() for _ in range(3))
        self.tds = {role: self.boot(role) for role in ROLES}
        self.draft = self._draft()
        self.seed = self.sign(self.draft)
        self.root = sha256(str(folder).encode()).digest()
        self._next_guest = 0

    def anchors(self, role: str) -> Anchors:
        return Anchors(role, TRUST_DOMAIN, tuple(_raw(key) for key in self.operators), 2)

    def boot(self, role: str, image: str = "measured") -> VirtualTd:
        """Start a TD for a role; another image is one that no policy here lists."""
        anchors = self.anchors(role)
        compose = {
            "manifest_version": 2,
            "name": f"teemesh-{role}",
            "docker_compose_file": image,
            "teemesh": {
                "role": role,
                "trust_domain": anchors.trust_domain,
                "operator_keys": [key.hex() for key in anchors.operator_keys],
                "operator_threshold": anchors.operator_threshold,
            },
        }
        return self.machine.boot(jcs.dumps(compose), InstanceIdentity.random(), _now())

    def sign(self, draft: Mapping[str, Any], signers: Collection[int] = (0, 1)) -> bytes:
        policy = read(dict(draft))
        return SignedPolicy(policy, tuple(sign(policy.document, self.operators[i]) for i in signers)).document

    def successor(self, policy: Policy, **changes: Any) -> bytes:
        """The signed version after `policy`: the draft of this mesh with some members changed."""
        return self.sign(
            {**self.draft, "version": policy.version + 1, "previous": policy.digest.hex(), **changes},
        )

    def without(self, *roles: str) -> dict[str, Any]:
        """The member "roles" of a policy that no longer allows some of them."""
        return {role: grant for role, grant in self.draft["roles"].items() if role not in roles}

    def revocation(
        self, kind: RevocationKind, value: str, *, operator: int = 2, mesh: str = TRUST_DOMAIN, time_ms: int = 0
    ) -> bytes:
        """A revocation that one operator signed; by default one whose signature no policy of this mesh bears."""
        revocation = Revocation(mesh, kind, value, "a test", time_ms)
        return sign_revocation(revocation, self.operators[operator]).document

    def keeper(self, name: str, *, clock: Clock | None = None, fresh: bool = True) -> PolicyKeeper:
        """A keeper that begins with the seed and, unless told otherwise, has just heard from the KMS."""
        keeper = PolicyKeeper(self.folder / name / "policy", self.seed, self.anchors("router"), clock or time.time)
        if fresh:
            hear(keeper, (clock or time.time)())
        return keeper

    def evidence(
        self,
        role: str,
        challenge: Challenge,
        key: ec.EllipticCurvePrivateKey,
        *,
        td: VirtualTd | None = None,
        claims: Mapping[str, Any] | None = None,
    ) -> Evidence:
        """Evidence of a role's TD, made without its guest agent."""
        td = td or self.tds[role]
        said = {"role": role, **(claims or {})}
        spki = certificates.spki_of(key.public_key())
        return evidences.assemble(
            quote=td.quote(report_data(challenge.nonce, spki, said)),
            event_log=[Event(e.imr, e.event_type, e.digest, e.name, e.payload) for e in td.events],
            app_compose=td.app_compose,
            spki=spki,
            claims=said,
            challenge=challenge,
            collateral=self.collateral.current(),
        )

    def allow_models(self, models: Mapping[str, Sequence[str]]) -> None:
        """Begin with a policy that allows these: id to digests of weights."""
        self.draft = {**self.draft, "models": {model: list(weights) for model, weights in models.items()}}
        self.seed = self.sign(self.draft)

    def require_gpu(self, role: str) -> None:
        """Begin with a policy that requires a GPU of a role, and accepts the machine's own."""
        gpus = self.machine.gpus
        self.draft = {
            **self.draft,
            "vendor_roots": [*self.draft["vendor_roots"], gpu_root(gpus.device_root)],
            "roles": {**self.draft["roles"], role: {**self.draft["roles"][role], "gpu_required": True}},
            "gpu": gpu_member(ISSUER, gpus.nras.authority.root.der),
        }
        self.seed = self.sign(self.draft)

    @asynccontextmanager
    async def guest(self, td: VirtualTd) -> AsyncIterator[Path]:
        """A TD's guest agent on a socket of its own."""
        self._next_guest += 1
        path = self.folder / f"{self._next_guest}.sock"
        async with serving_guest(path, GuestMethods(td, _now)):
            yield path

    def kms(
        self,
        name: str = "kms",
        *,
        root: bytes | None = None,
        clock: Clock | None = None,
        service_seconds: int = MAX_LIFETIME_SECONDS,
    ) -> KmsCore:
        """The part of a KMS that issues certificates; another root is another mesh CA."""
        ticking = clock or time.time
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        keyring = Keyring(root or self.root)
        ca = CertificateAuthority(keyring.ca_key, TRUST_DOMAIN, folder)
        challenges = Challenges(f"spiffe://{TRUST_DOMAIN}/kms/1", lambda: (ca.key, ca.certificate), ticking)
        policy = self.keeper(name, clock=clock)
        issuance = Issuance(ca, challenges, policy, ticking, service_seconds=service_seconds)
        return KmsCore(keyring, ca, challenges, policy, issuance)

    def settings(self, role: str, instance: str, guest_socket: Path, **changes: Any) -> MemberSettings:
        """Settings of a member; the addresses of what a test does not start lead nowhere."""
        seed = self.folder / "seed.json"
        seed.write_bytes(self.seed)
        given = {
            "instance": instance,
            "trust_domain": TRUST_DOMAIN,
            "listen": "127.0.0.1:0",
            "state_dir": self.folder / f"{role}-{instance}",
            "guest_socket": guest_socket,
            "seed_policy": seed,
            "kms": ("127.0.0.1:9",),
            "kms_bootstrap": ("127.0.0.1:9",),
            "attestation_bootstrap": "127.0.0.1:9",
            "statement_poll_seconds": 0.05,
            "drain_seconds": 0.0,
        }
        return MemberSettings(**{**given, **changes})

    @asynccontextmanager
    async def member(
        self,
        role: str,
        kms: KmsCore,
        *,
        instance: str = "1",
        listen: str = "127.0.0.1:0",
        claims: Mapping[str, Any] | None = None,
        keeper: PolicyKeeper | None = None,
        td: VirtualTd | None = None,
    ) -> AsyncIterator[Member]:
        """A member certified by `kms` in this process; it has just heard a statement, and hears no more."""
        async with self.guest(td or self.tds[role]) as socket:
            settings = self.settings(role, instance, socket, listen=listen)
            async with open_guest(settings, role) as (guest, anchors):
                prover = Prover(guest, self.collateral, {"role": role, **(claims or {})})
                if keeper is None:
                    keeper = PolicyKeeper(settings.state_dir / "policy", self.seed, anchors)
                    hear(keeper, time.time())
                async with membership(settings, role, anchors, prover, keeper, kms.authority) as member:
                    yield member

    def _draft(self) -> dict[str, Any]:
        now = _now()
        return policy_draft(
            TRUST_DOMAIN,
            self.operators,
            self.machine.vendor_root,
            {role: measurement_of(td) for role, td in self.tds.items()},
            not_before=now - 3600,
            not_after=now + 7200,
            key_releases=[
                {"name": "ledger-keyring", "roles": ["ledger"]},
                {"name": "ledger-vault/*", "roles": ["ledger"]},
                {"name": "models/*", "roles": ["node"]},
                {"name": "agents/claims", "roles": ["agent"], "algorithm": "ed25519"},
                {"name": "agents/letters", "roles": ["agent"], "algorithm": "p-256", "use": "sign"},
                {"name": "environment/agent", "roles": ["agent"], "algorithm": "x25519", "rotate_after_days": 30},
            ],
        )


@dataclass(frozen=True, slots=True)
class KmsCore:
    """What of a KMS needs no listener."""

    keyring: Keyring
    ca: CertificateAuthority
    challenges: Challenges
    policy: PolicyKeeper
    issuance: Issuance

    @property
    def authority(self) -> Authority:
        return OwnAuthority(self.issuance, self.challenges, self.ca)


def hear(keeper: PolicyKeeper, now: float) -> None:
    """Give a keeper a statement of what it holds, as if the KMS had just said so."""
    known = keeper.revocations
    keeper.note(Statement(keeper.current.version, keeper.current.digest, known.number, int(now * 1000), known.digest))


def measurement_of(td: VirtualTd) -> Measurement:
    machine, rtmrs = td.machine, td.rtmrs
    return Measurement(
        compose_hash=td.compose_hash.hex(),
        app_id=td.identity.app_id.hex(),
        os_image_hash=machine.image.os_image_hash.hex(),
        key_provider=sha256(machine.kms.provider.encode()).hexdigest(),
        mrtd=machine.image.mrtd.hex(),
        rtmr0=rtmrs[0].hex(),
        rtmr1=rtmrs[1].hex(),
        rtmr2=rtmrs[2].hex(),
    )


def _raw(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()
