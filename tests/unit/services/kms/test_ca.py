from __future__ import annotations

from pathlib import Path

from cryptography import x509

from services.kms.ca import CertificateAuthority
from services.kms.keyring import Keyring

KEY = Keyring(bytes(32)).signing("mesh-ca", 1)


def test_the_certificate_stays_the_same_over_restarts(tmp_path: Path) -> None:
    first = CertificateAuthority(KEY, "mesh.test", tmp_path).certificate
    assert CertificateAuthority(KEY, "mesh.test", tmp_path).certificate == first
    constraints = x509.load_der_x509_certificate(first).extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)


def test_a_lost_damaged_or_foreign_certificate_is_made_again_for_the_same_key(tmp_path: Path) -> None:
    path = tmp_path / "ca.der"
    stranger = CertificateAuthority(Keyring(bytes(range(32))).signing("mesh-ca", 1), "mesh.test", tmp_path)
    spki = CertificateAuthority(KEY, "mesh.test", tmp_path).spki
    for content in (b"", b"\x30\x00", stranger.certificate):
        path.write_bytes(content)
        ca = CertificateAuthority(KEY, "mesh.test", tmp_path)
        assert ca.spki == spki != stranger.spki
        assert path.read_bytes() == ca.certificate != content
