"""Responsible for an answer from outside the mesh: the chain from the router's receipt to the provider's own proof.

All of it is offline, from the router's receipt, the session that it cites, and the provider's session behind that. The
provider must be one that policy lists, and its evidence is appraised here, as of then.
"""

from __future__ import annotations

from libs.aci import receipt as receipts
from libs.aci.encoding import digest
from libs.aci.receipt import Receipt
from libs.aci.receipt_events import Encrypted, ServedByForeign, UpstreamVerified
from libs.aci.report import DIRECT
from libs.aci.session import Session, TlsBinding, verify_session
from libs.client.foreign import (
    ForeignEvidence,
    parse_evidence,
    pins_of,
    verify_service,
    verify_upstream_session,
)
from libs.client.serving import ChannelNotEvidenced, verify_claimed, verify_dated
from libs.client.vllm_proxy import verify_request_signed, verify_worker
from libs.errors import Code, MeshError
from libs.policy.document import Policy
from libs.policy.foreign import ForeignKind, ForeignProvider

_LONGEST_ANSWER_SECONDS = 900.0
"""A provider may date its receipt when its answer ends, ours are dated when the prompt was handed over."""


class ForeignNotListed(MeshError):
    """The receipt names a provider that policy does not list, or its session is about another."""

    code = Code.PERMISSION_DENIED
    reason = "FOREIGN_NOT_LISTED"


class ForeignChainBroken(MeshError):
    """The provider's proof is not over what the router says that it sent and got."""

    code = Code.PERMISSION_DENIED
    reason = "FOREIGN_CHAIN_BROKEN"


def foreign_link(receipt: Receipt) -> ServedByForeign | None:
    """Return what the receipt says of a provider that served; None where a node did."""
    links = [event for event in receipt.events if isinstance(event, ServedByForeign)]
    return links[-1] if links else None


def cited_by(link: ServedByForeign) -> str | None:
    """Return the id of the provider's own session that its receipt cites, unverified: to fetch it. None where the link
    does not hold the receipt.
    """
    if link.receipt is None:
        return None
    try:
        outcome = receipts.parse(link.receipt.encode()).upstream
    except MeshError:
        return None
    return outcome.session_id if isinstance(outcome, UpstreamVerified) else None


def verify_chain(
    document: bytes,
    receipt: Receipt,
    outcome: UpstreamVerified,
    link: ServedByForeign,
    upstream: bytes | None,
    policy: Policy,
) -> str:
    """Return in words who served. `upstream` is the provider's own session, where its receipt cites one.

    Of an exchange that was encrypted the link names the provider's proof by its hash alone, as the proof has the hash
    of the answer in clear: the chain ends at the provider then, and the rest is the attested router's word. Whether it
    had to be verified is judged with the outcome: see `verify_outcome`. Raises the first refusal: of the session, the
    provider, its evidence, its channel or its proof.
    """
    session = verify_session(document, outcome.session_id)
    receipts.verify_serving(receipt, session, demanded=outcome.required)
    verify_claimed(session)
    provider = _listed(link, session, policy)
    evidence = parse_evidence(session.evidence)
    proof = None if link.receipt is None else link.receipt.encode()
    left_out = proof is None and any(isinstance(event, Encrypted) for event in receipt.events)
    held = proof is not None and digest(proof) == f"sha256:{link.receipt_sha256}"
    if not (held or left_out) or receipt.forwarded is None:
        raise ForeignChainBroken("the receipt does not hold the provider's proof that it names")
    if provider.kind is ForeignKind.ACI:
        return _verify_service(session, evidence, provider, receipt, proof, upstream, policy)
    worker = verify_worker(evidence, provider, policy, receipt.served_at)
    _require_channel(session, provider, frozenset({worker.spki_sha256} - {None}))
    if proof is not None:
        verify_request_signed(proof, worker, receipt.forwarded.body_hash)
    return f"{session.upstream_name}, compose {worker.verdict.measurement.compose_hash[:16]}..."


def _listed(link: ServedByForeign, session: Session, policy: Policy) -> ForeignProvider:
    provider = next((listed for listed in policy.foreign_providers if listed.name == link.provider), None)
    if provider is None or (session.upstream_name, session.endpoint) != (f"foreign/{link.provider}", provider.origin):
        raise ForeignNotListed("policy does not list the provider that the receipt and its session name")
    return provider


def _verify_service(
    session: Session,
    evidence: ForeignEvidence,
    provider: ForeignProvider,
    receipt: Receipt,
    proof: bytes | None,
    upstream: bytes | None,
    policy: Policy,
) -> str:
    established = verify_service(evidence, provider, policy, receipt.served_at)
    _require_channel(session, provider, pins_of(established, provider, policy.revoked))
    compose = f"{session.upstream_name}, compose {established.verdict.measurement.compose_hash[:16]}..."
    if proof is None:
        return compose
    theirs = receipts.verify_receipt(proof, established.keyset)
    verify_dated(theirs, receipt.served_at, receipt.served_at + _LONGEST_ANSWER_SECONDS)
    # Earlier routers' receipts hold it also of an encrypted exchange, whose answer only the router knows in clear.
    sealed = any(isinstance(event, Encrypted) for event in receipt.events)
    returned = theirs.returned.body_hash if sealed else receipt.returned.body_hash
    forwarded = None if receipt.forwarded is None else receipt.forwarded.body_hash
    if (theirs.received.body_hash, theirs.returned.body_hash) != (forwarded, returned):
        raise ForeignChainBroken("the provider's receipt is over another request or another response")
    if established.serving != DIRECT:
        cited = theirs.upstream.session_id if isinstance(theirs.upstream, UpstreamVerified) else None
        if upstream is None or cited is None or cited not in evidence.session_ids:
            raise receipts.SessionNotCited("the provider's receipt cites none of the sessions that were accepted")
        receipts.verify_serving(theirs, verify_upstream_session(upstream, cited, provider, theirs.served_at))
    return f"{compose}, receipt {theirs.receipt_id}"


def _require_channel(session: Session, provider: ForeignProvider, pins: frozenset[str | None]) -> None:
    bound = {binding if isinstance(binding, TlsBinding) else None for binding in session.bindings}
    if bound != {TlsBinding(provider.origin, pin) for pin in pins if pin is not None}:
        raise ChannelNotEvidenced("the session is bound to other keys than the ones its evidence speaks for")
