"""It is responsible for asking a PCCS for the four statements about a platform, within bounds of time and size.

Nothing that comes back is trusted: it is signed by the vendor, and whoever appraises evidence with it checks that. What
is checked here only keeps garbage from being held and served for hours: that it is about the platform, valid now, and
signed throughout under one root, whichever that is.
"""

from __future__ import annotations

import asyncio
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import aiohttp
import dcap_qvl
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from libs import jcs
from libs.errors import Code, MeshError
from libs.tee import tdx
from libs.tee.collateral import Collateral, rfc3339_seconds

_MAX_BODY_BYTES = 256 * 1024
"""Evidence with larger collateral could not be read by anyone."""

_MAX_HEADER_BYTES = 32 * 1024
_MAX_CHAIN = 4
_SIGNATURE = re.compile(r"[0-9a-fA-F]{128}")
_HEX = re.compile(rb"\s*(?:[0-9a-fA-F]{2})+\s*")
_SGX = "sgx/certification/v4"
_TDX = "tdx/certification/v4"


class CollateralUnavailable(MeshError):
    """The PCCS cannot be reached, does not know the platform, or gives what nobody could use."""

    code = Code.UNAVAILABLE
    reason = "COLLATERAL_UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class Platform:
    """What collateral is issued for."""

    # Lower-case hex.
    fmspc: str
    # Which of the vendor's CAs certified it: "platform" or "processor".
    ca: str

    @classmethod
    def of(cls, quote: bytes) -> Platform:
        """Read it from a cut quote, unverified. Raises `QuoteMalformed`."""
        try:
            parsed = dcap_qvl.parse_quote(quote)
            return cls(str(parsed.fmspc()).lower(), str(parsed.ca()))
        except ValueError as error:
            raise tdx.QuoteMalformed(f"not a quote with a certificate chain: {error}") from error


@dataclass(frozen=True, slots=True)
class _Reply:
    body: bytes
    headers: Mapping[str, str]

    def chain(self, *names: str) -> str:
        """Return the PEM chain in the first of these headers that is there."""
        for name in names:
            if name in self.headers:
                return unquote(self.headers[name], errors="strict")
        raise ValueError(f"no {names[0]} header")


