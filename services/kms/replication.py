"""It is responsible for giving the root to another instance, and to nothing else.

Both sides appraise each other anew on the connection over which the root goes: each over the other's own nonce, and
over the TLS key that this connection shows. Besides, m of n operators must have ordered that this instance, measured
so, on this machine, be given it; what a KMS can do, any copy of it can do for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

import structlog
from teemesh.kms.v1 import replication_pb2 as pb
from teemesh.kms.v1 import replication_pb2_grpc as pb_grpc

from libs.errors import Code, MeshError
from libs.identity.certificate import MeshCertificate, parse
from libs.identity.challenges import Challenges
from libs.identity.freshness import PolicyKeeper
from libs.identity.lease import Lease, caller_lease
from libs.identity.renewal import Identity, Prover
from libs.identity.sealed import seal
from libs.policy.orders import JOIN_KMS, Order, join_subject, verify_order
from libs.rpc.calls import Context
from libs.rpc.policies import MethodRule, ServiceBinding, current_caller
from libs.tee import evidence as evidences
from libs.tee.appraisal import Appraisal, AppraisalContext, OwnNonce, appraise
from libs.tee.challenge import Challenge
from services.kms.currency import Currency
from services.kms.decisions import Decisions
from services.kms.root import Root

PURPOSE = "kms-join"
_SERVICE = "teemesh.kms.v1.KmsReplicationService"
_CONTEXT = b"teemesh/join/v1\0"

log = structlog.get_logger()


class OrderForAnother(MeshError):
    """The operators ordered that another instance, code or machine be given the root."""

    code = Code.PERMISSION_DENIED
    reason = "ORDER_FOR_ANOTHER"


class JoinChallengeRefused(MeshError):
    """The challenge is signed, or for something else than a join: evidence for it would count elsewhere too."""

    code = Code.INVALID_ARGUMENT
    reason = "JOIN_CHALLENGE_REFUSED"


class Replication:
    """The giving side."""

    def __init__(
        self,
        root: Root,
        prover: Prover,
        identity: Identity,
        challenges: Challenges,
        policy: PolicyKeeper,
        decisions: Decisions,
        currency: Currency,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._root = root
        self._prover = prover
        self._identity = identity
        self._challenges = challenges
        self._policy = policy
        self._decisions = decisions
        self._currency = currency
        self._clock = clock

    async def begin(self, challenge: Challenge, shown_sha256: bytes) -> tuple[bytes, Challenge]:
        """Return evidence that answers the newcomer, over the key that it was shown, and a challenge for it.

        Raises `JoinChallengeRefused`, `KeyNotHeld`.
        """
        if challenge.purpose != PURPOSE:
            raise JoinChallengeRefused(f"a join needs a challenge for {PURPOSE}")
        if challenge.signature is not None:
            raise JoinChallengeRefused("a join needs a challenge that is not signed")
        evidence = await self._prover.prove(challenge, self._identity.holder_of(shown_sha256).certificate.spki)
        return evidence.document, self._challenges.issue(PURPOSE)

    async def finish(self, document: bytes, signed_order: bytes, shown: MeshCertificate, caller: Lease) -> bytes:
        """Return the root, sealed to the newcomer, once the ledger holds that it was given.

        `shown` is what the newcomer showed on this connection; its lease may rest on a later certificate already.
        Raises `KeyStateBehind`, `ChallengeNotOpen`, every appraisal refusal, what `verify_order` raises,
        `OrderForAnother`, `HpkeKeyMissing` and `LedgerUnavailable`. Refusals are on record too.
        """
        self._currency.require()
        try:
            appraisal, nonce = self._appraise(document, shown)
            order = self._require_order(signed_order, appraisal, caller)
        except MeshError as refusal:
            log.warning(
                "a join was refused",
                peer=caller.certificate.spiffe_id,
                leaf_sha256=sha256(shown.der).hexdigest(),
                reason=refusal.reason,
            )
            await self._decisions.refusals.record(self._said("refused", caller, {"reason": refusal.reason}))
            raise
        sealed = seal(
            self._root.secret, appraisal.workload_claims.get("hpke_key"), join_info(nonce, caller.certificate.spiffe_id)
        )
        detail = {"joined_with_sha256": appraisal.evidence_digest.hex(), "order_sha256": order.digest.hex()}
        await self._decisions.record(self._said("joined", caller, detail))
        # A root cannot be taken back, and operators may have changed while the ledger was waited for.
        self._currency.require()
        self._require_order(signed_order, appraisal, caller)
        log.warning("the root was given to another KMS", to=caller.certificate.spiffe_id, device=appraisal.device_id)
        return sealed

    def _appraise(self, document: bytes, shown: MeshCertificate) -> tuple[Appraisal, bytes]:
        evidence = evidences.parse(document)
        challenge = evidence.challenge
        self._challenges.spend(challenge.nonce, PURPOSE)
        policy = self._policy.require_fresh()
        appraisal = appraise(
            evidence,
            policy.rules("kms"),
            AppraisalContext(
                now=int(self._clock()),
                spki=shown.spki,
                challenge=OwnNonce(challenge.nonce),
                policy_version=policy.version,
            ),
        )
        return appraisal, challenge.nonce

    def _require_order(self, signed_order: bytes, appraisal: Appraisal, caller: Lease) -> Order:
        order = verify_order(signed_order, JOIN_KMS, self._policy.require_fresh(), self._clock())
        wanted = join_subject(caller.certificate.spiffe_id, appraisal.measurement.compose_hash, appraisal.device_id)
        if order.subject != wanted:
            raise OrderForAnother(f"the order is for {order.subject}, not for {wanted}")
        return order

    def _said(self, decision: str, caller: Lease, detail: Mapping[str, str]) -> Mapping[str, Any]:
        return {
            "decision": decision,
            "name": "root",
            "spiffe_id": caller.certificate.spiffe_id,
            "evidence_sha256": caller.evidence.digest.hex(),
            "policy_version": self._policy.current.version,
            **detail,
        }


def join_info(nonce: bytes, newcomer_spiffe_id: str) -> bytes:
    """What a sealed root is bound to: the KMS's challenge of this join, and who joins."""
    return _CONTEXT + nonce + newcomer_spiffe_id.encode()


class ReplicationServicer(pb_grpc.KmsReplicationServiceServicer):
    """Wire to domain; decides nothing."""

    def __init__(self, replication: Replication) -> None:
        self._replication = replication

    async def BeginJoin(  # noqa: N802
        self,
        request: pb.BeginJoinRequest,
        context: Context,
    ) -> pb.BeginJoinResponse:
        document, challenge = await self._replication.begin(Challenge.decode(request.challenge), request.spki_sha256)
        return pb.BeginJoinResponse(document=document, challenge=challenge.encode())

    async def FinishJoin(  # noqa: N802
        self,
        request: pb.FinishJoinRequest,
        context: Context,
    ) -> pb.FinishJoinResponse:
        shown = parse(current_caller().certificate_der)
        sealed = await self._replication.finish(request.document, request.signed_order, shown, caller_lease())
        return pb.FinishJoinResponse(sealed_root=sealed)


def replication_binding(servicer: ReplicationServicer) -> ServiceBinding:
    """For other instances of the KMS alone."""
    rule = MethodRule(roles=frozenset({"kms"}))
    return ServiceBinding(
        name=_SERVICE,
        add=lambda server: pb_grpc.add_KmsReplicationServiceServicer_to_server(servicer, server),
        methods={f"/{_SERVICE}/BeginJoin": rule, f"/{_SERVICE}/FinishJoin": rule},
    )
