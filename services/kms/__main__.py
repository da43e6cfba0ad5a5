"""Runs the KMS: `python -m services.kms <config.toml>`."""

from __future__ import annotations

import asyncio
import sys

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.entry import run
from libs.events.publish import open_publisher
from libs.identity.bootstrap_leaf import make_bootstrap_leaf
from libs.identity.challenges import Challenges
from libs.identity.collateral import AttestationCollateral
from libs.identity.freshness import load_keeper
from libs.identity.member import membership, open_guest
from libs.identity.renewal import Prover
from libs.process import notify_ready, until_terminated
from libs.rpc.middleware import public_middleware
from libs.rpc.server import serving
from services.kms.bootstrap import KmsBootstrapServicer, bootstrap_binding
from services.kms.ca import CertificateAuthority
from services.kms.config import Config
from services.kms.decisions import Decisions
from services.kms.issuance import Issuance, OwnAuthority
from services.kms.keyring import Keyring
from services.kms.publication import Publication
from services.kms.release import KeyRelease
from services.kms.root import open_root
from services.kms.servicer import KmsServicer, kms_binding
from services.kms.statements import StatementSource


async def serve(config: Config) -> None:
    """Wire the KMS and serve until terminated."""
    settings = config.member
    async with open_guest(settings, "kms") as (guest, anchors):
        policy = load_keeper(settings.state_dir, settings.seed_policy, anchors)
        keyring = Keyring(await open_root(guest, settings.state_dir))
        ca = CertificateAuthority(keyring.signing("mesh-ca", 1), settings.trust_domain, settings.state_dir)
        log_key = Ed25519PrivateKey.generate()
        prover = Prover(
            guest,
            AttestationCollateral(settings.attestation_bootstrap, settings.trust_domain),
            {
                "role": "kms",
                "ca_spki_sha256": ca.spki_sha256.hex(),
                "root_epoch": 1,
                "log_key": log_key.public_key().public_bytes_raw().hex(),
            },
        )
        challenges = Challenges(
            f"spiffe://{settings.trust_domain}/kms/{settings.instance}", lambda: (ca.key, ca.certificate)
        )
        issuance = Issuance(ca, challenges, policy, service_seconds=config.certificate_seconds)
        statements = StatementSource(ca, policy)
        leaf = make_bootstrap_leaf("kms", settings.trust_domain)
        authority = OwnAuthority(issuance, challenges, ca)
        async with (
            membership(settings, "kms", anchors, prover, policy, authority) as member,
            open_publisher(member, config.events, member.peer("ledger", config.ledger), log_key=log_key) as publisher,
        ):
            decisions = Decisions(publisher)
            publication = Publication(policy, decisions)
            await publication.record_all()
            servicer = KmsServicer(
                ca, policy, statements, publication, KeyRelease(keyring, policy, decisions), decisions
            )
            bootstrap = bootstrap_binding(KmsBootstrapServicer(prover, leaf.spki, ca, challenges, issuance, decisions))
            limits = public_middleware(bootstrap.methods, calls_per_second=config.bootstrap_calls_per_second)
            async with (
                serving(config.bootstrap_listen, leaf.credentials, [bootstrap], limits) as outer,
                member.serve([kms_binding(servicer)]) as inner,
                asyncio.TaskGroup() as tasks,
            ):
                stating = tasks.create_task(statements.keep(config.statement_seconds))
                outer.ready()
                inner.ready()
                notify_ready()
                await until_terminated()
                stating.cancel()


if __name__ == "__main__":
    sys.exit(run("kms", Config, serve))
