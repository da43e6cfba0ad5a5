"""TDX quotes in software: responsible for the bytes of a quote and the TD report inside it.

Pure functions of values. Offsets are those of Intel's TDX DCAP quote format, version 4, which the guest agent serves:
clients that read RTMR3 at byte 520 rule out version 5. Version 5 is for those who judge both.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric import ec

from services.devtee.collateral import QE_PRODUCT_ID, QE_SIGNER, QE_SVN, TEE_TCB_SVN
from services.devtee.pki import VendorPki, raw_public_key, sign_raw

ZERO_REGISTER = bytes(48)
# SEPT_VE_DISABLE and nothing else: not a debug TD, not migratable, not profiled.
TD_ATTRIBUTES = bytes.fromhex("0000001000000000")
TD_ATTRIBUTES_DEBUG = bytes.fromhex("0100001000000000")

_QE_VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
_QE_AUTH_DATA = bytes(range(32))
_ATTESTATION_KEY_TYPE_P256 = 2
_TEE_TYPE_TDX = 0x81
_CERTIFICATION_PCK_CHAIN = 5
_TD_REPORT_1_0, _TD_REPORT_1_5 = 2, 3
_CERTIFICATION_QE_REPORT = 6


@dataclass(frozen=True, slots=True)
class TdReport:
    """The TD report 1.0 of 584 bytes, or 1.5 of 648."""

    report_data: bytes
    """64 bytes that the TD chose."""
    mrtd: bytes = ZERO_REGISTER
    rtmrs: tuple[bytes, bytes, bytes, bytes] = (ZERO_REGISTER,) * 4
    td_attributes: bytes = TD_ATTRIBUTES
    tee_tcb_svn: bytes = TEE_TCB_SVN
    mr_seam: bytes = ZERO_REGISTER
    mr_signer_seam: bytes = ZERO_REGISTER
    seam_attributes: bytes = bytes(8)
    xfam: bytes = bytes.fromhex("e702060000000000")
    mr_config_id: bytes = ZERO_REGISTER
    mr_owner: bytes = ZERO_REGISTER
    mr_owner_config: bytes = ZERO_REGISTER
    mr_service_td: bytes | None = None
    """48 bytes, in the TD report 1.5 that has them: it is 64 bytes longer. None: a TD report 1.0."""

    def encode(self) -> bytes:
        """Raises `ValueError` when a field has another size than the format gives it."""
        fields = (
            (self.tee_tcb_svn, 16),
            (self.mr_seam, 48),
            (self.mr_signer_seam, 48),
            (self.seam_attributes, 8),
            (self.td_attributes, 8),
            (self.xfam, 8),
            (self.mrtd, 48),
            (self.mr_config_id, 48),
            (self.mr_owner, 48),
            (self.mr_owner_config, 48),
            *((register, 48) for register in self.rtmrs),
            (self.report_data, 64),
            # The module's patch level now is that at the TD's launch: it was not updated since.
            *(() if self.mr_service_td is None else ((self.tee_tcb_svn, 16), (self.mr_service_td, 48))),
        )
        for content, size in fields:
            if len(content) != size:
                raise ValueError(f"a TD report field has {len(content)} bytes instead of {size}")
        return b"".join(content for content, _ in fields)


def make_quote(pki: VendorPki, report: TdReport, version: int = 4) -> bytes:
    """Sign `report` with a fresh attestation key that the machine's PCK leaf vouches for.

    `version` is 4 or 5; only 5 has room for a TD report 1.5.
    """
    header = struct.pack(
        "<HHIHH16s20s", version, _ATTESTATION_KEY_TYPE_P256, _TEE_TYPE_TDX, 0, 0, _QE_VENDOR, pki.platform.instance_id
    )
    body = report.encode()
    body_type = _TD_REPORT_1_0 if report.mr_service_td is None else _TD_REPORT_1_5
    signed = header + (struct.pack("<HI", body_type, len(body)) if version == 5 else b"") + body
    attestation_key = ec.generate_private_key(ec.SECP256R1())
    attestation_public = raw_public_key(attestation_key.public_key())
    qe_report = _qe_report(sha256(attestation_public + _QE_AUTH_DATA).digest())
    chain = pki.pck_chain.encode()
    certification = (
        qe_report
        + pki.pck.sign_raw(qe_report)
        + struct.pack("<H", len(_QE_AUTH_DATA))
        + _QE_AUTH_DATA
        + struct.pack("<HI", _CERTIFICATION_PCK_CHAIN, len(chain))
        + chain
    )
    authentication = (
        sign_raw(attestation_key, signed)
        + attestation_public
        + struct.pack("<HI", _CERTIFICATION_QE_REPORT, len(certification))
        + certification
    )
    return signed + struct.pack("<I", len(authentication)) + authentication


def _qe_report(report_data: bytes) -> bytes:
    """The 384-byte enclave report in which the quoting enclave vouches for the attestation key."""
    cpu_svn, attributes, mr_enclave = bytes(16), bytes([0x11]), sha256(b"teemesh development quoting enclave").digest()
    return struct.pack(
        "<16sI28x16s32s32x32s96xHH60x64s",
        cpu_svn,
        0,
        attributes,
        mr_enclave,
        QE_SIGNER,
        QE_PRODUCT_ID,
        QE_SVN,
        report_data,
    )
