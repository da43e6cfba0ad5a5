"""Responsible for whom the prompt went to (ACI §9.2, deep audit): the cited session's evidence, appraised here."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

from libs.aci import receipt as receipts
from libs.aci.receipt import Receipt
from libs.aci.receipt_events import Encrypted, Generated, ServedByNode, UpstreamVerified
from libs.aci.receipt_gpus import verify_gpus
from libs.aci.session import Session, TlsBinding, verify_session
from libs.client.exchange import Exchange
from libs.errors import Code, MeshError
from libs.policy.document import Policy
from libs.tee import evidence as evidences
from libs.tee.appraisal import Appraisal, AppraisalContext, SignedBy, appraise

NODE_ROLE = "node"
CLOCK_SKEW_SECONDS = 60
"""What is tolerated between the clocks of two services."""


class ServedAtImplausible(MeshError):
    """The receipt is dated before the request was sent or after the response came."""

    code = Code.PERMISSION_DENIED
    reason = "SERVED_AT_IMPLAUSIBLE"


class SealedForAnother(MeshError):
    """The answer was encrypted to a key that is not this client's, or its encryption was taken off on the way."""

    code = Code.PERMISSION_DENIED
    reason = "SEALED_FOR_ANOTHER"


class SessionClaimsInsufficient(MeshError):
    """The session does not claim a TEE that hardware proves, or not what else is required of it."""

    code = Code.PERMISSION_DENIED
    reason = "SESSION_CLAIMS_INSUFFICIENT"


class ChannelNotEvidenced(MeshError):
    """The session's channel was bound to another key than the one that its evidence speaks for."""

    code = Code.PERMISSION_DENIED
    reason = "CHANNEL_NOT_EVIDENCED"


class NodeNotEvidenced(MeshError):
    """The receipt names another node, model or weights than the session's evidence."""

    code = Code.PERMISSION_DENIED
    reason = "NODE_NOT_EVIDENCED"


def verify_outcome(receipt: Receipt, exchange: Exchange) -> UpstreamVerified:
    """Accept a receipt of this exchange's time that says a verified upstream had to serve, and did.

    Raises `ServingNotVerified` or `ServedAtImplausible`.
    """
    outcome = receipt.upstream
    if not isinstance(outcome, UpstreamVerified) or not outcome.required:
        raise receipts.ServingNotVerified("the receipt does not show that verified serving was required and happened")
    verify_dated(receipt, exchange.sent_at, exchange.received_at)
    return outcome


def verify_dated(receipt: Receipt, sent_at: float, received_at: float) -> None:
    """Accept a receipt of this time, Unix seconds. Raises `ServedAtImplausible`."""
    if not sent_at - CLOCK_SKEW_SECONDS <= receipt.served_at <= received_at + CLOCK_SKEW_SECONDS:
        raise ServedAtImplausible("the receipt is dated outside the time of this exchange: check both clocks")


def verify_sealed(receipt: Receipt, exchange: Exchange) -> None:
    """Accept a receipt of an exchange that was encrypted for this client's key, or for nobody's, as it was asked.

    Raises `SealedForAnother`.
    """
    named = [event.client_key_sha256 for event in receipt.events if isinstance(event, Encrypted)]
    if named != ([] if exchange.sealed_to is None else [exchange.sealed_to]):
        raise SealedForAnother("the receipt names other keys that the answer was encrypted to than this client's")


def verify_claimed(session: Session, also: Collection[str] = ()) -> None:
    """Accept a session that claims a TEE that hardware proves, and asserts `also`: names of typed claims.

    Raises `SessionClaimsInsufficient`.
    """
    tee = session.claims.tee_attested
    if (tee.status, tee.source) != ("asserted", "hardware_proven"):
        raise SessionClaimsInsufficient("the session does not claim a TEE that hardware proves")
    for name in sorted(also):
        if getattr(session.claims, name).status != "asserted":
            raise SessionClaimsInsufficient(f"the session does not assert {name}")


