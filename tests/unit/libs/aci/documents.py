"""Documents that the ACI tests share: one keyset, its receipt key, a receipt and a session."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.aci import keyset as keysets
from libs.aci.claims import Claim, Claims
from libs.aci.encoding import digest
from libs.aci.keyset import Keyset, TlsKey
from libs.aci.receipt import Receipt
from libs.aci.receipt_events import (
    Aborted,
    Encrypted,
    Event,
    Metered,
    PolicyInForce,
    RequestForwarded,
    RequestReceived,
    ResponseReturned,
    SealedUnder,
    ServedByNode,
    UpstreamVerified,
)
from libs.aci.session import TlsBinding, session_document, session_id

RECEIPT_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
NOW = 1_900_000_000
REQUEST = b'{"model":"m","messages":[]}'
RESPONSE = b'{"id":"chatcmpl-1","choices":[]}'
SESSION = session_document(
    upstream_name="spiffe://mesh.test/node/a",
    endpoint="https://node-a.test:7000",
    verifier_id="teemesh/1",
    established_at=NOW - 10,
    expires_at=NOW + 3600,
    bindings=(TlsBinding("https://node-a.test:7000", "ab" * 32),),
    claims=Claims(tee_attested=Claim("asserted", "hardware_proven", "TDX quote verified")),
    evidence=b'{"quote":"00"}',
    extra={"tcb_status": "UpToDate"},
)
SESSION_ID = session_id(SESSION)


def keyset(*, not_after: int = NOW + 86_400, receipt_key: bytes | None = None) -> Keyset:
    return keysets.build(
        subject="spiffe://mesh.test/router/a",
        not_after=not_after,
        receipt_keys={"receipt-1": receipt_key or RECEIPT_KEY.public_key().public_bytes_raw()},
        tls_keys=(TlsKey("cd" * 32, "router.test"), TlsKey("ef" * 32)),
    )


def receipt(*, events: tuple[Event, ...] | None = None, served_at: int = NOW) -> Receipt:
    return Receipt(
        receipt_id="rcpt-000000000000000000000001",
        chat_id="chatcmpl-1",
        model="m",
        workload_keyset_digest=keyset().digest,
        endpoint="/v1/chat/completions",
        method="POST",
        served_at=served_at,
        events=full_events() if events is None else events,
        key_id="receipt-1",
    )


def full_events() -> tuple[Event, ...]:
    return (
        RequestReceived(digest(REQUEST)),
        RequestForwarded(digest(REQUEST)),
        UpstreamVerified(required=True, model_id="m", session_id=SESSION_ID),
        PolicyInForce(version=3, digest=digest(b"policy")),
        ServedByNode(
            spiffe_id="spiffe://mesh.test/node/a",
            evidence_digest=digest(b"evidence"),
            receipt_sha256="01" * 32,
            weights_sha256="02" * 32,
            engine="embedded/1",
            engine_args_sha256="03" * 32,
            receipt="{}",
        ),
        SealedUnder(vault_epoch=670),
        Encrypted(version="2", algo="x25519-aes-256-gcm-hkdf-sha256", key_id="e2ee-1", client_key_sha256="5e" * 32),
        Metered("laptop", completion_tokens=5),
        Aborted("upstream_failed", "the node broke off"),
        ResponseReturned(digest(RESPONSE)),
    )
