"""It is responsible for becoming an instance of a KMS that exists: prove oneself, appraise it, receive the root.

The newcomer is certified as any service is, on evidence, by a KMS that it has appraised. Then, over one connection,
both appraise each other once more with nonces of their own. A root that gives another CA than the one that the mesh
believes is thrown away.

What another try can mend is tried again, over a new connection and with a new challenge where the old ones are not
good any more. A refusal of what this instance is, or of what the operators ordered, ends the start.
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
from libs.identity.challenges import ChallengeNotOpen
from libs.identity.collateral import AttestationCollateral, CollateralSource
from libs.identity.freshness import PolicyKeeper
from libs.identity.lease import EvidenceRequired, appraise_peer
from libs.identity.member import Member, MemberSettings, membership
from libs.identity.renewal import KeyNotHeld, Prover
from libs.identity.sealed import ReceiverKey
from libs.identity.strangers import named_if_refused
from libs.policy.compose import Anchors
from libs.policy.orders import OrderMalformed, join_subject, parse_order
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
_FIRST_PAUSE_SECONDS = 1.0
_LAST_PAUSE_SECONDS = 8.0
_AWAY = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED})
_OUTDATED = frozenset({ChallengeNotOpen.reason, EvidenceRequired.reason, KeyNotHeld.reason})
"""What a giver says that was restarted, or has renewed, since it was asked first: it is to be asked anew."""

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
    """Return the root from a KMS that exists. Raises what `await_root` does."""
    collateral = AttestationCollateral(settings.attestation_bootstrap, settings.trust_domain)
    receiver = ReceiverKey()
    prover = newcomer_prover(guest, collateral, receiver)
    authority = KmsAuthority((join.kms_bootstrap,), settings.trust_domain)
    async with membership(settings, "kms", anchors, prover, policy, authority) as member:
        subject = own_subject(member)
        log.warning("this KMS has no root: it waits for the operators' order", subject=subject, order=str(join.order))
        return await await_root(member, prover, receiver, join)


async def await_root(member: Member, prover: Prover, receiver: ReceiverKey, join: JoinSettings) -> Root:
    """Ask for the root until it is given, waiting for the operators' order and for a KMS that is away.

    Raises the first refusal of either side that another try does not mend.
    """
    pause = _FIRST_PAUSE_SECONDS
    while True:
        order = await whole_order(join.order)
        try:
            return await receive_root(member, prover, receiver, join.kms, order)
        except MeshError as error:
            if error.reason in _OUTDATED:
                member.peer("kms", join.kms).disconnect()
            elif error.code not in _AWAY:
                raise
            log.warning("no root yet: it is asked for again", reason=error.reason, detail=str(error), seconds=pause)
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LAST_PAUSE_SECONDS)


async def whole_order(path: Path) -> bytes:
    """Return the operators' order once it lies there whole: whoever writes it may not have finished yet."""
    said = ""
    while True:
        try:
            return _read_order(path)
        except FileNotFoundError:
            said = ""
        except (OSError, OrderMalformed) as error:
            if str(error) != said:
                log.warning("the order cannot be used yet", order=str(path), detail=str(error))
            said = str(error)
        await asyncio.sleep(_LOOK_SECONDS)


def _read_order(path: Path) -> bytes:
    order = path.read_bytes()
    parse_order(order)
    return order


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
