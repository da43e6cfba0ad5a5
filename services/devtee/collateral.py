"""Responsible for the vendor's signed statements about a machine: CRLs, TCB info and QE identity.

`make_collateral` is a pure function of the PKI and a `CollateralShape`. The running service only ever uses the default
shape; the other shapes are bad news as data, for tests of those who judge.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from services.devtee.pki import Signer, VendorPki

VALIDITY_SECONDS = 30 * 24 * 3600
# Reissued after a day, far below half the validity, so that a policy may also bound collateral's age tightly.
RENEW_AFTER_SECONDS = 24 * 3600
# Issue dates lie a little in the past: relying services' clocks may be behind.
_BACKDATE_SECONDS = 300

QE_SIGNER = bytes.fromhex("dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5")
QE_PRODUCT_ID = 2
QE_SVN = 6
MODULE_SVN = 5
TEE_TCB_SVN = bytes([MODULE_SVN, 1, 2]) + bytes(13)

TcbStatus = Literal[
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "Revoked",
]


@dataclass(frozen=True, slots=True)
class CollateralShape:
    """What the statements say. Times in Unix seconds."""

    issued_at: int
    validity_seconds: int = VALIDITY_SECONDS
    tcb_status: TcbStatus = "UpToDate"
    module_status: TcbStatus = "UpToDate"
    qe_status: TcbStatus = "UpToDate"
    advisories: tuple[str, ...] = ()
    tcb_date: int | None = None
    """When the machine's TCB level was defined; the issue date where None."""
    evaluation_number: int = 17
    fmspc: bytes | None = None
    """Another machine family than the PKI's own, for statements about the wrong machine."""
    minimum_module_svn: int = MODULE_SVN
    revoked: frozenset[Literal["pck", "platform_ca", "tcb_signing"]] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True)
class Collateral:
    """The statements as the wire carries them."""

    issued_at: int
    root_ca_crl: bytes
    pck_crl: bytes
    pck_crl_chain: str
    tcb_info: str
    tcb_info_signature: bytes
    qe_identity: str
    qe_identity_signature: bytes
    tcb_chain: str

    def members(self) -> dict[str, str]:
        """The nine members of the verifier's collateral object."""
        return {
            "pck_crl_issuer_chain": self.pck_crl_chain,
            "root_ca_crl": self.root_ca_crl.hex(),
            "pck_crl": self.pck_crl.hex(),
            "tcb_info_issuer_chain": self.tcb_chain,
            "tcb_info": self.tcb_info,
            "tcb_info_signature": self.tcb_info_signature.hex(),
            "qe_identity_issuer_chain": self.tcb_chain,
            "qe_identity": self.qe_identity,
            "qe_identity_signature": self.qe_identity_signature.hex(),
        }

    def to_json(self) -> str:
        return json.dumps(self.members())


def make_collateral(pki: VendorPki, shape: CollateralShape) -> Collateral:
    """Sign statements of this shape."""
    tcb_info = _compact(_tcb_info(pki, shape))
    qe_identity = _compact(_qe_identity(shape))
    revoked_by_root = [
        signer
        for name, signer in (("platform_ca", pki.platform_ca), ("tcb_signing", pki.tcb_signing))
        if name in shape.revoked
    ]
    return Collateral(
        issued_at=shape.issued_at,
        root_ca_crl=_crl(pki.root, revoked_by_root, shape),
        pck_crl=_crl(pki.platform_ca, [pki.pck] if "pck" in shape.revoked else [], shape),
        pck_crl_chain=pki.pck_crl_chain,
        tcb_info=tcb_info,
        tcb_info_signature=pki.tcb_signing.sign_raw(tcb_info.encode()),
        qe_identity=qe_identity,
        qe_identity_signature=pki.tcb_signing.sign_raw(qe_identity.encode()),
        tcb_chain=pki.tcb_chain,
    )


class Renewed:
    """Collateral that is reissued on demand long before it expires."""

    def __init__(self, pki: VendorPki) -> None:
        self._pki = pki
        self._current: Collateral | None = None

    def at(self, now: int) -> Collateral:
        """Collateral good at `now`, in Unix seconds. A clock that went back also gets new statements."""
        current = self._current
        if current is None or not 0 <= now - current.issued_at < RENEW_AFTER_SECONDS:
            current = self._current = make_collateral(self._pki, CollateralShape(now))
        return current


def _tcb_info(pki: VendorPki, shape: CollateralShape) -> dict[str, Any]:
    module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
    tcb_date = _rfc3339(shape.issued_at if shape.tcb_date is None else shape.tcb_date)
    return {
        "id": "TDX",
        "version": 3,
        **_dates(shape),
        "fmspc": (shape.fmspc or pki.platform.fmspc).hex().upper(),
        "pceId": pki.platform.pce_id.hex().upper(),
        "tcbType": 0,
        "tcbEvaluationDataNumber": shape.evaluation_number,
        "tdxModule": module,
        "tdxModuleIdentities": [
            {
                "id": "TDX_01",
                **module,
                "tcbLevels": [
                    {
                        "tcb": {"isvsvn": shape.minimum_module_svn},
                        "tcbDate": tcb_date,
                        "tcbStatus": shape.module_status,
                    }
                ],
            }
        ],
        "tcbLevels": [
            {
                "tcb": {
                    "sgxtcbcomponents": [{"svn": svn} for svn in pki.platform.cpu_svn],
                    "pcesvn": pki.platform.pce_svn,
                    "tdxtcbcomponents": [{"svn": svn} for svn in TEE_TCB_SVN],
                },
                "tcbDate": tcb_date,
                "tcbStatus": shape.tcb_status,
                "advisoryIDs": list(shape.advisories),
            }
        ],
    }


def _qe_identity(shape: CollateralShape) -> dict[str, Any]:
    return {
        "id": "TD_QE",
        "version": 2,
        **_dates(shape),
        "tcbEvaluationDataNumber": shape.evaluation_number,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "11" + "00" * 15,
        "attributesMask": "FB" + "FF" * 7 + "00" * 8,
        "mrsigner": QE_SIGNER.hex().upper(),
        "isvprodid": QE_PRODUCT_ID,
        "tcbLevels": [
            {"tcb": {"isvsvn": QE_SVN}, "tcbDate": _rfc3339(shape.issued_at), "tcbStatus": shape.qe_status},
        ],
    }


def _crl(issuer: Signer, revoked: list[Signer], shape: CollateralShape) -> bytes:
    this_update = _moment(shape.issued_at - _BACKDATE_SECONDS)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(this_update)
        .next_update(_moment(shape.issued_at) + timedelta(seconds=shape.validity_seconds))
        .add_extension(x509.CRLNumber(shape.issued_at), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
    )
    for signer in revoked:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder()
            .serial_number(signer.certificate.serial_number)
            .revocation_date(this_update)
            .build()
        )
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def _dates(shape: CollateralShape) -> dict[str, str]:
    return {
        "issueDate": _rfc3339(shape.issued_at - _BACKDATE_SECONDS),
        "nextUpdate": _rfc3339(shape.issued_at + shape.validity_seconds),
    }


def _compact(value: dict[str, Any]) -> str:
    # A client that fetches through a PCCS re-serialises the object compactly before it checks the signature.
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True)


def _rfc3339(unix_seconds: int) -> str:
    return _moment(unix_seconds).strftime("%Y-%m-%dT%H:%M:%SZ")


def _moment(unix_seconds: int) -> datetime:
    return datetime.fromtimestamp(unix_seconds, UTC)
