"""Certificates that are not those of a member of this mesh, shown to a real listener or to the gate behind it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from libs.identity.certificate import parse, pem_of
from libs.policy.revocation import RevocationKind
from libs.rpc.policies import ANY_ROLE, MethodRule
from tests.fakes.joined_mesh import TRUST_DOMAIN
from tests.unit.libs.identity.relays.ground import Ground, ask, fetch_evidence
from tests.unit.libs.identity.relays.row import Attack, Row
from tests.unit.libs.identity.test_certificate import LEAF_KEY, Leaf, usage

_CA = f"{TRUST_DOMAIN} mesh CA"
_ANY = MethodRule(roles=ANY_ROLE, lease=False)


def showing(**changes: Any) -> Attack:
    """The mesh CA did sign it; TLS has nothing against it, and the call is one that any certificate may make."""

    async def attack(ground: Ground) -> None:
        der = Leaf(start=int(time.time()) - 60, **changes).sign(ground.kms.ca.key, _CA)
        async with ground.connected(LEAF_KEY, der) as channel:
            await fetch_evidence(channel)

    return attack


async def of_another_ca(ground: Ground) -> None:
    """TLS alone refuses it, before anything of the mesh is asked."""
    der = Leaf(start=int(time.time()) - 60).sign(ec.generate_private_key(ec.SECP256R1()), _CA)
    async with ground.connected(LEAF_KEY, der) as channel:
        await fetch_evidence(channel)


def behind_tls(make: Callable[[Ground], bytes]) -> Attack:
    """TLS refuses it too. If it did not, the gate would."""

    async def attack(ground: Ground) -> None:
        (await ground.gate()).admit(make(ground), _ANY)

    return attack


def signed(ground: Ground, key: ec.EllipticCurvePrivateKey | None = None, ca: str = _CA, **changes: Any) -> bytes:
    leaf = replace(Leaf(start=int(time.time()) - 60), **changes)
    return pem_of(leaf.sign(key or ground.kms.ca.key, ca))


async def of_another_role(ground: Ground) -> None:
    """A registry has a lease too, but the call is not for it."""
    await ground.call(ground.genuine("registry"))


async def of_a_person_of_another_role(ground: Ground) -> None:
    async with ground.connected(*ground.person("auditor")) as channel:
        await ask(channel)


async def revoked(ground: Ground) -> None:
    """It needs no lease for the call, and gets no answer."""
    genuine = ground.genuine()
    policy = (await ground.listening()).member.policy
    value = genuine.certificate.spki_sha256.hex()
    policy.accept_revocations([ground.mesh.revocation(RevocationKind.KEY, value)])
    async with ground.connected(genuine.key, genuine.certificate.der) as channel:
        await fetch_evidence(channel)


async def of_a_person_whose_name_was_revoked(ground: Ground) -> None:
    key, der = ground.person()
    policy = (await ground.listening()).member.policy
    policy.accept_revocations([ground.mesh.revocation(RevocationKind.NODE, parse(der).spiffe_id)])
    async with ground.connected(key, der) as channel:
        await ask(channel)


ROWS = [
    Row(
        "a certificate with two SPIFFE IDs",
        "CERTIFICATE_NOT_ACCEPTED",
        showing(uris=(f"spiffe://{TRUST_DOMAIN}/router/1", f"spiffe://{TRUST_DOMAIN}/kms/1")),
    ),
    Row("a certificate without a SPIFFE ID", "CERTIFICATE_NOT_ACCEPTED", showing(uris=())),
    Row("a certificate without a DNS name", "CERTIFICATE_NOT_ACCEPTED", showing(dns=())),
    Row(
        "a certificate with another role's DNS name", "CERTIFICATE_NOT_ACCEPTED", showing(dns=(f"kms.{TRUST_DOMAIN}",))
    ),
    Row(
        "a certificate of a CA below the mesh CA",
        "CERTIFICATE_NOT_ACCEPTED",
        behind_tls(lambda g: signed(g, is_ca=True)),
    ),
    Row(
        "a certificate that may sign others",
        "CERTIFICATE_NOT_ACCEPTED",
        showing(usage=usage(key_cert_sign=True)),
    ),
    Row(
        "a certificate that may not sign a handshake",
        "CERTIFICATE_NOT_ACCEPTED",
        behind_tls(lambda g: signed(g, usage=usage(digital_signature=False, key_agreement=True))),
    ),
    Row("a certificate that does not say what it is for", "CERTIFICATE_NOT_ACCEPTED", showing(usage=None)),
    Row("a service's certificate without the evidence extension", "CERTIFICATE_NOT_ACCEPTED", showing(evidence=None)),
    Row(
        "a person's certificate with the evidence extension",
        "CERTIFICATE_NOT_ACCEPTED",
        showing(uris=(f"spiffe://{TRUST_DOMAIN}/operator/ada",), dns=(f"operator.{TRUST_DOMAIN}",)),
    ),
    Row("a certificate whose extension is no digest", "CERTIFICATE_NOT_ACCEPTED", showing(evidence=bytes(32))),
    Row(
        "a certificate for a key that is not P-256",
        "CERTIFICATE_NOT_ACCEPTED",
        behind_tls(lambda g: signed(g, public_key=ec.generate_private_key(ec.SECP384R1()).public_key())),
    ),
    Row("a certificate for longer than an hour", "CERTIFICATE_NOT_ACCEPTED", showing(seconds=3601)),
    Row(
        "a certificate that has ended",
        "CERTIFICATE_NOT_ACCEPTED",
        behind_tls(lambda g: signed(g, start=int(time.time()) - 7200)),
    ),
    Row(
        "a certificate that does not hold yet",
        "CERTIFICATE_NOT_ACCEPTED",
        behind_tls(lambda g: signed(g, start=int(time.time()) + 3600)),
    ),
    Row(
        "a certificate of another CA by the same name",
        "CERTIFICATE_NOT_ACCEPTED",
        behind_tls(lambda g: signed(g, ec.generate_private_key(ec.SECP256R1()))),
    ),
    Row(
        "a certificate that a member signed with its own key",
        "CERTIFICATE_NOT_ACCEPTED",
        behind_tls(lambda g: signed(g, LEAF_KEY)),
    ),
    Row(
        "a certificate of the mesh CA's key by another name",
        "CERTIFICATE_NOT_ACCEPTED",
        behind_tls(lambda g: signed(g, ca="another CA")),
    ),
    Row("a certificate of another CA by the same name, to TLS", "UNAVAILABLE", of_another_ca),
    Row("what is no certificate", "CERTIFICATE_NOT_ACCEPTED", behind_tls(lambda g: b"certificate")),
    Row(
        "a certificate of another trust domain",
        "ROLE_NOT_ALLOWED",
        showing(uris=("spiffe://other.test/router/1",), dns=("router.other.test",)),
    ),
    Row("a certificate and evidence of another role", "ROLE_NOT_ALLOWED", of_another_role),
    Row("a person's certificate of another role", "ROLE_NOT_ALLOWED", of_a_person_of_another_role),
    Row("a certificate whose key was revoked, for what needs no lease", "KEY_REVOKED", revoked),
    Row("a certificate of a person whose name was revoked", "NODE_REVOKED", of_a_person_whose_name_was_revoked),
]
