"""Responsible for inference receipts: building, signing and parsing them (§7), and checking a response by one (§9.3).

Each `verify_*` is one part of §9.3; a caller that relies on a response runs all that apply. The signature is over the
canonical form of the parsed document without `signature`, whatever the encoding it came in.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from libs import jcs
from libs.aci import receipt_events as events
from libs.aci.encoding import API_VERSION, Members, digest
from libs.aci.keyset import Keyset
from libs.aci.receipt_events import (
    Event,
    ReceiptMalformed,
    RequestForwarded,
    RequestReceived,
    ResponseReturned,
    UnknownEvent,
    UpstreamFailed,
    UpstreamVerified,
)
from libs.aci.session import Session
from libs.errors import MeshError

E = TypeVar("E", bound=Event)


class ReceiptSignatureInvalid(MeshError):
    """The signature is not the named key's over this document."""

    reason = "RECEIPT_SIGNATURE_INVALID"


class ReceiptOfOtherKeyset(MeshError):
    """The receipt was made under another keyset than the one established."""

    reason = "RECEIPT_OF_OTHER_KEYSET"


class RequestNotReceipted(MeshError):
    """The receipt is for another request body."""

    reason = "REQUEST_NOT_RECEIPTED"


class ResponseNotReceipted(MeshError):
    """The receipt is for another response body."""

    reason = "RESPONSE_NOT_RECEIPTED"


class ServingNotVerified(MeshError):
    """The receipt does not say that a verified upstream served."""

    reason = "SERVING_NOT_VERIFIED"


class SessionNotCited(MeshError):
    """The receipt cites another session than the one shown or pinned."""

    reason = "SESSION_NOT_CITED"


class ServedOutsideSession(MeshError):
    """The response was served outside the session's validity."""

    reason = "SERVED_OUTSIDE_SESSION"


@dataclass(frozen=True, slots=True)
class Receipt:
    """A receipt without its signature. `served_at` is in Unix seconds; events are in the order of the document."""

    receipt_id: str
    chat_id: str | None
    model: str | None
    workload_keyset_digest: str
    endpoint: str
    method: str
    served_at: int
    events: tuple[Event, ...]
    key_id: str

    @property
    def received(self) -> RequestReceived:
        return self._only(RequestReceived)

    @property
    def returned(self) -> ResponseReturned:
        return self._only(ResponseReturned)

    @property
    def forwarded(self) -> RequestForwarded | None:
        """What went upstream; None for a refusal. Another hash than `received` shows a rewrite."""
        return next((event for event in self.events if isinstance(event, RequestForwarded)), None)

    @property
    def upstream(self) -> UpstreamVerified | UpstreamFailed | None:
        """The outcome that served: the last, as earlier events record earlier attempts. None from a direct service."""
        outcomes = [event for event in self.events if isinstance(event, UpstreamVerified | UpstreamFailed)]
        return outcomes[-1] if outcomes else None

    def _only(self, kind: type[E]) -> E:
        return next(event for event in self.events if isinstance(event, kind))


def fresh_receipt_id() -> str:
    return "rcpt-" + secrets.token_hex(12)


def sign(receipt: Receipt, key: Ed25519PrivateKey) -> bytes:
    """Return the signed document, canonical. Raises `ReceiptMalformed` rather than sign what would not verify."""
    return jcs.dumps(signed_members(receipt, key))


def signed_members(receipt: Receipt, key: Ed25519PrivateKey) -> dict[str, Any]:
    """Return the members of the signed document. Raises `ReceiptMalformed` rather than sign what would not verify."""
    document: dict[str, Any] = {
        "api_version": API_VERSION,
        "receipt_id": receipt.receipt_id,
        "chat_id": receipt.chat_id,
        "model": receipt.model,
        "workload_keyset_digest": receipt.workload_keyset_digest,
        "endpoint": receipt.endpoint,
        "method": receipt.method,
        "served_at": receipt.served_at,
        "event_log": [_event_document(event) for event in receipt.events],
        "key_id": receipt.key_id,
    }
    _read(document)
    return document | {"signature": key.sign(jcs.dumps(document)).hex()}


def parse(document: bytes) -> Receipt:
    """Read a receipt without judging its signature. Raises `ReceiptMalformed` or `JsonMalformed`."""
    return _read(jcs.loads(document))


