"""It is responsible for what a policy says about machines: vendor roots, patch levels, attributes, devices, GPUs.

Reading is as strict as the whole document's. What is read here is the same for every role; which measurements a role
may have, and whether it needs a GPU, stands with the role.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key

from libs.policy.members import Members
from libs.policy.snp import read_snp
from libs.tee.device import DeviceLists
from libs.tee.nvidia.evidence import GpuRule
from libs.tee.nvidia.keys import KEY_ID, Issuer
from libs.tee.snp.rules import SnpRule
from libs.tee.tcb import TcbRule

TDX = "tdx"
SNP = "sev-snp"
NVIDIA = "nvidia-gpu"

PUBLISHED_VENDOR_ROOTS: Mapping[str, frozenset[bytes]] = MappingProxyType(
    {
        TDX: frozenset({bytes.fromhex("44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3")}),
        SNP: frozenset(
            {
                bytes.fromhex("69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd"),
                bytes.fromhex("4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1"),
                bytes.fromhex("1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a"),
            }
        ),
        NVIDIA: frozenset({bytes.fromhex("102bf659d5419614c9d8e6aecebc80454eb26b1df6a769ac720b9a690b167b48")}),
    }
)
"""SHA-256 of the vendors' published root certificates: Intel SGX Root CA; ARK-Milan, ARK-Genoa, ARK-Turin of AMD;
NVIDIA Device Identity CA.

Any other root must be marked as a development root, so that nothing made under it can pass silently for hardware.
"""

PUBLISHED_TOKEN_ISSUERS = frozenset({"https://nras.attestation.nvidia.com"})
"""Who issues verdicts on GPUs: NVIDIA's Remote Attestation Service. Any other is for development."""

PUBLISHED_TOKEN_AUTHORITIES = frozenset(
    {bytes.fromhex("2df8907cf4d6c277b855d407ec178a649930a8e73f7294e8fce66e6ee27c5175")}
)
"""SHA-256 of the authorities that certify the vendor's token keys: NVIDIA Attestation Service GPU Intermediate 004.

The root above it is not published. A policy for hardware names these and no single key, so that nothing of a
development service can stand in.
"""

_MAX_CERTIFICATE_BYTES = 8192
_MAX_KEY_BYTES = 256
_MAX_AGE_SECONDS = 7 * 86400
_DEBUG_ATTRIBUTE = 0x01

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")
_TEE_TYPE = re.compile("tdx|sev-snp|nvidia-gpu")
_TCB_STATUS = re.compile(
    "UpToDate|SWHardeningNeeded|ConfigurationNeeded|ConfigurationAndSWHardeningNeeded|OutOfDate"
    "|OutOfDateConfigurationNeeded"
)
"""Every status that may be accepted. `Revoked` is not among them."""

_ADVISORY = re.compile(r"[A-Z0-9][A-Z0-9-]{0,63}")
CPU_FAMILY = re.compile(r"[0-9a-f]{12}|(?:milan|genoa|turin)(?:-[0-9a-f]{2}-[0-9a-f]{2})?")
"""An FMSPC; or a product of AMD, with CPU family and model behind it where one model is meant."""

_ISSUER = re.compile(r"https://[a-z0-9.:/-]{1,200}")
_AUTHORITY = re.compile(rf"(?:[0-9a-f]{{2}}){{1,{_MAX_CERTIFICATE_BYTES}}}")
UEID = re.compile(r"[0-9]{1,64}")
"""How tokens name a GPU or switch, decimal."""

_GPU_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")


