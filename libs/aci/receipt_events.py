"""Responsible for the events of a receipt (§7.4, §7.5) and those that teemesh adds: flat objects, in order.

Verifiers elsewhere ignore the `teemesh.` types; their digests follow Appendix A, so `*digest` members carry `sha256:`
and `*_sha256` members are bare hex.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from libs.aci.encoding import Members
from libs.errors import Code, MeshError


class ReceiptMalformed(MeshError):
    """The receipt is not the document that §7 defines."""

    code = Code.INVALID_ARGUMENT
    reason = "RECEIPT_MALFORMED"


@dataclass(frozen=True, slots=True)
class RequestReceived:
    """The request body that the workload processed."""

    TYPE: ClassVar[str] = "request.received"
    body_hash: str


@dataclass(frozen=True, slots=True)
class RequestForwarded:
    """The exact bytes used for inference; absent when the prompt went nowhere."""

    TYPE: ClassVar[str] = "request.forwarded"
    body_hash: str


@dataclass(frozen=True, slots=True)
class ResponseReturned:
    """The exact response bytes, stream framing included."""

    TYPE: ClassVar[str] = "response.returned"
    body_hash: str


@dataclass(frozen=True, slots=True)
class UpstreamVerified:
    """A verified upstream served, under the session that holds the proof. `required`: policy demanded verification."""

    TYPE: ClassVar[str] = "upstream.verified"
    required: bool
    model_id: str
    session_id: str


@dataclass(frozen=True, slots=True)
class UpstreamFailed:
    """No verified upstream served. With `required` the prompt was not forwarded."""

    TYPE: ClassVar[str] = "upstream.verified"
    required: bool
    model_id: str
    reason: str
    upstream_name: str | None = None


@dataclass(frozen=True, slots=True)
class PolicyInForce:
    """The mesh policy that the request was served under."""

    TYPE: ClassVar[str] = "teemesh.policy"
    version: int
    digest: str


@dataclass(frozen=True, slots=True)
class ServedByNode:
    """The node that served: its name, evidence, own receipt, model weights, engine, and the engine's arguments.

    Receipts of earlier versions have neither the node's receipt, as it came, nor the arguments.
    """

    TYPE: ClassVar[str] = "teemesh.node"
    spiffe_id: str
    evidence_digest: str
    receipt_sha256: str
    weights_sha256: str
    engine: str
    engine_args_sha256: str | None = None
    receipt: str | None = None


@dataclass(frozen=True, slots=True)
class Generated:
    """What a node's engine is and was asked for, in the node's own receipt.

    `sampling` is canonical JSON of what the body has that decides what is sampled, each in a string: a number, true,
    false or null as it was written, all else as the digest of its JSON. `cache_salt_sha256` commits to the salt that
    parts this tenant's prefixes from others', where the engine has one cache for all, and `cache_salt_key_epoch` is the
    epoch of the KMS key that it is made of. `weights_key` and its epoch name the KMS key that the weights were opened
    with, where they came encrypted. The tokens are the engine's word, where it gave it. `gpus` is what
    `receipt_gpus.listed` makes of the GPUs in the node's evidence, where it shows any.

    Receipts of earlier versions have no epochs and no GPUs, and of `sampling` numbers alone.
    """

    TYPE: ClassVar[str] = "teemesh.generation"
    engine: str
    engine_args_sha256: str
    weights_sha256: str
    sampling: str
    cache_salt_sha256: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cache_salt_key_epoch: int | None = None
    weights_key: str | None = None
    weights_key_epoch: int | None = None
    gpus: str | None = None


@dataclass(frozen=True, slots=True)
class ServedByForeign:
    """The provider outside the mesh that served: its own receipt, as it came, so that the two chain by themselves.

    Of an exchange that was encrypted there is the hash alone: the receipt has the hash of the answer in clear.
    """

    TYPE: ClassVar[str] = "teemesh.foreign"
    provider: str
    receipt_sha256: str
    receipt: str | None = None


@dataclass(frozen=True, slots=True)
class Aborted:
    """The exchange ended before its time; `response.returned` covers what went out until then.

    `reason` is for programs, `detail` for people.
    """

    TYPE: ClassVar[str] = "teemesh.abort"
    reason: str
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class SealedUnder:
    """The month of its tenant's vault whose key the receipt's entry was sealed under. A receipt that is signed before
    it can be logged, since nobody waits for it or the ledger is away, has no such event: its month is not known yet.
    """

    TYPE: ClassVar[str] = "teemesh.key_epoch"
    vault_epoch: int


@dataclass(frozen=True, slots=True)
class Encrypted:
    """The prompt came encrypted (E2EE §8), to this key of the keyset and under this suite; its answer goes to the
    client's key of that SHA-256.
    """

    TYPE: ClassVar[str] = "teemesh.e2ee"
    version: str
    algo: str
    key_id: str
    client_key_sha256: str


@dataclass(frozen=True, slots=True)
class Metered:
    """By which of its keys the tenant asked, and what the answer said of its tokens, if it did."""

    TYPE: ClassVar[str] = "teemesh.usage"
    key: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class UnknownEvent:
    """An event of a type that this version does not know; carried, never judged (§7.4)."""

    type: str
    members: Mapping[str, Any]


KnownEvent = (
    RequestReceived
    | RequestForwarded
    | ResponseReturned
    | UpstreamVerified
    | UpstreamFailed
    | PolicyInForce
    | ServedByNode
    | Generated
    | ServedByForeign
    | Aborted
    | SealedUnder
    | Encrypted
    | Metered
)
Event = KnownEvent | UnknownEvent


def document(event: KnownEvent) -> dict[str, Any]:
    """Return the flat object. A member that is None is left out."""
    members = {field.name: getattr(event, field.name) for field in dataclasses.fields(event)}
    if isinstance(event, UpstreamVerified | UpstreamFailed):
        members["result"] = "verified" if isinstance(event, UpstreamVerified) else "failed"
    return {"type": event.TYPE} | {name: value for name, value in members.items() if value is not None}


def read(members: Members) -> Event:
    """Read one event. Raises `ReceiptMalformed`. Members beyond the defined ones are signed, and ignored."""
    kind = members.text("type")
    match kind:
        case RequestReceived.TYPE:
            return RequestReceived(members.digest("body_hash"))
        case RequestForwarded.TYPE:
            return RequestForwarded(members.digest("body_hash"))
        case ResponseReturned.TYPE:
            return ResponseReturned(members.digest("body_hash"))
        case UpstreamVerified.TYPE:
            return _read_upstream(members)
        case PolicyInForce.TYPE:
            return PolicyInForce(members.integer("version"), members.digest("digest"))
        case ServedByNode.TYPE:
            return ServedByNode(
                spiffe_id=members.text("spiffe_id"),
                evidence_digest=members.digest("evidence_digest"),
                receipt_sha256=members.hex("receipt_sha256", 32),
                weights_sha256=members.hex("weights_sha256", 32),
                engine=members.text("engine"),
                engine_args_sha256=members.optional_hex("engine_args_sha256", 32),
                receipt=members.optional_text("receipt"),
            )
        case Generated.TYPE:
            return Generated(
                engine=members.text("engine"),
                engine_args_sha256=members.hex("engine_args_sha256", 32),
                weights_sha256=members.hex("weights_sha256", 32),
                sampling=members.text("sampling"),
                cache_salt_sha256=members.optional_hex("cache_salt_sha256", 32),
                prompt_tokens=members.optional_integer("prompt_tokens"),
                completion_tokens=members.optional_integer("completion_tokens"),
                cache_salt_key_epoch=members.optional_integer("cache_salt_key_epoch"),
                weights_key=members.optional_text("weights_key"),
                weights_key_epoch=members.optional_integer("weights_key_epoch"),
                gpus=members.optional_text("gpus"),
            )
        case ServedByForeign.TYPE:
            return ServedByForeign(
                members.text("provider"), members.hex("receipt_sha256", 32), members.optional_text("receipt")
            )
        case Aborted.TYPE:
            return Aborted(members.text("reason"), members.optional_text("detail"))
        case SealedUnder.TYPE:
            return SealedUnder(members.integer("vault_epoch"))
        case Encrypted.TYPE:
            return Encrypted(
                members.text("version"),
                members.text("algo"),
                members.text("key_id"),
                members.hex("client_key_sha256", 32),
            )
        case Metered.TYPE:
            return Metered(
                members.text("key"),
                members.optional_integer("prompt_tokens"),
                members.optional_integer("completion_tokens"),
            )
        case _:
            return UnknownEvent(kind, members.raw())


def _read_upstream(members: Members) -> UpstreamVerified | UpstreamFailed:
    required, model_id = members.flag("required"), members.text("model_id")
    match members.text("result"):
        case "verified":
            return UpstreamVerified(required, model_id, members.hex("session_id", 32))
        case "failed":
            return UpstreamFailed(required, model_id, members.text("reason"), members.optional_text("upstream_name"))
        case _:
            raise members.refuse("result", 'must be "verified" or "failed"')