def verify_signed_by(document: bytes, public_key: bytes) -> Receipt:
    """Accept a receipt signed by this raw Ed25519 key, whatever key id it names.

    For a key that something else already binds, such as a node's evidence. Raises `ReceiptSignatureInvalid` or what
    `parse` raises.
    """
    value = jcs.loads_object(document)
    receipt = _read(value)
    signature = Members(value, "receipt", ReceiptMalformed).hex("signature", 64)
    unsigned = {name: member for name, member in value.items() if name != "signature"}
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(bytes.fromhex(signature), jcs.dumps_parsed(unsigned))
    except (InvalidSignature, ValueError) as error:
        raise ReceiptSignatureInvalid("the receipt's signature does not verify under its key") from error
    return receipt


def verify_receipt(document: bytes, keyset: Keyset) -> Receipt:
    """Accept a receipt of an established keyset (§9.3 steps 1 and 2).

    Raises `ReceiptKeyUnknown`, `ReceiptSignatureInvalid`, `ReceiptOfOtherKeyset` or what `parse` raises.
    """
    receipt = verify_signed_by(document, keyset.receipt_key(parse(document).key_id))
    if receipt.workload_keyset_digest != keyset.digest:
        raise ReceiptOfOtherKeyset("the receipt names another keyset than the one established")
    return receipt


def verify_exchange(receipt: Receipt, *, request_body: bytes, response_hash: str) -> None:
    """Accept a receipt over exactly these bytes (§9.3 steps 3 and 4).

    `response_hash` is the digest form over the raw body as it came off the wire, so a stream need not be kept. Raises
    `RequestNotReceipted` or `ResponseNotReceipted`.
    """
    if receipt.received.body_hash != digest(request_body):
        raise RequestNotReceipted("the receipt is for another request body than the one sent")
    if receipt.returned.body_hash != response_hash:
        raise ResponseNotReceipted("the receipt is for another response body than the one that came")


def verify_serving(
    receipt: Receipt, session: Session, *, pinned: Collection[str] | None = None, demanded: bool = True
) -> UpstreamVerified:
    """Accept a receipt that cites this verified session (§9.3 steps 5 and 6).

    `demanded` is whether the request demanded verified serving, or whoever asks does: then one that says it was not
    required is refused, for the service did not listen. Raises `ServingNotVerified`, `SessionNotCited` or
    `ServedOutsideSession`. `served_at` is the server's own word.
    """
    outcome = receipt.upstream
    if not isinstance(outcome, UpstreamVerified):
        raise ServingNotVerified("the receipt does not show that a verified upstream served")
    if demanded and not outcome.required:
        raise ServingNotVerified("the receipt does not show that verified serving was required")
    if outcome.session_id != session.session_id:
        raise SessionNotCited("the receipt cites another session than the one verified")
    if pinned is not None and outcome.session_id not in pinned:
        raise SessionNotCited("the receipt cites a session that the request did not pin")
    if not session.established_at <= receipt.served_at <= session.expires_at:
        raise ServedOutsideSession("the response was served outside the validity of the session that it cites")
    return outcome


def _event_document(event: Event) -> dict[str, Any]:
    if isinstance(event, UnknownEvent):
        raise ReceiptMalformed("an event of a type that this version does not know cannot be signed")
    return events.document(event)


def _read(value: object) -> Receipt:
    members = Members(value, "receipt", ReceiptMalformed)
    members.api_version()
    receipt = Receipt(
        receipt_id=members.text("receipt_id"),
        chat_id=members.text_or_null("chat_id"),
        model=members.text_or_null("model"),
        workload_keyset_digest=members.digest("workload_keyset_digest"),
        endpoint=members.text("endpoint"),
        method=members.text("method"),
        served_at=members.integer("served_at"),
        events=members.items("event_log", events.read),
        key_id=members.text("key_id"),
    )
    kinds = [type(event) for event in receipt.events]
    if not kinds or kinds[0] is not RequestReceived or kinds.count(RequestReceived) != 1:
        raise ReceiptMalformed("a receipt begins with its only request.received event")
    if kinds.count(ResponseReturned) != 1:
        raise ReceiptMalformed("a receipt has exactly one response.returned event")
    if kinds.count(RequestForwarded) > 1:
        raise ReceiptMalformed("a receipt has at most one request.forwarded event")
    return receipt