@dataclass(frozen=True, slots=True)
class VendorRoot:
    """A hardware vendor's root certificate that evidence may chain to."""

    name: str
    tee_type: str
    certificate: bytes
    """DER."""
    development: bool
    """True when the root belongs to a software TEE: what it certifies is worthless as security."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """What every role's machine must be."""

    vendor_roots: tuple[VendorRoot, ...]
    tcb: TcbRule
    td_attributes: frozenset[str]
    devices: DeviceLists
    gpu: GpuRule | None
    """None: policy cannot judge GPU evidence."""
    snp: SnpRule | None
    """None: policy accepts no SEV-SNP evidence."""

    def roots(self, tee_type: str) -> tuple[bytes, ...]:
        """Return the roots of one technology, DER."""
        return tuple(root.certificate for root in self.vendor_roots if root.tee_type == tee_type)


def read_hardware(members: Members) -> Hardware:
    """Take the policy's members about machines."""
    roots = _read_vendor_roots(members)
    return Hardware(
        vendor_roots=roots,
        tcb=read_tcb(members.object("tcb")),
        td_attributes=_read_td_attributes(members),
        devices=_read_devices(members.object("devices")),
        gpu=_read_gpu(members.object("gpu"), roots) if members.has("gpu") else None,
        snp=read_snp(members.object("snp")) if members.has("snp") else None,
    )


def read_tcb(members: Members) -> TcbRule:
    """Read a rule about patch levels."""
    rule = TcbRule(
        statuses=frozenset(members.texts("statuses", _TCB_STATUS)),
        refused_advisories=frozenset(members.texts("refused_advisories", _ADVISORY, may_be_empty=True)),
        grace_seconds=members.integer("grace_seconds", 0),
        minimum_evaluation_number=members.integer("minimum_evaluation_number", 0),
        maximum_collateral_age_seconds=members.integer("maximum_collateral_age_seconds", 1),
    )
    members.end()
    return rule


def _read_vendor_roots(members: Members) -> tuple[VendorRoot, ...]:
    roots = []
    for entry in members.objects("vendor_roots"):
        name = entry.text("name", _NAME)
        tee_type = entry.text("tee_type", _TEE_TYPE)
        certificate = entry.blob("certificate", _MAX_CERTIFICATE_BYTES)
        development = entry.flag("development")
        entry.end()
        try:
            _require_readable(x509.load_der_x509_certificate(certificate))
        except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
            raise entry.refuse("certificate", "must be a DER certificate") from error
        published = PUBLISHED_VENDOR_ROOTS.get(tee_type, frozenset())
        if not development and hashlib.sha256(certificate).digest() not in published:
            raise entry.refuse("development", "must be true: the certificate is no vendor's published root")
        roots.append(VendorRoot(name, tee_type, certificate, development))
    if not roots:
        raise members.refuse("vendor_roots", "must not be empty")
    members.distinct([root.name for root in roots], "vendor_roots")
    members.distinct([root.certificate for root in roots], "vendor_roots")
    if len({root.development for root in roots}) > 1:
        raise members.refuse("vendor_roots", "must not mix development roots with real ones")
    return tuple(roots)


def _require_readable(root: x509.Certificate) -> None:
    """Read what the library reads only when it is asked, so that no appraisal is the first to ask."""
    root.subject.rfc4514_string()
    root.public_key()


def _read_td_attributes(members: Members) -> frozenset[str]:
    values = members.hexadecimals("td_attributes", 8)
    for index, value in enumerate(values):
        if bytes.fromhex(value)[0] & _DEBUG_ATTRIBUTE:
            raise members.refuse(f"td_attributes[{index}]", "must not allow a debug TD")
    return frozenset(values)


def _read_devices(members: Members) -> DeviceLists:
    allowed = frozenset(members.hexadecimals("allowed", 32, may_be_empty=True))
    revoked = frozenset(members.hexadecimals("revoked", 32, may_be_empty=True))
    if both := allowed & revoked:
        raise members.refuse("revoked", f"names {min(both)}, which is also allowed")
    allowed_families = _optional_texts(members, "allowed_families", CPU_FAMILY)
    revoked_families = _optional_texts(members, "revoked_families", CPU_FAMILY)
    if both := allowed_families & revoked_families:
        raise members.refuse("revoked_families", f"names {min(both)}, which is also allowed")
    members.end()
    return DeviceLists(allowed, revoked, allowed_families, revoked_families)


