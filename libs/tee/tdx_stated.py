"""Responsible for what a TDX quote and its collateral state, **unverified**, beside what is required of it.

The quote verifier refuses without values, so whoever asks why is shown them from here. Nothing is judged by them.
"""

from __future__ import annotations

import hashlib

import dcap_qvl
from cryptography import x509

from libs import jcs
from libs.tee import tdx
from libs.tee.collateral import Collateral, rfc3339_seconds
from libs.tee.steps import Note

# What the quote verifier asks for itself; which attributes policy lists is judged in step 4.
_ATTRIBUTES = "SEPT_VE_DISABLE; no debugging, profiling or migration, no service TD, no reserved bit"


def note_stated(quote: bytes, collateral: Collateral, roots: tuple[bytes, ...], now: int, note: Note) -> None:
    """Note what quote and collateral state, **unverified**: the quote verifier's refusals come without values."""
    note("issuer of the root CRL", lambda: _issuer(collateral), lambda: tuple(map(_name, roots)))
    note("vendor root, SHA-256", lambda: _signing_root(collateral, roots), lambda: tuple(map(_sha256, roots)))
    note("signers of the statements", lambda: _signers(collateral), "the vendor's TCB signing key, by the root")
    note(
        "FMSPC of the TCB info, and of the quote",
        lambda: str(jcs.loads_object(collateral.tcb_info.encode()).get("fmspc")).lower(),
        lambda: dcap_qvl.parse_quote(quote).fmspc().lower(),
    )
    note("newest issue of the collateral, unix s", lambda: _newest(collateral), lambda: f"{now} or earlier")
    note("first end of the collateral, unix s", collateral.expires_at, lambda: f"later than {now}")
    note("TD attributes", lambda: tdx.read_report(quote).td_attributes, _ATTRIBUTES)
    note("service TD", lambda: tdx.read_report(quote).mr_service_td, "zero, none")


def _sha256(der: bytes) -> bytes:
    return hashlib.sha256(der).digest()


def _name(root: bytes) -> str:
    return x509.load_der_x509_certificate(root).subject.rfc4514_string()


def _issuer(collateral: Collateral) -> str:
    return collateral.root_crl().issuer.rfc4514_string()


def _signing_root(collateral: Collateral, roots: tuple[bytes, ...]) -> object:
    """Return the digest of the root whose key signed the root CRL, which is the one that counts."""
    crl = collateral.root_crl()
    for root in roots:
        # The type checker would have this say which keys can sign; those that cannot have signed nothing.
        if crl.is_signature_valid(x509.load_der_x509_certificate(root).public_key()):  # type: ignore[arg-type]
            return _sha256(root)
    return "another: none of these signed the root CRL"


def _signers(collateral: Collateral) -> set[str]:
    chains = {collateral.tcb_info_issuer_chain, collateral.qe_identity_issuer_chain}
    leaves = [x509.load_pem_x509_certificates(chain.encode())[0] for chain in chains]
    return {f"{leaf.subject.rfc4514_string()} by {leaf.issuer.rfc4514_string()}" for leaf in leaves}


def _newest(collateral: Collateral) -> int:
    documents = [jcs.loads_object(document.encode()) for document in (collateral.tcb_info, collateral.qe_identity)]
    return max(collateral.newest_crl_time(), *(rfc3339_seconds(each.get("issueDate")) for each in documents))
