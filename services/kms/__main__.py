"""Runs the KMS: `python -m services.kms <config.toml>`."""

from __future__ import annotations

import asyncio
import re
import sys

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.entry import run
from libs.events.publish import open_publisher
from libs.files import remove_drafts
from libs.identity.bootstrap_leaf import make_bootstrap_leaf
from libs.identity.challenges import Challenges
from libs.identity.collateral import AttestationCollateral
from libs.identity.freshness import PolicyKeeper, load_keeper
from libs.identity.member import membership, open_guest
from libs.identity.renewal import Prover
from libs.policy.compose import Anchors
from libs.process import notify_ready, until_terminated
from libs.rpc.bounds import BOOTSTRAP
from libs.rpc.middleware import public_middleware
from libs.rpc.server import serving
from libs.tee.dstack import Guest
from services.kms.book import BOOK_FILE
from services.kms.bootstrap import KmsBootstrapServicer, bootstrap_binding
from services.kms.ca import CERTIFICATE_FILE, CertificateAuthority
from services.kms.config import Config
from services.kms.currency import Currency
from services.kms.decisions import RESERVED_FRACTION, Decisions
from services.kms.issuance import Issuance, OwnAuthority
from services.kms.joining import join_kms
from services.kms.keyring import Keyring
from services.kms.keys import open_keys
from services.kms.log_reading import LogReading
from services.kms.logged import Logged
from services.kms.publication import Publication
from services.kms.refusals import keeping
from services.kms.replication import Replication, ReplicationServicer, replication_binding
from services.kms.revocation import Revocations
from services.kms.root import ROOT_FILE, Root, make_root, open_root
from services.kms.servicer import KmsServicer, kms_binding
from services.kms.statements import StatementSource

_WRITTEN = re.compile("|".join(map(re.escape, (ROOT_FILE, BOOK_FILE, CERTIFICATE_FILE))))


async def _root(config: Config, guest: Guest, anchors: Anchors, policy: PolicyKeeper) -> Root:
    """Open the root, or get it on the first start: from another instance, or by making it."""
    settings, join = config.member, config.join

    async def obtain() -> Root:
        return await (make_root() if join is None else join_kms(settings, join, guest, anchors, policy))

    return await open_root(guest, settings.state_dir, anchors.dstack_kms_root, obtain)


async def serve(config: Config) -> None:
    """Wire the KMS and serve until terminated."""
    settings = config.member
    async with open_guest(settings, "kms") as (guest, anchors):
        policy = load_keeper(settings.state_dir, settings.seed_policy, anchors)
        root = await _root(config, guest, anchors, policy)
        keyring = Keyring(root.secret)
        ca = CertificateAuthority(keyring.ca_key, settings.trust_domain, settings.state_dir)
        log_key = Ed25519PrivateKey.generate()
        ledgers = (config.ledger, *config.other_ledgers)
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
            f"spiffe://{settings.trust_domain}/kms/{settings.instance}",
            lambda: (ca.key, ca.certificate),
            maximum_age=lambda: policy.current.challenge_max_age_seconds,
        )
        issuance = Issuance(ca, challenges, policy, service_seconds=config.certificate_seconds)
        statements = StatementSource(ca, policy)
        leaf = make_bootstrap_leaf("kms", settings.trust_domain)
        authority = OwnAuthority(issuance, challenges, ca)
        async with (
            membership(settings, "kms", anchors, prover, policy, authority) as member,
            open_publisher(
                member,
                config.events,
                member.ledger(ledgers),
                log_key=log_key,
                reserve_bytes=config.events.outbox_max_bytes // RESERVED_FRACTION,
            ) as publisher,
        ):
            # The outbox is locked by now: no other KMS writes to this folder.
            remove_drafts(settings.state_dir, _WRITTEN)
            decisions = Decisions(publisher)
            currency = Currency()
            keys = open_keys(settings.state_dir, member.spiffe_id, keyring, ca, policy, decisions, currency)
            logged = Logged(policy, decisions, keys.book.pages.place)
            # Before anything is waited for: the ledger may have to judge the first batch by a policy in it.
            await logged.introduce()
            publication = Publication(policy, decisions)
            revocations = Revocations(policy, decisions)
            ledger = member.ledger(ledgers)
            reading = LogReading(member.spiffe_id, ledger, keys.book, policy, keys.unlogged, logged, currency)
            servicer = KmsServicer(ca, policy, statements, publication, revocations, keys, decisions)
            replication = Replication(root, prover, member.identity, challenges, policy, decisions, currency)
            bindings = [kms_binding(servicer), replication_binding(ReplicationServicer(replication))]
            bootstrap = bootstrap_binding(KmsBootstrapServicer(prover, leaf.spki, ca, challenges, issuance, decisions))
            limits = public_middleware(bootstrap.methods, calls_per_second=config.bootstrap_calls_per_second)
            async with (
                keeping(decisions.refusals),
                serving(config.bootstrap_listen, leaf.credentials, [bootstrap], limits, bounds=BOOTSTRAP) as outer,
                member.serve(bindings) as inner,
                asyncio.TaskGroup() as tasks,
            ):
                upkeep = [
                    tasks.create_task(statements.keep(config.statement_seconds)),
                    tasks.create_task(reading.keep()),
                    tasks.create_task(keys.rotation.keep()),
                ]
                outer.ready()
                inner.ready()
                notify_ready()
                await until_terminated()
                for task in upkeep:
                    task.cancel()


if __name__ == "__main__":
    sys.exit(run("kms", Config, serve))
