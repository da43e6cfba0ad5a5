"""Runs the attestation service: `python -m services.attestation <config.toml>`."""

from __future__ import annotations

import sys

from cryptography.hazmat.primitives.asymmetric import ec

from libs.entry import run
from libs.identity.bootstrap_leaf import make_bootstrap_leaf
from libs.identity.challenges import Challenges
from libs.identity.member import Member, join
from libs.process import notify_ready, until_terminated
from libs.rpc.middleware import public_middleware
from libs.rpc.server import serving
from services.attestation.appraisal import Appraiser
from services.attestation.collateral import CollateralCache
from services.attestation.config import Config
from services.attestation.servicer import (
    AttestationServicer,
    CollateralServicer,
    attestation_binding,
    collateral_binding,
)


async def serve(config: Config) -> None:
    """Wire the service and serve until terminated.

    Its bootstrap listener is up before it has an identity: the KMS needs collateral before it can give one.
    """
    settings = config.member
    cache = CollateralCache(config.pccs_url, config.pccs_timeout_seconds)
    bootstrap = collateral_binding(CollateralServicer(cache))
    leaf = make_bootstrap_leaf("attestation", settings.trust_domain)
    limits = public_middleware(bootstrap.methods, calls_per_second=config.bootstrap_calls_per_second)
    async with serving(config.bootstrap_listen, leaf.credentials, [bootstrap], limits) as outer:
        outer.ready()
        async with join(settings, "attestation", {}, collateral=cache) as member:
            challenges = Challenges(member.spiffe_id, lambda: _signer(member))
            servicer = AttestationServicer(challenges, Appraiser(challenges, member.policy))
            async with member.serve([attestation_binding(servicer)]) as inner:
                inner.ready()
                notify_ready()
                await until_terminated()


def _signer(member: Member) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    current = member.identity.current
    return current.key, current.certificate.der


if __name__ == "__main__":
    sys.exit(run("attestation", Config, serve))