def _optional_texts(members: Members, name: str, pattern: re.Pattern[str]) -> frozenset[str]:
    return frozenset(_ordered_texts(members, name, pattern))


def _ordered_texts(members: Members, name: str, pattern: re.Pattern[str]) -> tuple[str, ...]:
    return members.texts(name, pattern, may_be_empty=True) if members.has(name) else ()


def _read_token_key(keys: Members, kid: str) -> bytes:
    spki = keys.blob(kid, _MAX_KEY_BYTES)
    try:
        key = load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise keys.refuse(kid, "must be a SubjectPublicKeyInfo, DER") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise keys.refuse(kid, "must be a P-384 key: tokens are signed with ES384")
    return spki


def _read_issuer(entry: Members) -> Issuer:
    pinned: dict[str, bytes] = {}
    if entry.has("keys"):
        keys = entry.object("keys")
        pinned = {kid: _read_token_key(keys, kid) for kid in keys.names(KEY_ID)}
    roots = tuple(bytes.fromhex(text) for text in _ordered_texts(entry, "roots", _AUTHORITY))
    for index, root in enumerate(roots):
        try:
            authority = x509.load_der_x509_certificate(root)
            is_authority = authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        except (ValueError, x509.InvalidVersion, x509.ExtensionNotFound, x509.DuplicateExtension) as error:
            raise entry.refuse(f"roots[{index}]", "must be the DER certificate of an authority") from error
        if not is_authority:
            raise entry.refuse(f"roots[{index}]", "must be the DER certificate of an authority")
    if not pinned and not roots:
        raise entry.refuse("roots", "must name an authority where keys names no key")
    return Issuer(MappingProxyType(pinned), roots)


def _require_published(issuer: Issuer, entry: Members) -> None:
    if issuer.keys:
        raise entry.refuse("keys", "must be empty for the vendor's own service, whose keys change every day")
    for index, root in enumerate(issuer.roots):
        if hashlib.sha256(root).digest() not in PUBLISHED_TOKEN_AUTHORITIES:
            raise entry.refuse(f"roots[{index}]", "is no authority that the vendor published")


def _read_gpu(members: Members, roots: tuple[VendorRoot, ...]) -> GpuRule:
    issuers: dict[str, Issuer] = {}
    for entry in members.objects("issuers"):
        issuer = entry.text("issuer", _ISSUER)
        if entry.flag("development") != (issuer not in PUBLISHED_TOKEN_ISSUERS):
            raise entry.refuse("development", "must be true for every issuer but the vendor's own, and false for that")
        if (issuer not in PUBLISHED_TOKEN_ISSUERS) != roots[0].development:
            raise entry.refuse("issuer", "must not mix development with real vendors")
        if issuer in issuers:
            raise entry.refuse("issuer", "is named twice")
        issuers[issuer] = _read_issuer(entry)
        if issuer in PUBLISHED_TOKEN_ISSUERS:
            _require_published(issuers[issuer], entry)
        entry.end()
    rule = GpuRule(
        issuers=MappingProxyType(issuers),
        device_roots=tuple(root.certificate for root in roots if root.tee_type == NVIDIA),
        allowed_ueids=frozenset(members.texts("allowed_ueids", UEID, may_be_empty=True)),
        revoked_ueids=frozenset(members.texts("revoked_ueids", UEID, may_be_empty=True)),
        allowed_models=frozenset(members.texts("allowed_models", _GPU_MODEL, may_be_empty=True)),
        maximum_token_age_seconds=members.integer("maximum_token_age_seconds", 1, _MAX_AGE_SECONDS),
        reports_required=members.flag("reports_required"),
    )
    if rule.reports_required and not rule.device_roots:
        raise members.refuse("reports_required", f"needs a vendor root of type {NVIDIA}")
    members.end()
    return rule