def verify_node(document: bytes, receipt: Receipt, outcome: UpstreamVerified, policy: Policy, ca: bytes) -> Appraisal:
    """Return this client's own appraisal of the node that served, as of then. Whether it had to be verified is judged
    with the outcome.

    `ca` is the SPKI of the key that signs the mesh's challenges. Raises what the session, the receipt or the evidence
    is refused for.
    """
    session = verify_session(document, outcome.session_id)
    receipts.verify_serving(receipt, session, demanded=outcome.required)
    verify_claimed(session)
    evidence = evidences.parse(session.evidence)
    appraisal = appraise(
        evidence,
        policy.rules(NODE_ROLE),
        AppraisalContext(
            now=receipt.served_at,
            spki=None,
            challenge=SignedBy(ca, policy.evidence_max_age_seconds),
            policy_version=policy.version,
        ),
    )
    bound = hashlib.sha256(evidence.spki).hexdigest()
    if [getattr(binding, "spki_sha256", None) for binding in _tls_bindings(session)] != [bound]:
        raise ChannelNotEvidenced("the session is bound to another key than the one its evidence speaks for")
    own = _verify_named_node(receipt, outcome, session, appraisal)
    if own is not None:
        required = policy.rules(NODE_ROLE).gpu_required
        verify_gpus(own, evidence.gpu_ueids, appraisal.workload_claims, required=required)
    return appraisal


def _tls_bindings(session: Session) -> list[object]:
    """All bindings, so that any other than the one wanted shows."""
    return [binding if isinstance(binding, TlsBinding) else None for binding in session.bindings]


def _verify_named_node(
    receipt: Receipt, outcome: UpstreamVerified, session: Session, appraisal: Appraisal
) -> Receipt | None:
    """Return the node's own receipt, where this one holds it."""
    named = [event for event in receipt.events if isinstance(event, ServedByNode)]
    if not named:
        raise NodeNotEvidenced("the receipt does not name the node that served")
    # Earlier events record earlier attempts.
    node = named[-1]
    if node.spiffe_id != session.upstream_name or node.evidence_digest != f"sha256:{appraisal.evidence_digest.hex()}":
        raise NodeNotEvidenced("the receipt names another node than the session that it cites")
    if node.weights_sha256 != _weights(appraisal.workload_claims, outcome.model_id):
        raise NodeNotEvidenced("the node's evidence does not claim this model with these weights")
    if node.engine != appraisal.workload_claims.get("engine"):
        raise NodeNotEvidenced("the node's evidence does not claim this engine")
    if node.engine_args_sha256 not in (None, appraisal.workload_claims.get("engine_args_sha256")):
        raise NodeNotEvidenced("the node's evidence does not claim this engine's arguments")
    return None if node.receipt is None else _verify_nodes_receipt(node.receipt.encode(), node, receipt, appraisal)


def _verify_nodes_receipt(document: bytes, node: ServedByNode, receipt: Receipt, appraisal: Appraisal) -> Receipt:
    """Return the node's own receipt, for what the router's says that it forwarded. Its answer may have got an end
    there that it lacked, so the two need not have returned the same bytes.
    """
    key = appraisal.workload_claims.get("receipt_key")
    if hashlib.sha256(document).hexdigest() != node.receipt_sha256 or not isinstance(key, str):
        raise NodeNotEvidenced("the node's receipt is not the one that the receipt names")
    try:
        own = receipts.verify_signed_by(document, bytes.fromhex(key))
    except (MeshError, ValueError) as error:
        raise NodeNotEvidenced("the node's receipt does not verify under the key in its evidence") from error
    for generated in (event for event in own.events if isinstance(event, Generated)):
        said = (generated.engine, generated.engine_args_sha256, generated.weights_sha256)
        if said != (node.engine, node.engine_args_sha256, node.weights_sha256):
            raise NodeNotEvidenced("the node's receipt names another engine, arguments or weights than its evidence")
    forwarded = None if receipt.forwarded is None else receipt.forwarded.body_hash
    if (own.received.body_hash, own.endpoint) != (forwarded, receipt.endpoint):
        raise NodeNotEvidenced("the node's receipt is for another prompt than the router forwarded")
    return own


def _weights(claims: Mapping[str, Any], model_id: str) -> str | None:
    """The appraisal has checked the form of a node's models."""
    return next((model["weights_sha256"] for model in claims["models"] if model["id"] == model_id), None)
