"""It is responsible for what is kept of a session beside its document, so that sessions can be listed and let go.

Nobody relies on it: what a session says is in the document, whose digest is its name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from libs import jcs
from libs.errors import Code, MeshError
from libs.identity.lease import Lease
from libs.policy.members import Members
from services.registry.claims import claimed_models
from services.registry.providers import MODEL_ID, RECORD_VERSION

_NAME = re.compile(r"[!-~]{1,300}")
_DIGEST_BYTES = 32


class SummaryMalformed(MeshError):
    """The store holds something that no registry wrote, or one that writes another version of records."""

    code = Code.DATA_LOSS
    reason = "SESSION_SUMMARY_MALFORMED"


@dataclass(frozen=True, slots=True)
class Summary:
    """One session. Times are in Unix seconds."""

    session_id: str
    spiffe_id: str
    spki_sha256: str
    models: tuple[str, ...]
    established_at: int
    expires_at: int
    octets: int
    """Size of the document."""

    def encode(self) -> bytes:
        return jcs.dumps(
            {
                "v": RECORD_VERSION,
                "spiffe_id": self.spiffe_id,
                "spki_sha256": self.spki_sha256,
                "models": [*self.models],
                "established_at": self.established_at,
                "expires_at": self.expires_at,
                "octets": self.octets,
            }
        )


def summarise(session_id: str, document: bytes, node: Lease) -> Summary:
    """Say what a session is about that was drafted for a node."""
    return Summary(
        session_id=session_id,
        spiffe_id=node.certificate.spiffe_id,
        spki_sha256=node.certificate.spki_sha256.hex(),
        models=tuple(model for model, _ in claimed_models(node)),
        established_at=node.appraisal.appraised_at,
        expires_at=int(node.until),
        octets=len(document),
    )


def decode_summary(session_id: str, data: bytes) -> Summary:
    """Raises `SummaryMalformed`."""
    try:
        members = Members(jcs.loads_object(data), "", SummaryMalformed)
    except jcs.JsonMalformed as error:
        raise SummaryMalformed(f"a session's summary cannot be read: {error}") from error
    members.integer("v", RECORD_VERSION, RECORD_VERSION)
    summary = Summary(
        session_id=session_id,
        spiffe_id=members.text("spiffe_id", _NAME),
        spki_sha256=members.hexadecimal("spki_sha256", _DIGEST_BYTES),
        models=members.texts("models", MODEL_ID, may_be_empty=True),
        established_at=members.integer("established_at", 0),
        expires_at=members.integer("expires_at", 0),
        octets=members.integer("octets", 0),
    )
    members.end()
    return summary
