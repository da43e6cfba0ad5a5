"""Responsible for the SEV-SNP attestation report: its one accepted form, and what it says (AMD 56860).

Version 2 is the first one. Version 3 adds family, model and stepping of the CPU, version 5 two mitigation vectors;
everything else is at the same place in all three. Any other version is refused until somebody has read its definition.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag, StrEnum

from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from libs.errors import Code, MeshError

REPORT_BYTES = 0x4A0
_SIGNED_BYTES = 0x2A0
_VERSIONS = (2, 3, 5)
_ECDSA_P384_SHA384 = 1
# Both halves of the signature are little-endian in 72 bytes; a number of P-384 fills 48 of them.
_HALF_BYTES, _NUMBER_BYTES = 72, 48
_RESERVED_ONE = 1 << 17
_ABI_MASK = 0xFFFF
_AUTHOR_KEY_ENABLED, _CHIP_KEY_MASKED, _KEY_INFO_MASK = 1, 2, 0b11111

_LAYOUT = struct.Struct("<IIQ16s16sII8sQII64s48s32s48s48s32s32s8s24s64s8s4s4s8s168s")


class ReportMalformed(MeshError):
    code = Code.INVALID_ARGUMENT
    reason = "SNP_REPORT_MALFORMED"


class Product(StrEnum):
    """A product line, as AMD's certificates name it. Each has its own root."""

    MILAN = "Milan"
    GENOA = "Genoa"
    TURIN = "Turin"


class SigningKey(IntEnum):
    """Which key signed the report."""

    VCEK = 0
    VLEK = 1
    NONE = 7


class PolicyFlag(IntFlag):
    """What the guest's owner allows or requires of the host, fixed at launch."""

    SMT_ALLOWED = 1 << 16
    MIGRATION_AGENT_ALLOWED = 1 << 18
    DEBUG_ALLOWED = 1 << 19
    SINGLE_SOCKET_REQUIRED = 1 << 20
    CXL_ALLOWED = 1 << 21
    AES_256_XTS_REQUIRED = 1 << 22
    RAPL_DISABLED_REQUIRED = 1 << 23
    CIPHERTEXT_HIDING_REQUIRED = 1 << 24
    PAGE_SWAP_DISABLED_REQUIRED = 1 << 25


class PlatformFlag(IntFlag):
    """How the host runs."""

    SMT_ENABLED = 1 << 0
    TSME_ENABLED = 1 << 1
    ECC_ENABLED = 1 << 2
    RAPL_DISABLED = 1 << 3
    CIPHERTEXT_HIDING_ENABLED = 1 << 4
    # The firmware looked for memory that answers at two addresses when it started, and found none.
    ALIAS_CHECK_COMPLETE = 1 << 5
    TIO_ENABLED = 1 << 7


_POLICY_MASK = sum(PolicyFlag)
_PLATFORM_MASK = sum(PlatformFlag)


@dataclass(frozen=True, slots=True)
class Cpu:
    """The CPUID values of the machine, extended parts added."""

    family: int
    model: int
    stepping: int

    def product(self) -> Product | None:
        match self.family:
            case 0x19 if self.model <= 0x0F:
                return Product.MILAN
            case 0x19 if 0x10 <= self.model <= 0x1F or 0xA0 <= self.model <= 0xAF:
                return Product.GENOA
            case 0x1A if self.model <= 0x11:
                return Product.TURIN
        return None


@dataclass(frozen=True, slots=True)
class Tcb:
    """The security patch levels of one machine's firmware."""

    bootloader: int
    tee: int
    snp: int
    microcode: int
    # Turin alone has it.
    fmc: int | None = None

    @classmethod
    def decode(cls, raw: bytes, product: Product) -> Tcb:
        """Read the eight bytes of a TCB_VERSION, whose layout is another on Turin. Raises `ReportMalformed`."""
        if product is Product.TURIN:
            reserved, tcb = raw[4:7], cls(raw[1], raw[2], raw[3], raw[7], raw[0])
        else:
            reserved, tcb = raw[2:6], cls(raw[0], raw[1], raw[6], raw[7])
        _verify_zero(reserved, "a TCB version")
        return tcb

    def reaches(self, minimum: Tcb) -> bool:
        """Say whether every component is at least the minimum's; a component that a product lacks counts as 0."""
        return (
            self.bootloader >= minimum.bootloader
            and self.tee >= minimum.tee
            and self.snp >= minimum.snp
            and self.microcode >= minimum.microcode
            and (self.fmc or 0) >= (minimum.fmc or 0)
        )


