from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509

from libs.identity.certificate import spki_of, spki_of_certificate
from services.kms.ca import CaNotOfThisRoot, CertificateAuthority
from services.kms.keyring import Keyring

KEY = Keyring(bytes(32)).ca_key


def test_the_certificate_stays_the_same_over_restarts(tmp_path: Path) -> None:
    first = CertificateAuthority(KEY, "mesh.test", tmp_path).certificate
    assert CertificateAuthority(KEY, "mesh.test", tmp_path).certificate == first
    constraints = x509.load_der_x509_certificate(first).extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)


def test_a_lost_or_damaged_certificate_is_made_again_for_the_same_key(tmp_path: Path) -> None:
    path = tmp_path / "ca.der"
    for content in (b"", b"\x30\x00"):
        path.write_bytes(content)
        ca = CertificateAuthority(KEY, "mesh.test", tmp_path)
        assert spki_of_certificate(ca.certificate) == spki_of(KEY.public_key())
        assert path.read_bytes() == ca.certificate


def test_an_exchanged_root_is_noticed(tmp_path: Path) -> None:
    """An older root opens as well as the right one: it is the CA that tells them apart."""
    believed = CertificateAuthority(KEY, "mesh.test", tmp_path).certificate
    with pytest.raises(CaNotOfThisRoot):
        CertificateAuthority(Keyring(bytes(range(32))).ca_key, "mesh.test", tmp_path)
    assert (tmp_path / "ca.der").read_bytes() == believed
