"""It is responsible for the operator's certificate in a local mesh: asked of a proven KMS, renewed before it ends.

The key is made once and stays in the state folder, readable by its owner alone; so each renewal replaces one file, and
whoever reads key and certificate never sees two that do not fit.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc.aio
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from teemesh.kms.v1 import bootstrap_pb2, bootstrap_pb2_grpc

from libs.errors import MeshError
from libs.files import write_durably
from libs.identity.authority import proven_kms
from libs.identity.certificate import (
    MeshCertificate,
    Subject,
    key_pem,
    make_csr,
    pem_of,
    spki_of,
    verify_asked_for,
    verify_issued,
)
from libs.identity.instances import telling_most
from libs.policy.document import Policy
from libs.policy.operator_request import OperatorRequest, sign_operator_request
from libs.rpc.errors import to_mesh_error
from libs.tee.challenge import Challenge
from services.cli.mesh.layout import Layout
from services.cli.mesh.operators import public_key
from services.cli.mesh.patience import patiently
from services.cli.terminal.inputs import InputUnreadable, read_input

ROLE = "operator"
NAME = "local"
_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class OperatorCredential:
    """What an operator shows to the mesh, and the CA that they believe after the KMS proved it."""

    key_pem: bytes
    certificate: MeshCertificate
    ca_certificate: bytes
    """DER."""

    @property
    def ca_pem(self) -> bytes:
        return pem_of(self.ca_certificate)


async def obtain_certificate(
    layout: Layout, bootstraps: Sequence[str], policy: Policy, operator: Ed25519PrivateKey
) -> OperatorCredential:
    """Get a certificate from one of the KMS's instances, at least one, and write it, with the CA, to its files.

    They are asked in order until one issues. Raises every refusal: of the KMS by its appraisal under the policy, or by
    the KMS of the operator; and an absence only where nobody refused.
    """
    key = _ensure_key(layout)
    errors: list[MeshError] = []
    for bootstrap in bootstraps:
        try:
            credential = await _ask(bootstrap, key, policy, operator)
        except MeshError as error:
            errors.append(error)
        else:
            write_durably(layout.mesh_ca, credential.ca_pem, mode=0o644)
            write_durably(layout.operator_certificate, credential.certificate.pem, mode=0o644)
            return credential
    raise telling_most(errors)


async def _ask(
    bootstrap: str, key: ec.EllipticCurvePrivateKey, policy: Policy, operator: Ed25519PrivateKey
) -> OperatorCredential:
    csr = make_csr(key)
    async with proven_kms(bootstrap, policy.trust_domain, policy) as kms:
        stub = bootstrap_pb2_grpc.KmsBootstrapServiceStub(kms.channel)
        try:
            offered = await stub.CreateOperatorChallenge(
                bootstrap_pb2.CreateOperatorChallengeRequest(), timeout=_TIMEOUT_SECONDS
            )
            request = OperatorRequest(ROLE, NAME, csr, Challenge.decode(offered.challenge).nonce)
            response = await stub.IssueOperatorCertificate(
                bootstrap_pb2.IssueOperatorCertificateRequest(
                    csr=csr,
                    role=ROLE,
                    name=NAME,
                    challenge=offered.challenge,
                    operator_key=public_key(operator),
                    signature=sign_operator_request(request, operator),
                ),
                timeout=_TIMEOUT_SECONDS,
            )
        except grpc.aio.AioRpcError as error:
            raise to_mesh_error(error) from error
        certificate = verify_issued(response.certificate, kms.ca_certificate, time.time())
        verify_asked_for(certificate, Subject(policy.trust_domain, ROLE, NAME, None), spki_of(key.public_key()))
        return OperatorCredential(key_pem(key), certificate, kms.ca_certificate)


class OperatorCertificate:
    """The current credential and its renewal."""

    def __init__(
        self, layout: Layout, bootstraps: Sequence[str], policy: Callable[[], Policy], operator: Ed25519PrivateKey
    ) -> None:
        """`bootstraps` is host:port of each instance's bootstrap listener, at least one, the preferred one first."""
        self._layout = layout
        self._bootstraps = bootstraps
        self._policy = policy
        self._operator = operator
        self._current: OperatorCredential | None = None

    @property
    def current(self) -> OperatorCredential:
        if self._current is None:
            raise RuntimeError("operator certificate used before it was obtained")
        return self._current

    async def obtain(self) -> None:
        """Get one, waiting for a KMS that is away."""
        self._current = await patiently(self._obtain)

    async def keep(self, report: Callable[[str], None]) -> None:
        """Renew at half life for ever; `report` hears why a renewal failed, and the next try comes soon."""
        while True:
            certificate = self.current.certificate
            half_life = (certificate.not_before + certificate.not_after) / 2
            await asyncio.sleep(max(half_life - time.time(), 1))
            try:
                self._current = await patiently(self._obtain)
            except MeshError as error:
                report(f"operator certificate not renewed: {error.reason}: {error}")
                await asyncio.sleep(_TIMEOUT_SECONDS)

    async def _obtain(self) -> OperatorCredential:
        return await obtain_certificate(self._layout, self._bootstraps, self._policy(), self._operator)


def _ensure_key(layout: Layout) -> ec.EllipticCurvePrivateKey:
    path = layout.operator_key
    if not path.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        write_durably(path, key_pem(key))
        return key
    os.chmod(path, 0o600)
    try:
        loaded = serialization.load_pem_private_key(read_input(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputUnreadable(f"{path} is not a PEM private key: remove it to get a new one") from error
    if not isinstance(loaded, ec.EllipticCurvePrivateKey):
        raise InputUnreadable(f"{path} is not a P-256 key: remove it to get a new one")
    return loaded