class Pccs:
    """A Provisioning Certificate Caching Service, or the vendor's own service behind it."""

    def __init__(self, url: str, timeout_seconds: float, root_crl_url: str = "") -> None:
        """`root_crl_url`: where the root's CRL is, for a service that does not hand it out; empty for one that does."""
        self.url = url.rstrip("/")
        self._timeout_seconds = timeout_seconds
        self._root_crl_url = root_crl_url or f"{self.url}/{_SGX}/rootcacrl"

    async def collateral(self, platform: Platform, now: float) -> Collateral:
        """Fetch the collateral of a platform. Raises `CollateralUnavailable`."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                collateral = await self._fetch(platform)
            verify_consistent(collateral, platform, int(now))
        except (aiohttp.ClientError, OSError, ValueError, TimeoutError, MeshError) as error:
            words = str(error) or error.__class__.__name__
            raise CollateralUnavailable(f"the PCCS at {self.url} gave no usable collateral: {words[:500]}") from error
        return collateral

    async def _fetch(self, platform: Platform) -> Collateral:
        async with aiohttp.ClientSession(
            # Compressed, a small body could become a large one.
            auto_decompress=False,
            headers={"Accept-Encoding": "identity"},
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
            cookie_jar=aiohttp.DummyCookieJar(),
        ) as session:
            pck_crl = await _get(session, f"{self.url}/{_SGX}/pckcrl?ca={platform.ca}&encoding=der")
            tcb = await _get(session, f"{self.url}/{_TDX}/tcb?fmspc={platform.fmspc.upper()}&update=standard")
            identity = await _get(session, f"{self.url}/{_TDX}/qe/identity?update=standard")
            root_crl = await _get(session, self._root_crl_url)
        tcb_info, tcb_signature = _signed(tcb.body, "tcbInfo")
        qe_identity, qe_signature = _signed(identity.body, "enclaveIdentity")
        return Collateral.parse(
            {
                "pck_crl_issuer_chain": pck_crl.chain("SGX-PCK-CRL-Issuer-Chain"),
                "root_ca_crl": _der(root_crl.body).hex(),
                "pck_crl": _der(pck_crl.body).hex(),
                "tcb_info_issuer_chain": tcb.chain("TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain"),
                "tcb_info": tcb_info,
                "tcb_info_signature": tcb_signature,
                "qe_identity_issuer_chain": identity.chain("SGX-Enclave-Identity-Issuer-Chain"),
                "qe_identity": qe_identity,
                "qe_identity_signature": qe_signature,
            }
        )


def verify_consistent(collateral: Collateral, platform: Platform, now: int) -> None:
    """Raise `ValueError` or a `MeshError` unless one root signed all of it, for this platform and for now.

    This is no proof: the root is the collateral's own.
    """
    tcb_info = jcs.loads_object(collateral.tcb_info.encode())
    identity = jcs.loads_object(collateral.qe_identity.encode())
    if (tcb_info.get("id"), identity.get("id")) != ("TDX", "TD_QE"):
        raise ValueError("the statements are not about TDX")
    if str(tcb_info.get("fmspc")).lower() != platform.fmspc:
        raise ValueError("the statements are about another platform")
    if not collateral.is_current(now):
        raise ValueError("the statements are not valid now")
    signer, root = _ends(collateral.tcb_info_issuer_chain)
    _verify_text(collateral.tcb_info, collateral.tcb_info_signature, signer)
    identity_signer, identity_root = _ends(collateral.qe_identity_issuer_chain)
    _verify_text(collateral.qe_identity, collateral.qe_identity_signature, identity_signer)
    crl_issuer, crl_root = _ends(collateral.pck_crl_issuer_chain)
    if not root == identity_root == crl_root:
        raise ValueError("the statements are signed under different roots")
    try:
        pck_crl = x509.load_der_x509_crl(bytes.fromhex(collateral.pck_crl))
        signed = collateral.root_crl().is_signature_valid(_key(root)) and pck_crl.is_signature_valid(_key(crl_issuer))
    except (TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise ValueError("a CRL is of an unknown form, or signed in an unknown way") from error
    if not signed:
        raise ValueError("a CRL's signature does not verify")


@dataclass(frozen=True, slots=True)
class Ages:
    """How new the four statements of one collateral are, and under which root."""

    root_sha256: bytes
    # By the statement's name: its evaluation data number, 0 where it has none, and when it was issued, Unix seconds.
    by_name: Mapping[str, tuple[int, float]]

    @classmethod
    def of(cls, collateral: Collateral) -> Ages:
        """Read them. The collateral MUST be consistent."""
        _, root = _ends(collateral.tcb_info_issuer_chain)
        return cls(
            root.fingerprint(hashes.SHA256()),
            {
                "TCB info": _age(collateral.tcb_info),
                "QE identity": _age(collateral.qe_identity),
                "root CRL": _crl_age(collateral.root_ca_crl),
                "PCK CRL": _crl_age(collateral.pck_crl),
            },
        )


def goes_back(offered: Ages, held: Ages) -> str | None:
    """Say which statement of `offered` is older than that of `held`; None where none is.

    Older statements may hide what newer ones revoked. Those under another root are not comparable: one of the two roots
    is not the vendor's, and which one is policy's word.
    """
    if offered.root_sha256 != held.root_sha256:
        return None
    for name, (new_number, new_time) in offered.by_name.items():
        old_number, old_time = held.by_name[name]
        if new_number < old_number or new_time < old_time:
            return name
    return None


def _age(text: str) -> tuple[int, float]:
    document = jcs.loads_object(text.encode())
    number = document.get("tcbEvaluationDataNumber")
    return number if type(number) is int else 0, rfc3339_seconds(document.get("issueDate"))


def _crl_age(text: str) -> tuple[int, float]:
    return 0, x509.load_der_x509_crl(bytes.fromhex(text)).last_update_utc.timestamp()


async def _get(session: aiohttp.ClientSession, url: str) -> _Reply:
    # A redirect would lead to hosts that nobody configured.
    async with session.get(url, allow_redirects=False) as response:
        if response.status != 200:
            raise ValueError(f"HTTP status {response.status}")
        body = bytearray()
        async for chunk in response.content.iter_chunked(16 * 1024):
            body += chunk
            if len(body) > _MAX_BODY_BYTES:
                raise ValueError(f"more than {_MAX_BODY_BYTES} bytes")
        return _Reply(bytes(body), response.headers)


def _signed(body: bytes, member: str) -> tuple[str, str]:
    """Return a signed object as the text that was signed, which is compact and in its own order, and the signature."""
    value = jcs.loads_object(body)
    inner, signature = value.get(member), value.get("signature")
    if not isinstance(inner, dict) or not isinstance(signature, str) or _SIGNATURE.fullmatch(signature) is None:
        raise ValueError(f"no signed {member}")
    return json.dumps(inner, separators=(",", ":"), ensure_ascii=False), signature


def _der(body: bytes) -> bytes:
    """A CRL comes as DER or as its hex text."""
    return binascii.unhexlify(body.strip()) if _HEX.fullmatch(body) else body


def _ends(chain: str) -> tuple[x509.Certificate, x509.Certificate]:
    """Return signer and root of a chain whose every link verifies."""
    try:
        certificates = x509.load_pem_x509_certificates(chain.encode())
    except x509.InvalidVersion as error:
        raise ValueError("a certificate is of an unknown version") from error
    if len(certificates) > _MAX_CHAIN:
        raise ValueError("a chain is too long")
    for certificate, issuer in zip(certificates, [*certificates[1:], certificates[-1]], strict=True):
        try:
            certificate.verify_directly_issued_by(issuer)
        except (InvalidSignature, TypeError, UnsupportedAlgorithm) as error:
            raise ValueError("a chain does not verify") from error
    return certificates[0], certificates[-1]


def _verify_text(text: str, signature: str, signer: x509.Certificate) -> None:
    raw = bytes.fromhex(signature)
    der = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    try:
        _key(signer).verify(der, text.encode(), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise ValueError("a statement's signature does not verify") from error


def _key(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    key: Any = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("the vendor's keys are ECDSA keys")
    return key
