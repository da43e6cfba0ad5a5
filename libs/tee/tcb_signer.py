"""Responsible for who may sign TCB info and QE identity: Intel's TCB signing key, and no other key under its root.

The quote verifier accepts any end entity there. Under the same root every machine has one, its PCK key; whoever has a
leaked one could declare every patch level up to date.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.x509.oid import NameOID

from libs.errors import Code, MeshError
from libs.tee.collateral import Collateral

_NAME = "SGX TCB Signing"
_SGX_EXTENSION = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
_MAX_CHAIN_CHARACTERS = 16 * 1024


class TcbSignerNotAllowed(MeshError):
    """The collateral's statements are signed by another key than the vendor's for such statements."""

    code = Code.PERMISSION_DENIED
    reason = "TCB_SIGNER_NOT_ALLOWED"


def verify_tcb_signer(collateral: Collateral, root: x509.Certificate) -> None:
    """Prove that both statements name the vendor's signing certificate, issued by the root itself.

    That the chains and signatures hold is the quote verifier's to prove, under the same root. Raises
    `TcbSignerNotAllowed`.
    """
    for chain in {collateral.tcb_info_issuer_chain, collateral.qe_identity_issuer_chain}:
        _verify_leaf(_leaf(chain), root)


def _leaf(chain: str) -> x509.Certificate:
    if len(chain) > _MAX_CHAIN_CHARACTERS:
        raise TcbSignerNotAllowed("the chain of the statements' signer is too long")
    try:
        return x509.load_pem_x509_certificates(chain.encode())[0]
    except (ValueError, TypeError, x509.InvalidVersion) as error:
        raise TcbSignerNotAllowed("the certificate of the statements' signer cannot be read") from error


def _verify_leaf(leaf: x509.Certificate, root: x509.Certificate) -> None:
    try:
        names = [str(name.value) for name in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        is_from_root = leaf.issuer == root.subject
        is_platform = any(extension.oid == _SGX_EXTENSION for extension in leaf.extensions)
    except (ValueError, TypeError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise TcbSignerNotAllowed("the certificate of the statements' signer cannot be read") from error
    if not is_from_root or is_platform or len(names) != 1 or not names[0].endswith(_NAME):
        raise TcbSignerNotAllowed("the collateral is signed by a key that is not the vendor's for TCB statements")
