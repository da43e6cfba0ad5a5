"""Responsible for collateral: the vendor-signed statements that a TDX quote is verified with.

It is stapled to evidence. Its signatures are checked where the quote is, so its transport needs no trust.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from cryptography import x509

from libs import jcs
from libs.errors import Code, MeshError
from libs.tee import shape


class CollateralMalformed(MeshError):
    code = Code.INVALID_ARGUMENT
    reason = "COLLATERAL_MALFORMED"


@dataclass(frozen=True, slots=True)
class Collateral:
    """The nine members that `dcap_qvl` reads: PEM chains, hex CRLs and signatures, and two signed JSON texts.

    There is no tenth: an optional `pck_certificate_chain` would replace the chain inside the quote.
    """

    pck_crl_issuer_chain: str
    root_ca_crl: str
    pck_crl: str
    tcb_info_issuer_chain: str
    tcb_info: str
    tcb_info_signature: str
    qe_identity_issuer_chain: str
    qe_identity: str
    qe_identity_signature: str

    @classmethod
    def parse(cls, value: Any) -> Collateral:
        """Read an object with exactly the nine string members. Raises `CollateralMalformed`; verifies nothing."""
        names = [field.name for field in fields(cls)]
        try:
            members = shape.members(value, frozenset(names), "collateral")
            return cls(*(shape.text(members[name], name) for name in names))
        except ValueError as error:
            raise CollateralMalformed(str(error)) from error

    @classmethod
    def decode(cls, data: bytes) -> Collateral:
        """Read the JSON text in which collateral travels by itself."""
        return cls.parse(jcs.loads_object(data))

    def to_json(self) -> dict[str, str]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def encode(self) -> bytes:
        return jcs.dumps(self.to_json())

    def root_crl(self) -> x509.CertificateRevocationList:
        return _crl(self.root_ca_crl)

    def is_current(self, now: int) -> bool:
        """Say whether the statements' own dates, verified or not, enclose `now`."""
        crls = (_crl(self.root_ca_crl), _crl(self.pck_crl))
        documents = [jcs.loads_object(document.encode()) for document in (self.tcb_info, self.qe_identity)]
        return all(crl.next_update_utc is not None and now < crl.next_update_utc.timestamp() for crl in crls) and all(
            rfc3339_seconds(document.get("issueDate")) <= now <= rfc3339_seconds(document.get("nextUpdate"))
            for document in documents
        )

    def expires_at(self) -> int:
        """When the first of the four documents ends by its own date, unix seconds; a CRL without one has ended."""
        crls = (_crl(self.root_ca_crl), _crl(self.pck_crl))
        documents = [jcs.loads_object(document.encode()) for document in (self.tcb_info, self.qe_identity)]
        ends = [0 if crl.next_update_utc is None else int(crl.next_update_utc.timestamp()) for crl in crls]
        return min(*ends, *(rfc3339_seconds(document.get("nextUpdate")) for document in documents))

    def newest_crl_time(self) -> int:
        """When the newer of the two CRLs was issued, unix seconds."""
        return max(int(_crl(crl).last_update_utc.timestamp()) for crl in (self.root_ca_crl, self.pck_crl))

    def oldest_issue_time(self) -> int:
        """When the oldest of TCB info, QE identity and PCK CRL was issued, unix seconds. They MUST be verified.

        The root CRL is left out: vendors renew it about once a year.
        """
        return min(
            _issue_time(self.tcb_info),
            _issue_time(self.qe_identity),
            int(_crl(self.pck_crl).last_update_utc.timestamp()),
        )


def rfc3339_seconds(value: Any) -> int:
    """Return unix seconds of a vendor's timestamp. Raises `CollateralMalformed`."""
    try:
        moment = datetime.fromisoformat(shape.text(value, "time"))
    except ValueError as error:
        raise CollateralMalformed("the collateral holds a time that is not RFC 3339") from error
    if moment.tzinfo is None:
        raise CollateralMalformed("the collateral holds a time without a zone")
    return int(moment.timestamp())


def _issue_time(document: str) -> int:
    # Read only once the vendor's signature over it holds, so plainly.
    return rfc3339_seconds(json.loads(document)["issueDate"])


def _crl(text: str) -> x509.CertificateRevocationList:
    try:
        return x509.load_der_x509_crl(bytes.fromhex(text))
    except (ValueError, x509.InvalidVersion) as error:
        raise CollateralMalformed("the collateral holds a CRL that cannot be read") from error
