"""It is responsible for becoming an instance of a KMS that exists: prove oneself, appraise it, receive the root.

The newcomer is certified as any service is, on evidence, by a KMS that it has appraised. Then, over one connection,
both appraise each other once more with nonces of their own. A root that gives another CA than the one that the mesh
believes is thrown away.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import structlog
from teemesh.kms.v1 import replication_pb2 as pb
from teemesh.kms.v1 import replication_pb2_grpc as pb_grpc

from libs.errors import Code, MeshError
from libs.identity.authority import CaNotProven, KmsAuthority
from libs.identity.certificate import spki_of, spki_of_certificate
from libs.identity.collateral import AttestationCollateral, CollateralSource
from libs.identity.freshness import PolicyKeeper
from libs.identity.lease import appraise_peer
from libs.identity.member import Member, MemberSettings, membership
from libs.identity.renewal import Prover
from libs.identity.sealed import ReceiverKey
from libs.identity.strangers import named_if_refused
from libs.policy.compose import Anchors
from libs.policy.orders import join_subject
from libs.rpc.errors import remote_errors
from libs.tee import evidence as evidences
from libs.tee.appraisal import AppraisalContext, OwnNonce, appraise
from libs.tee.challenge import Challenge
from libs.tee.dstack import Guest
from services.kms.keyring import Keyring
from services.kms.replication import PURPOSE, join_info
from services.kms.root import Root

_TIMEOUT_SECONDS = 20.0
_LOOK_SECONDS = 1.0
_WAITING = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED})

log = structlog.get_logger()


class RootOfAnotherMesh(MeshError):
    """What was received gives another CA than the one that the KMS proved."""

    code = Code.UNAUTHENTICATED
    reason = "ROOT_OF_ANOTHER_MESH"


@dataclass(frozen=True, slots=True)
class JoinSettings:
    """The TOML table [join]: where a new instance gets the root. Ignored once the root is here."""

    kms: str
    """host:port of the mesh listener of the instance that gives it."""
    kms_bootstrap: str
    """host:port of that instance's bootstrap listener."""
    order: Path
    """The operators' signed order; waited for."""


async def join_kms(
    settings: MemberSettings, join: JoinSettings, guest: Guest, anchors: Anchors, policy: PolicyKeeper
) -> Root:
    """Return the root from a KMS that exists, waiting for the operators' order and for a KMS that is away.

    Raises the first refusal of either side.
    """
    collateral = AttestationCollateral(settings.attestation_bootstrap, settings.trust_domain)
    receiver = ReceiverKey()
    prover = newcomer_prover(guest, collateral, receiver)
    authority = KmsAuthority((join.kms_bootstrap,), settings.trust_domain)
    async with membership(settings, "kms", anchors, prover, policy, authority) as member:
        subject = own_subject(member)
        log.warning("this KMS has no root: it waits for the operators' order", subject=subject, order=str(join.order))
        while not join.order.exists():  # noqa: ASYNC110 - a person puts it there
            await asyncio.sleep(_LOOK_SECONDS)
        while True:
            try:
                return await receive_root(member, prover, receiver, join.kms, join.order.read_bytes())
            except MeshError as error:
                if error.code not in _WAITING:
                    raise
                log.warning("waiting for the KMS that gives the root", reason=error.reason, detail=str(error))
            await asyncio.sleep(_LOOK_SECONDS)


def newcomer_prover(guest: Guest, collateral: CollateralSource, receiver: ReceiverKey) -> Prover:
    """What a newcomer says of itself: its role, and the key that the root is to be sealed to."""
    return Prover(guest, collateral, {"role": "kms", "hpke_key": receiver.public.hex()})


def own_subject(member: Member) -> str:
    """What the operators' order must name: this instance, its code, its machine."""
    current = member.identity.current
    ca_spki = spki_of_certificate(member.identity.ca_certificate)
    lease = appraise_peer(current.certificate, current.evidence.document, member.policy.current, ca_spki, time.time())
    return join_subject(member.spiffe_id, lease.appraisal.measurement.compose_hash, lease.appraisal.device_id)


async def receive_root(member: Member, prover: Prover, receiver: ReceiverKey, kms: str, order: bytes) -> Root:
    """Ask a KMS for the root over one connection. Raises the first refusal of either side, `CaNotProven` and
    `RootOfAnotherMesh`.
    """
    link = await member.peer("kms", kms).link(_TIMEOUT_SECONDS)
    stub = pb_grpc.KmsReplicationServiceStub(link.channel)
    shown = link.lease.certificate
    ca_spki = spki_of_certificate(member.identity.ca_certificate)
    own = Challenge.unsigned(issuer=member.spiffe_id, purpose=PURPOSE, now=int(time.time()))
    with remote_errors():
        asked = pb.BeginJoinRequest(challenge=own.encode(), spki_sha256=shown.spki_sha256)
        begun = await stub.BeginJoin(asked, timeout=_TIMEOUT_SECONDS)
    policy = member.policy.current
    with named_if_refused(kms, shown.der):
        appraisal = appraise(
            evidences.parse(begun.document),
            policy.rules("kms"),
            AppraisalContext(
                now=int(time.time()), spki=shown.spki, challenge=OwnNonce(own.nonce), policy_version=policy.version
            ),
        )
        if appraisal.workload_claims.get("ca_spki_sha256") != sha256(ca_spki).hexdigest():
            raise CaNotProven("the KMS that would give the root does not hold this mesh's CA")
    challenge = Challenge.decode(begun.challenge)
    evidence = await prover.prove(challenge, link.credential.certificate.spki)
    request = pb.FinishJoinRequest(document=evidence.document, signed_order=order)
    with remote_errors():
        finished = await stub.FinishJoin(request, timeout=_TIMEOUT_SECONDS)
    with named_if_refused(kms, shown.der):
        root = Root(receiver.open(finished.sealed_root, join_info(challenge.nonce, member.spiffe_id)))
        if spki_of(Keyring(root.secret).ca_key.public_key()) != ca_spki:
            raise RootOfAnotherMesh("the root that was received gives another CA")
    log.warning("root received", from_kms=shown.spiffe_id)
    return root