@dataclass(frozen=True, slots=True)
class SnpReport:
    """What a report says, **unverified** as parsed.

    The signature is no part of the report's identity: whoever has one can compute its twin (r, n-s). Only `signed` is.
    """

    version: int
    guest_svn: int
    # Least firmware ABI (major, minor) on which the guest may run.
    minimum_abi: tuple[int, int]
    policy: PolicyFlag
    family_id: bytes
    image_id: bytes
    vmpl: int
    platform: PlatformFlag
    signing_key: SigningKey
    chip_key_masked: bool
    report_data: bytes
    # The launch digest: the guest's first memory.
    measurement: bytes
    # Chosen by the host at launch, and fixed from then on.
    host_data: bytes
    # Zero when the guest was launched without an ID block.
    id_key_digest: bytes
    # None when no author key certified the ID key.
    author_key_digest: bytes | None
    report_id: bytes
    # All ones, or all zeros, when no migration agent is bound.
    report_id_ma: bytes
    # Absent in version 2.
    cpu: Cpu | None
    # Zero when the host masks it.
    chip_id: bytes
    # TCB_VERSION, 8 bytes each: only the certificate tells the product, and with it the layout, in version 2.
    reported_tcb: bytes
    current_tcb: bytes
    committed_tcb: bytes
    launch_tcb: bytes
    # Firmware version: major, minor, build.
    current_firmware: tuple[int, int, int]
    committed_firmware: tuple[int, int, int]
    # Mitigation vectors at launch and now. Absent before version 5.
    mitigations: tuple[int, int] | None
    # The bytes that the signature covers.
    signed: bytes = field(repr=False)
    # ECDSA signature, DER.
    signature: bytes = field(compare=False, repr=False)


def parse(data: bytes) -> SnpReport:
    """Read exactly one report; padding is refused too. Raises `ReportMalformed`; verifies nothing."""
    if len(data) != REPORT_BYTES:
        raise ReportMalformed(f"the report has {len(data)} bytes instead of {REPORT_BYTES}")
    (
        version,
        guest_svn,
        policy,
        family_id,
        image_id,
        vmpl,
        algorithm,
        current_tcb,
        platform,
        key_info,
        reserved,
        report_data,
        measurement,
        host_data,
        id_key_digest,
        author_key_digest,
        report_id,
        report_id_ma,
        reported_tcb,
        cpu_block,
        chip_id,
        committed_tcb,
        current_firmware,
        committed_firmware,
        launch_tcb,
        tail,
    ) = _LAYOUT.unpack_from(data)
    if version not in _VERSIONS:
        raise ReportMalformed(f"reports of version {version} are not read")
    if algorithm != _ECDSA_P384_SHA384:
        raise ReportMalformed("the report is not signed with ECDSA P-384 and SHA-384")
    if not policy & _RESERVED_ONE or policy & ~(_POLICY_MASK | _RESERVED_ONE | _ABI_MASK):
        raise ReportMalformed("the guest policy has reserved bits set, or its constant bit clear")
    if platform & ~_PLATFORM_MASK:
        raise ReportMalformed("the platform info has reserved bits set")
    if reserved or key_info & ~_KEY_INFO_MASK:
        raise ReportMalformed("the key info has reserved bits set")
    author_key_enabled = bool(key_info & _AUTHOR_KEY_ENABLED)
    if not author_key_enabled:
        _verify_zero(author_key_digest, "the digest of an author key that is not enabled")
    return SnpReport(
        version=version,
        guest_svn=guest_svn,
        minimum_abi=(policy >> 8 & 0xFF, policy & 0xFF),
        policy=PolicyFlag(policy & _POLICY_MASK),
        family_id=family_id,
        image_id=image_id,
        vmpl=vmpl,
        platform=PlatformFlag(platform),
        signing_key=_signing_key(key_info >> 2),
        chip_key_masked=bool(key_info & _CHIP_KEY_MASKED),
        report_data=report_data,
        measurement=measurement,
        host_data=host_data,
        id_key_digest=id_key_digest,
        author_key_digest=author_key_digest if author_key_enabled else None,
        report_id=report_id,
        report_id_ma=report_id_ma,
        cpu=_cpu(version, cpu_block),
        chip_id=chip_id,
        reported_tcb=reported_tcb,
        current_tcb=current_tcb,
        committed_tcb=committed_tcb,
        launch_tcb=launch_tcb,
        current_firmware=_firmware(current_firmware),
        committed_firmware=_firmware(committed_firmware),
        mitigations=_mitigations(version, tail),
        signed=data[:_SIGNED_BYTES],
        signature=_signature(data[_SIGNED_BYTES:]),
    )


def _verify_zero(data: bytes, what: str) -> None:
    if any(data):
        raise ReportMalformed(f"{what} has reserved bytes that are not zero")


def _signing_key(value: int) -> SigningKey:
    try:
        return SigningKey(value)
    except ValueError as error:
        raise ReportMalformed("the report names a reserved signing key") from error


def _cpu(version: int, block: bytes) -> Cpu | None:
    stated = 0 if version == 2 else 3
    _verify_zero(block[stated:], "the CPU identification")
    return Cpu(*block[:stated]) if stated else None


def _firmware(block: bytes) -> tuple[int, int, int]:
    _verify_zero(block[3:], "a firmware version")
    return block[2], block[1], block[0]


def _mitigations(version: int, tail: bytes) -> tuple[int, int] | None:
    stated = 16 if version == 5 else 0
    _verify_zero(tail[stated:], "the end of the report")
    if not stated:
        return None
    launch, current = struct.unpack_from("<QQ", tail)
    return launch, current


def _signature(block: bytes) -> bytes:
    r, s, rest = block[:_HALF_BYTES], block[_HALF_BYTES : 2 * _HALF_BYTES], block[2 * _HALF_BYTES :]
    _verify_zero(r[_NUMBER_BYTES:] + s[_NUMBER_BYTES:] + rest, "the signature")
    return encode_dss_signature(int.from_bytes(r, "little"), int.from_bytes(s, "little"))
