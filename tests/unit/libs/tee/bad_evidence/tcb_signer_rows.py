"""Rows about who signed the statements on patch levels: keys under the vendor's root that are for something else."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from services.devtee.pki import Signer, VendorPki, sign_raw
from services.devtee.platform import SGX_EXTENSION
from tests.unit.libs.tee.bad_evidence.row import Benches, Present, Row, edited, presenting
from tests.unit.libs.tee.bench import DAY, NOW

Chain = Callable[[VendorPki], tuple[ec.EllipticCurvePrivateKey, str]]

_NAME = "Development SGX TCB Signing"


def _statement(value: dict[str, Any], name: str, key: ec.EllipticCurvePrivateKey, chain: str) -> None:
    """Declare every level up to date, under another signature."""
    said = json.loads(value["collateral"][name])
    for level in said["tcbLevels"]:
        level["tcbStatus"] = "UpToDate"
    text = json.dumps(said, separators=(",", ":"))
    value["collateral"][name] = text
    value["collateral"][f"{name}_signature"] = sign_raw(key, text.encode()).hex()
    value["collateral"][f"{name}_issuer_chain"] = chain


def _signed_by(chain: Chain, *statements: str) -> Callable[[Benches], Present]:
    def make(benches: Benches) -> Present:
        bench = benches.tdx
        key, pem = chain(bench.machine.pki)

        def edit(value: dict[str, Any]) -> None:
            for statement in statements:
                _statement(value, statement, key, pem)

        return presenting(edited(bench.evidence(), edit), bench.rules(), bench.context())

    return make


def _pck(pki: VendorPki) -> tuple[ec.EllipticCurvePrivateKey, str]:
    return pki.pck.key, pki.pck_chain


def _issued(*names: str, is_platform: bool = False) -> Chain:
    """A certificate of the root itself, for another use or pretending to another."""

    def chain(pki: VendorPki) -> tuple[ec.EllipticCurvePrivateKey, str]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name) for name in names])
        start, end = datetime.fromtimestamp(NOW - DAY, UTC), datetime.fromtimestamp(NOW + DAY, UTC)
        builder = x509.CertificateBuilder(pki.root.certificate.subject, subject, key.public_key(), 7, start, end)
        if is_platform:
            extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(SGX_EXTENSION), pki.platform.sgx_extension())
            builder = builder.add_extension(extension, critical=False)
        leaf = Signer(key, builder.sign(pki.root.key, hashes.SHA256()))
        return key, leaf.pem + pki.root.pem

    return chain


def _issued_beside_the_root(pki: VendorPki) -> tuple[ec.EllipticCurvePrivateKey, str]:
    """The signer's name, under the authority that certifies machines."""
    key, leaf = _issued(_NAME)(replace(pki, root=pki.platform_ca))
    return key, leaf + pki.root.pem


def _text(make: Callable[[VendorPki], str]) -> Chain:
    return lambda pki: (pki.tcb_signing.key, make(pki))


def _name_that_is_bits(pki: VendorPki) -> str:
    """The signer's certificate with a bit string for a name, which the X.509 library reads only when asked."""
    der = pki.tcb_signing.certificate.public_bytes(Encoding.DER)
    name = b"SGX TCB Signing"
    at = der.rindex(b"\x0c", 0, der.index(name))
    return ssl.DER_cert_to_PEM_cert(der[:at] + b"\x03" + der[at + 1 :]) + pki.root.pem


def _version_9(pki: VendorPki) -> str:
    der = pki.tcb_signing.certificate.public_bytes(Encoding.DER)
    body = base64.b64encode(der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x09", 1)).decode()
    return f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n"


_CHAINS: list[tuple[str, Callable[[Benches], Present]]] = [
    ("the machine's own key", _signed_by(_pck, "tcb_info", "qe_identity")),
    ("the machine's own key, for the platform alone", _signed_by(_pck, "tcb_info")),
    ("the machine's own key, for the enclave alone", _signed_by(_pck, "qe_identity")),
    ("a certificate of the root with another name", _signed_by(_issued("Development SGX Other"), "tcb_info")),
    ("a certificate of the root for a machine", _signed_by(_issued(_NAME, is_platform=True), "tcb_info")),
    ("a certificate of the root with two names", _signed_by(_issued(_NAME, "Development SGX Other"), "tcb_info")),
    ("a certificate of another authority", _signed_by(_issued_beside_the_root, "tcb_info")),
    ("no certificate", _signed_by(_text(lambda _: "not PEM"), "tcb_info")),
    ("a certificate of no known version", _signed_by(_text(_version_9), "tcb_info")),
    ("a certificate whose name is bits", _signed_by(_text(_name_that_is_bits), "tcb_info")),
    ("a chain without an end", _signed_by(_text(lambda pki: pki.tcb_chain * 20), "tcb_info")),
]

ROWS = [Row(f"statements signed by {name}", 2, "TCB_SIGNER_NOT_ALLOWED", make) for name, make in _CHAINS]
