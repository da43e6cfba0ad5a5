"""It is responsible for the files that `teemesh evidence` is given: several at once, so a refusal names the one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import load_pem_x509_certificate

from libs.errors import MeshError
from libs.identity.certificate import spki_of_certificate
from libs.policy.compose import Anchors, read_anchors
from libs.policy.signatures import SignedPolicy, parse_signed
from libs.tee.collateral import Collateral
from services.cli.evidence.file import CertificateFile, EvidenceFile, recognise
from services.cli.terminal.inputs import InputUnreadable, read_input


def read_evidence(path: Path) -> EvidenceFile:
    """Raises `InputUnreadable`, `QuoteMalformed`."""
    data = read_input(path)
    with named(path):
        return recognise(data)


def read_policy(path: Path) -> SignedPolicy:
    """Read a signed policy without verifying it. Raises `InputUnreadable`, `PolicyMalformed`."""
    data = read_input(path)
    with named(path):
        return parse_signed(data)


def read_compose(path: Path) -> Anchors:
    """Read whom an app-compose is measured with. Raises `InputUnreadable`, `ComposeMalformed`."""
    text = read_input(path).decode("utf-8", errors="surrogateescape")
    with named(path):
        return read_anchors(text)


def read_collateral(path: Path) -> Collateral:
    """Raises `InputUnreadable`, `JsonMalformed`, `CollateralMalformed`."""
    data = read_input(path)
    with named(path):
        return Collateral.decode(data)


def read_certificate_file(path: Path) -> bytes:
    """Return a certificate, DER. Raises `InputUnreadable`, `QuoteMalformed`."""
    file = read_evidence(path)
    if not isinstance(file, CertificateFile):
        raise InputUnreadable(f"{path} is no certificate")
    return file.der


def read_ca(path: Path) -> bytes:
    """Return the SubjectPublicKeyInfo of the mesh CA. Raises `InputUnreadable`, `CertificateNotAccepted`."""
    der = read_certificate_file(path)
    with named(path):
        return spki_of_certificate(der)


def read_spki(given: str) -> bytes:
    """Return the SubjectPublicKeyInfo (DER) in hexadecimal, in a PEM or DER public key, or in a PEM certificate.

    What is hexadecimal is no file's name. Raises `InputUnreadable`.
    """
    try:
        data = bytes.fromhex(given)
    except ValueError:
        data = read_input(Path(given))
    try:
        if b"CERTIFICATE" in data:
            return _encoded(load_pem_x509_certificate(data).public_key())
        if b"PUBLIC KEY" in data:
            return _encoded(serialization.load_pem_public_key(data))
        return _encoded(serialization.load_der_public_key(data))
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputUnreadable(f"{given} is no public key (SubjectPublicKeyInfo) and no PEM certificate") from error


def _encoded(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Around the reading of a file's content: a refusal keeps its kind, and says of which file it is."""
    try:
        yield
    except MeshError as refusal:
        raise type(refusal)(f"{path}: {refusal}") from refusal
