"""Responsible for what is stapled to an SEV-SNP report: the VCEK, the two certificates above it, and the root's CRL.

All of it is signed by AMD, so its transport needs no trust. Its signatures are checked in `libs.tee.snp.chain`.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from libs import jcs
from libs.errors import Code, MeshError
from libs.tee import shape
from libs.tee.snp import certificates
from libs.tee.snp.certificates import CERTIFICATE_BYTES, Certificate

# AMD's list names revoked product certificates, a handful in all.
CRL_BYTES = 65536
_CHAIN_CHARACTERS = 4 * CERTIFICATE_BYTES

_MEMBERS = frozenset({"vcek", "chain", "crl"})
_PEM = "-----BEGIN CERTIFICATE-----\r?\n([A-Za-z0-9+/=\r\n]+)-----END CERTIFICATE-----[\r\n]*"
_CHAIN = re.compile(_PEM + _PEM)


class EndorsementMalformed(MeshError):
    code = Code.INVALID_ARGUMENT
    reason = "SNP_ENDORSEMENT_MALFORMED"


@dataclass(frozen=True, slots=True)
class SnpEndorsement:
    """AMD's word about one chip. Well formed, and **unverified**."""

    vcek: Certificate
    ask: Certificate
    ark: Certificate
    # None where the prover had none: it can be read, and is refused.
    crl: x509.CertificateRevocationList | None

    @classmethod
    def parse(cls, value: Any) -> SnpEndorsement:
        """Read an object with exactly three members. Raises `EndorsementMalformed`; verifies nothing.

        `vcek` and `crl` are hex of DER, an empty `crl` meaning none; `chain` is the PEM of ASK, then ARK.
        """
        try:
            members = shape.members(value, _MEMBERS, "endorsement")
            ask, ark = _chain(shape.text(members["chain"], "chain"))
            vcek = certificates.load(shape.binary(members["vcek"], "vcek"))
            return cls(vcek, ask, ark, _crl(shape.binary(members["crl"], "crl")))
        except ValueError as error:
            raise EndorsementMalformed(str(error)) from error

    @classmethod
    def decode(cls, data: bytes) -> SnpEndorsement:
        """Read the JSON text in which an endorsement travels by itself."""
        return cls.parse(jcs.loads_object(data))

    def to_json(self) -> dict[str, str]:
        return {
            "vcek": self.vcek.der.hex(),
            "chain": _pem(self.ask) + _pem(self.ark),
            "crl": "" if self.crl is None else self.crl.public_bytes(Encoding.DER).hex(),
        }

    def encode(self) -> bytes:
        return jcs.dumps(self.to_json())


def _chain(text: str) -> tuple[Certificate, Certificate]:
    if len(text) > _CHAIN_CHARACTERS:
        raise ValueError(f"chain has more than {_CHAIN_CHARACTERS} characters")
    found = _CHAIN.fullmatch(text)
    if found is None:
        raise ValueError("chain must be two PEM certificates and nothing else")
    ask, ark = (base64.b64decode("".join(body.split()), validate=True) for body in found.groups())
    return certificates.load(ask), certificates.load(ark)


def _crl(der: bytes) -> x509.CertificateRevocationList | None:
    if not der:
        return None
    if len(der) > CRL_BYTES:
        raise ValueError(f"crl has more than {CRL_BYTES} bytes")
    certificates.split(der)
    try:
        return x509.load_der_x509_crl(der)
    except x509.InvalidVersion as error:
        raise ValueError("crl is of an unknown version") from error


def _pem(certificate: Certificate) -> str:
    # Not the parser's own writer, which has only seen a copy of a certificate with serial number 0.
    lines = re.findall(".{1,64}", base64.b64encode(certificate.der).decode())
    return "\n".join(["-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""])
