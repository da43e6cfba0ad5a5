"""It is responsible for who may write to the log: each issuer proved by the evidence in its first entry.

What is proved is proved once, under the newest policy of the log and as of the time of the message, so that reading the
stream again gives the same answer. A later refusal does not take back what an issuer wrote; it gets no new certificate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from libs.errors import Code, MeshError
from libs.events.keyset import Keyset, KeysetMalformed, PreviousIssuer, parse_keyset
from libs.identity.certificate import parse, spki_of, verify_issued
from libs.identity.lease import appraise_peer
from libs.policy.document import Policy
from libs.transparency.leaf import Kind

MAX_DELAY_SECONDS = 7 * 24 * 3600
"""How long after its certificate's end an issuer may still be introduced: broker and ledger may be away that long."""

_LEDGERS = frozenset(kind for kind in Kind if kind.is_ledgers)
KINDS_OF_ROLE: Mapping[str, frozenset[Kind]] = {
    "router": frozenset({Kind.RECEIPT, Kind.KEYSET, Kind.SESSION, Kind.AMENDMENT, Kind.USAGE, Kind.REFUSALS}),
    "kms": frozenset({Kind.KEYSET, Kind.POLICY, Kind.KEY_DECISION, Kind.ADMISSION, Kind.REVOCATION}),
    "registry": frozenset({Kind.KEYSET, Kind.SESSION, Kind.ADMISSION}),
    "job": frozenset({Kind.KEYSET, Kind.PIPELINE}),
    "ledger": frozenset({Kind.KEYSET, Kind.ERASURE, Kind.WITNESS}) | _LEDGERS,
}


class KeysetNotAttested(MeshError):
    """The evidence speaks for another log key, another issuer, or for none of this mesh's writers."""

    code = Code.PERMISSION_DENIED
    reason = "KEYSET_NOT_ATTESTED"


class KeysetTooLate(MeshError):
    """The certificate ended too long before the keyset came."""

    code = Code.PERMISSION_DENIED
    reason = "KEYSET_TOO_LATE"


@dataclass(frozen=True, slots=True)
class Writer:
    """An issuer that may write."""

    key: Ed25519PublicKey
    role: str
    spiffe_id: str
    closed_after: int | None = None
    """The last number of a sequence that a later start of the same service has closed."""

    def may_write(self, kind: Kind) -> bool:
        return kind in KINDS_OF_ROLE[self.role]


def nobody(issuer: bytes) -> Writer | None:
    """A log that has admitted no one yet."""
    return None


class Writers:
    """All issuers that the log has admitted: those that wrote since the start are in memory."""

    def __init__(self, logged: Callable[[bytes], Writer | None] = nobody) -> None:
        """`logged` gives an issuer as the log shows it."""
        self._logged = logged
        self._writers: dict[bytes, Writer] = {}

    def of(self, issuer: bytes) -> Writer | None:
        writer = self._writers.get(issuer)
        if writer is None and (writer := self._logged(issuer)) is not None:
            self._writers[issuer] = writer
        return writer

    def admit(self, keyset: Keyset, writer: Writer) -> None:
        """Let an issuer write from now on, and close the sequence before its restart where that is its own."""
        self._writers[keyset.issuer] = writer
        previous = keyset.previous
        if previous is not None and (closed := self.of(previous.issuer)) is not None:
            self._writers[previous.issuer] = closed_by(closed, writer, previous)


def closed_by(writer: Writer, successor: Writer, previous: PreviousIssuer | None) -> Writer:
    """Return a writer as the keyset of a later start leaves it, which only the same service's can end."""
    if previous is None or successor.spiffe_id != writer.spiffe_id:
        return writer
    return replace(writer, closed_after=previous.last_seq)


def read_keyset(body: Mapping[str, Any], issuer: bytes) -> tuple[Keyset, Ed25519PublicKey]:
    """Return a keyset and its key if it is the one that the issuer's name stands for. Raises `KeysetMalformed`."""
    keyset = parse_keyset(body)
    try:
        key = load_der_public_key(keyset.spki)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeysetMalformed("the log key cannot be read") from error
    if not isinstance(key, Ed25519PublicKey) or keyset.issuer != issuer:
        raise KeysetMalformed("an issuer is named by its Ed25519 key and boot number")
    return keyset, key


def verify_keyset(
    keyset: Keyset, key: Ed25519PublicKey, policy: Policy, ca_certificate: bytes, received: float
) -> Writer:
    """Return the writer that a keyset proves: certificate, evidence, and the log key in the evidence's claims.

    `received` is the stream's time of the message, Unix seconds. Raises `CertificateNotAccepted`, `KeysetTooLate`,
    `KeysetNotAttested` and every refusal of the appraisal.
    """
    # What waited in an outbox for longer than its certificate lives is judged as of that certificate's last second.
    moment = min(received, parse(keyset.certificate).not_after - 1)
    if received - moment > MAX_DELAY_SECONDS:
        raise KeysetTooLate("the certificate had ended long before the keyset came")
    certificate = verify_issued(keyset.certificate, ca_certificate, moment)
    ca_spki = spki_of(x509.load_der_x509_certificate(ca_certificate).public_key())
    lease = appraise_peer(certificate, keyset.evidence, policy, ca_spki, moment)
    claimed = lease.appraisal.workload_claims.get("log_key")
    if certificate.role not in KINDS_OF_ROLE or claimed != key.public_bytes_raw().hex():
        raise KeysetNotAttested("the evidence does not name this log key, or its role writes to no log")
    if certificate.trust_domain != policy.trust_domain:
        raise KeysetNotAttested("the certificate is of another mesh")
    return Writer(key, certificate.role, certificate.spiffe_id)


def verify_renewal(
    keyset: Keyset, key: Ed25519PublicKey, writer: Writer, policy: Policy, ca_certificate: bytes, received: float
) -> None:
    """Accept a later keyset of an issuer that may write: other evidence of the same service about the same log key.

    Raises what `verify_keyset` raises.
    """
    if keyset.previous is not None:
        raise KeysetNotAttested("a keyset that is renewed closes no sequence")
    renewed = verify_keyset(keyset, key, policy, ca_certificate, received)
    if renewed.spiffe_id != writer.spiffe_id:
        raise KeysetNotAttested("the keyset is another service's")


def logged_writer(keyset: Keyset, key: Ed25519PublicKey) -> Writer:
    """Return the writer of a keyset that this log has admitted before: it was verified then."""
    certificate = parse(keyset.certificate)
    return Writer(key, certificate.role, certificate.spiffe_id)
