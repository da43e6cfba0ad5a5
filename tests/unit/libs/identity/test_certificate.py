"""One accepted certificate, and every way to be another."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from libs.identity.certificate import (
    EVIDENCE_OID,
    CertificateNotAccepted,
    Subject,
    der_of,
    issue,
    parse,
    spki_of,
    verify_asked_for,
    verify_issued,
)

NOW = 1_800_000_000
DIGEST = bytes(range(32))
SPIFFE_ID = "spiffe://mesh.test/router/1"
CA_KEY = ec.generate_private_key(ec.SECP256R1())
LEAF_KEY = ec.generate_private_key(ec.SECP256R1())


def usage(**changes: bool) -> x509.KeyUsage:
    names = [
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
        *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    ]
    return x509.KeyUsage(**{name: name == "digital_signature" for name in names} | changes)


@dataclass(frozen=True, slots=True)
class Leaf:
    """What `issue` makes, with every part open to change."""

    uris: tuple[str, ...] = (SPIFFE_ID,)
    dns: tuple[str, ...] = ("router.mesh.test",)
    is_ca: bool = False
    usage: x509.KeyUsage | None = field(default_factory=usage)
    evidence: bytes | None = b"\x04\x20" + DIGEST
    public_key: Any = field(default_factory=LEAF_KEY.public_key)
    seconds: int = 3600
    start: int = NOW - 60

    def sign(self, key: ec.EllipticCurvePrivateKey = CA_KEY, name: str = "CA") -> bytes:
        start = dt.datetime.fromtimestamp(self.start, dt.UTC)
        names = [x509.UniformResourceIdentifier(uri) for uri in self.uris] + [x509.DNSName(dns) for dns in self.dns]
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(_name(name))
            .public_key(self.public_key)
            .serial_number(7)
            .not_valid_before(start)
            .not_valid_after(start + dt.timedelta(seconds=self.seconds))
            .add_extension(x509.SubjectAlternativeName(names), critical=True)
            .add_extension(x509.BasicConstraints(ca=self.is_ca, path_length=None), critical=True)
        )
        if self.usage is not None:
            builder = builder.add_extension(self.usage, critical=True)
        if self.evidence is not None:
            builder = builder.add_extension(x509.UnrecognizedExtension(EVIDENCE_OID, self.evidence), critical=False)
        return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def ca(key: ec.EllipticCurvePrivateKey = CA_KEY) -> bytes:
    start = dt.datetime.fromtimestamp(NOW - 60, dt.UTC)
    builder = x509.CertificateBuilder(
        _name("CA"), _name("CA"), key.public_key(), 1, start, start + dt.timedelta(days=9)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def test_what_is_issued_is_accepted() -> None:
    der = issue(Subject("mesh.test", "router", "1", DIGEST), LEAF_KEY.public_key(), CA_KEY, ca(), now=NOW)
    certificate = verify_issued(der, ca(), NOW)
    assert certificate.spiffe_id == SPIFFE_ID
    assert (certificate.spki, certificate.evidence_digest) == (spki_of(LEAF_KEY.public_key()), DIGEST)
    assert verify_issued(Leaf().sign(), ca(), NOW).spiffe_id == SPIFFE_ID


@pytest.mark.parametrize(
    ("leaf", "why"),
    [
        (Leaf(uris=(SPIFFE_ID, "spiffe://mesh.test/kms/1")), "exactly one SPIFFE ID"),
        (Leaf(uris=(SPIFFE_ID, SPIFFE_ID)), "exactly one SPIFFE ID"),
        (Leaf(uris=()), "exactly one SPIFFE ID"),
        (Leaf(uris=("https://mesh.test/router/1",)), "exactly one SPIFFE ID"),
        (Leaf(uris=(SPIFFE_ID + "/admin",)), "exactly one SPIFFE ID"),
        (Leaf(uris=("spiffe://mesh.test@evil.test/router/1",)), "exactly one SPIFFE ID"),
        (Leaf(dns=("kms.mesh.test",)), "the DNS name"),
        (Leaf(dns=("router.mesh.test", "kms.mesh.test")), "the DNS name"),
        (Leaf(dns=()), "the DNS name"),
        (Leaf(is_ca=True), "leaf that signs no others"),
        (Leaf(usage=usage(key_cert_sign=True)), "leaf that signs no others"),
        (Leaf(usage=usage(crl_sign=True)), "leaf that signs no others"),
        (Leaf(usage=usage(digital_signature=False, key_agreement=True)), "leaf that signs no others"),
        (Leaf(usage=None), "malformed"),
        (Leaf(evidence=None), "must name their evidence"),
        (Leaf(evidence=DIGEST), "evidence extension is malformed"),
        (Leaf(evidence=b"\x04\x1f" + DIGEST[1:]), "evidence extension is malformed"),
        (Leaf(evidence=b"\x04\x20" + DIGEST + b"\0"), "evidence extension is malformed"),
        (Leaf(uris=("spiffe://mesh.test/operator/ada",), dns=("operator.mesh.test",)), "people must not"),
        (Leaf(public_key=ec.generate_private_key(ec.SECP384R1()).public_key()), "P-256"),
        (Leaf(seconds=3601), "longer than an hour"),
    ],
)
def test_a_certificate_of_another_form_is_refused(leaf: Leaf, why: str) -> None:
    with pytest.raises(CertificateNotAccepted, match=why):
        verify_issued(leaf.sign(), ca(), NOW)


def test_a_person_needs_no_evidence() -> None:
    leaf = Leaf(uris=("spiffe://mesh.test/auditor/eve",), dns=("auditor.mesh.test",), evidence=None)
    assert verify_issued(leaf.sign(), ca(), NOW).role == "auditor"


def test_a_certificate_is_for_the_key_the_name_and_the_evidence_that_were_asked_for() -> None:
    certificate = verify_issued(Leaf().sign(), ca(), NOW)
    asked, spki = Subject("mesh.test", "router", "1", DIGEST), spki_of(LEAF_KEY.public_key())
    verify_asked_for(certificate, asked, spki)
    for other, key, why in (
        (asked, spki_of(CA_KEY.public_key()), "another key"),
        (replace(asked, trust_domain="mesh.other"), spki, "asked spiffe://mesh.other/router/1"),
        (replace(asked, role="node"), spki, "asked spiffe://mesh.test/node/1"),
        (replace(asked, instance="2"), spki, "asked spiffe://mesh.test/router/2"),
        (replace(asked, evidence_digest=bytes(32)), spki, "other evidence"),
        (replace(asked, evidence_digest=None), spki, "other evidence"),
    ):
        with pytest.raises(CertificateNotAccepted, match=why):
            verify_asked_for(certificate, other, key)


def test_another_ca_of_the_same_name_is_refused() -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(CertificateNotAccepted, match="not from this mesh's CA"):
        verify_issued(Leaf().sign(other), ca(), NOW)
    with pytest.raises(CertificateNotAccepted, match="not from this mesh's CA"):
        verify_issued(Leaf().sign(name="another CA"), ca(), NOW)


def test_a_member_cannot_issue_certificates_to_others() -> None:
    """Its own leaf as the issuer: a pinned leaf must vouch for nothing but itself."""
    with pytest.raises(CertificateNotAccepted, match="not from this mesh's CA"):
        verify_issued(Leaf().sign(LEAF_KEY), ca(), NOW)


@pytest.mark.parametrize("now", [NOW - 121, NOW + 3540, NOW + 10**7])
def test_outside_its_validity_a_certificate_is_refused(now: int) -> None:
    with pytest.raises(CertificateNotAccepted, match="outside its validity"):
        verify_issued(Leaf().sign(), ca(), now)


def test_a_longer_life_is_never_issued() -> None:
    subject = Subject("mesh.test", "router", "1", DIGEST)
    der = issue(subject, LEAF_KEY.public_key(), CA_KEY, ca(), now=NOW, lifetime_seconds=86400)
    assert parse(der).not_after - parse(der).not_before == 3600


def test_hostile_bytes_are_refused_and_nothing_else() -> None:
    good = Leaf().sign()
    for position in range(len(good)):
        for damaged in (good[:position], good[:position] + bytes([good[position] ^ 0x41]) + good[position + 1 :]):
            with pytest.raises(CertificateNotAccepted):
                verify_issued(damaged, ca(), NOW)
    with pytest.raises(CertificateNotAccepted):
        der_of(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")


def test_every_part_of_the_leaf_counts() -> None:
    """The defaults of this file's `Leaf` are what `parse` reads back, so that each refusal above has one cause."""
    assert parse(replace(Leaf(), seconds=60).sign()).not_after == NOW
