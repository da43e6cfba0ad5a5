"""It is responsible for judging a session that the registry sealed: it MUST say what this router's own appraisal says.

Receipts cite the session, so every fact in it that a client may rely on is compared, not only the evidence.
"""

from __future__ import annotations

from libs.aci import claims
from libs.aci.session import Session, TlsBinding
from libs.errors import Code, MeshError
from libs.identity.lease import Lease

_POLICY_VERSION = "policy_version"
"""The policy that the session was sealed under; the only fact that may be another than this router's."""


class SessionNotOurs(MeshError):
    """The registry's session for a node says something else than this router's own appraisal."""

    code = Code.PERMISSION_DENIED
    reason = "SESSION_NOT_CONFIRMED"


def confirm(session: Session, endpoint: str, lease: Lease, now: float) -> None:
    """Raise `SessionNotOurs` unless the session is about this very node, key and evidence and says what we found."""
    appraisal = lease.appraisal
    origin = f"https://{endpoint}"
    if not session.established_at <= now < session.expires_at:
        raise SessionNotOurs("the session is not valid now")
    if session.evidence != lease.evidence.document:
        raise SessionNotOurs("the session holds other evidence than the node presented")
    if session.bindings != (TlsBinding(origin, lease.certificate.spki_sha256.hex()),):
        raise SessionNotOurs("the session is bound to another channel than the one to the node")
    if (session.upstream_name, session.endpoint) != (lease.certificate.spiffe_id, origin) or session.identity:
        raise SessionNotOurs("the session names another node")
    if claims.document(session.claims) != claims.document(appraisal.claims):
        raise SessionNotOurs("the session claims something else than this router's appraisal found")
    found = {
        "tcb_status": appraisal.tcb_status,
        "vendor_root_sha256": appraisal.vendor_root_sha256.hex(),
        **appraisal.measurement.to_json(),
    }
    version = session.extra.get(_POLICY_VERSION)
    if type(version) is not int or version < 1:
        raise SessionNotOurs("the session does not say under which policy it was sealed")
    if {name: value for name, value in session.extra.items() if name != _POLICY_VERSION} != found:
        raise SessionNotOurs("the session states other facts than this router's appraisal found")
