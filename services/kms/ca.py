"""It is responsible for the mesh CA: its key derives from the root, its certificate says so for ten years.

The certificate is kept on disk only so that its bytes stay the same over restarts; a lost one is made again with the
same name and key, and everything issued before still verifies.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import ipaddress
import re
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from libs.errors import Code, MeshError
from libs.files import write_durably
from libs.identity.certificate import (
    MAX_LIFETIME_SECONDS,
    CertificateNotAccepted,
    Subject,
    issue,
    spki_of,
    spki_of_certificate,
)

CERTIFICATE_FILE = "ca.der"
_CA_YEARS = 10
_SERVER_DAYS = 30
MAX_SERVER_NAMES = 16
"""DNS names and IP addresses together."""
_DNS_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")


class CsrMalformed(MeshError):
    """Not a PKCS#10 request for a P-256 key that its sender holds."""

    code = Code.INVALID_ARGUMENT
    reason = "CSR_MALFORMED"


class ServerNameNotAllowed(MeshError):
    """A name that a server certificate cannot carry."""

    code = Code.INVALID_ARGUMENT
    reason = "SERVER_NAME_NOT_ALLOWED"


class ServerNamesTooMany(MeshError):
    """More names than one server certificate carries: all of them are logged."""

    code = Code.INVALID_ARGUMENT
    reason = "SERVER_NAMES_TOO_MANY"


class CaNotOfThisRoot(MeshError):
    """The sealed root was exchanged: it gives another CA than the one that this mesh believes."""

    code = Code.DATA_LOSS
    reason = "CA_NOT_OF_THIS_ROOT"


class CertificateAuthority:
    """Signs what `issuance` has decided."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, trust_domain: str, folder: Path) -> None:
        """Raises `CaNotOfThisRoot`."""
        self.key = key
        self.trust_domain = trust_domain
        self.certificate = self._kept(folder / CERTIFICATE_FILE)

    @property
    def spki(self) -> bytes:
        return spki_of(self.key.public_key())

    @property
    def spki_sha256(self) -> bytes:
        return hashlib.sha256(self.spki).digest()

    def issue_svid(
        self,
        subject: Subject,
        public_key: ec.EllipticCurvePublicKey,
        now: float,
        lifetime_seconds: int = MAX_LIFETIME_SECONDS,
    ) -> bytes:
        return issue(subject, public_key, self.key, self.certificate, now=now, lifetime_seconds=lifetime_seconds)

    def issue_server_certificate(
        self, public_key: ec.EllipticCurvePublicKey, dns_names: list[str], ip_addresses: list[str], now: float
    ) -> bytes:
        """Sign a service's outward TLS key for these names. Raises `ServerNamesTooMany`, `ServerNameNotAllowed`.

        No name below the trust domain is given: with one, a router could answer for another service.
        """
        if len(dns_names) + len(ip_addresses) > MAX_SERVER_NAMES:
            raise ServerNamesTooMany(f"a server certificate has at most {MAX_SERVER_NAMES} names and addresses")
        names: list[x509.GeneralName] = []
        for name in dns_names:
            inside = name == self.trust_domain or name.endswith(f".{self.trust_domain}")
            if inside or len(name) > 253 or not _DNS_NAME.fullmatch(name):
                raise ServerNameNotAllowed(f"{name[:80]!r} cannot be in a server certificate")
            names.append(x509.DNSName(name))
        for address in ip_addresses:
            # Python takes a zone of any length, which no certificate has room for: the log alone would get it.
            if "%" in address:
                raise ServerNameNotAllowed(f"{address[:80]!r} names a zone of one host")
            try:
                names.append(x509.IPAddress(ipaddress.ip_address(address)))
            except ValueError as error:
                raise ServerNameNotAllowed(f"{address[:80]!r} is not an IP address") from error
        if not names:
            raise ServerNameNotAllowed("a server certificate needs at least one name")
        start = dt.datetime.fromtimestamp(int(now) - 60, dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(_ca_name(self.trust_domain))
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + dt.timedelta(days=_SERVER_DAYS))
            .add_extension(x509.SubjectAlternativeName(names), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.DER)

    def _kept(self, path: Path) -> bytes:
        if path.exists():
            der = path.read_bytes()
            if (kept := _spki_of(der)) == self.spki:
                return der
            if kept is not None:
                raise CaNotOfThisRoot(f"{path} is of another root than the sealed one: restore it, or reset both")
        der = _self_signed(self.key, self.trust_domain)
        write_durably(path, der)
        return der


def public_key_of(csr: bytes) -> ec.EllipticCurvePublicKey:
    """Return the key of a request whose signature proves possession. Raises `CsrMalformed`."""
    try:
        request = x509.load_der_x509_csr(csr)
        key = request.public_key()
        proven = request.is_signature_valid
    except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
        raise CsrMalformed(f"not a PKCS#10 request: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CsrMalformed("the key must be P-256")
    if not proven:
        raise CsrMalformed("the request does not prove possession of its key")
    return key


def _spki_of(der: bytes) -> bytes | None:
    try:
        return spki_of_certificate(der)
    except CertificateNotAccepted:
        return None


def _ca_name(trust_domain: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{trust_domain} mesh CA")])


def _self_signed(key: ec.EllipticCurvePrivateKey, trust_domain: str) -> bytes:
    start = dt.datetime.now(dt.UTC).replace(microsecond=0) - dt.timedelta(minutes=1)
    name = _ca_name(trust_domain)
    usage = x509.KeyUsage(
        digital_signature=True,  # It signs challenges and statements too.
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=365 * _CA_YEARS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        # RFC 5280 and Python's strict mode want it in every certificate of a path, self-signed ones included.
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
