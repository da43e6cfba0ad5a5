"""Runs the attestation service: `python -m services.attestation <config.toml>`."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from libs.entry import run
from libs.identity.bootstrap_leaf import make_bootstrap_leaf
from libs.identity.certificate import spki_of_certificate
from libs.identity.challenges import Challenges
from libs.identity.freshness import PolicyKeeper
from libs.identity.member import Member, join
from libs.process import notify_ready, until_terminated
from libs.rpc.bounds import BOOTSTRAP
from libs.rpc.middleware import public_middleware
from libs.rpc.server import serving
from libs.tee.ear import Signer
from services.attestation.appraisal import Appraisals, Appraiser
from services.attestation.archive import Archive
from services.attestation.collateral import CollateralCache
from services.attestation.config import Config
from services.attestation.feed import Feed
from services.attestation.gpu_tokens import GpuTokens
from services.attestation.leases import LiveLeases
from services.attestation.nodes import Listed, Shown, fetch_evidence
from services.attestation.servicer import (
    AttestationServicer,
    CollateralServicer,
    Watching,
    attestation_binding,
    collateral_binding,
    mesh_collateral_binding,
)
from services.attestation.shelf import Shelf
from services.attestation.sweep import Sweep


async def serve(config: Config) -> None:
    """Wire the service and serve until terminated.

    Its bootstrap listener is up before it has an identity: the KMS needs collateral before it can give one. The
    registry comes much later, and is waited for while everything else is served.
    """
    settings = config.member
    cache = CollateralCache(
        config.pccs_url,
        config.pccs_timeout_seconds,
        root_crl_url=config.root_crl_url,
        shelf=Shelf(settings.state_dir / "collateral"),
    )
    await cache.load()
    bootstrap = collateral_binding(collateral_servicer(config, cache))
    leaf = make_bootstrap_leaf("attestation", settings.trust_domain)
    limits = public_middleware(bootstrap.methods, calls_per_second=config.bootstrap_calls_per_second)
    async with (
        serving(config.bootstrap_listen, leaf.credentials, [bootstrap], limits, bounds=BOOTSTRAP) as outer,
        asyncio.TaskGroup() as tasks,
    ):
        background = [tasks.create_task(cache.keep())]
        outer.ready()
        async with join(settings, "attestation", {}, collateral=cache, registry=config.registry) as member:
            judging = await build(config, member.spiffe_id, member.policy, lambda: signer(member))
            watching = watch(member, config.registry, judging.archive, judging.appraisals) if config.registry else None
            if watching is not None:
                background.append(tasks.create_task(watching.leases.follow()))
                background.append(tasks.create_task(watching.sweep.run(config.sweep_seconds)))
            servicer = AttestationServicer(
                judging.challenges, judging.appraiser, judging.archive, judging.feed, watching
            )
            collateral = mesh_collateral_binding(collateral_servicer(config, cache))
            async with member.serve([attestation_binding(servicer), collateral]) as inner:
                inner.ready()
                notify_ready()
                await until_terminated()
                for task in background:
                    task.cancel()


def collateral_servicer(config: Config, cache: CollateralCache) -> CollateralServicer:
    """Wire one listener's. GPU tokens are each listener's own: members do not wait for them behind strangers."""
    return CollateralServicer(cache, GpuTokens(config.nras_url, config.nras_timeout_seconds))


@dataclass(frozen=True, slots=True)
class Judging:
    """What every verdict of the service goes through."""

    challenges: Challenges
    archive: Archive
    feed: Feed
    appraisals: Appraisals
    appraiser: Appraiser


async def build(config: Config, spiffe_id: str, policy: PolicyKeeper, current: Callable[[], Signer]) -> Judging:
    """Wire what judges, and open its archive. What counts is the policy's to say, and no setting's."""
    archive = Archive(config.member.state_dir / "archive", config.archive_bytes)
    await archive.open()
    feed = Feed(int(time.time() * 1000))
    appraisals = Appraisals(archive, feed)
    challenges = Challenges(
        spiffe_id,
        lambda: (current().key, current().certificate_der),
        maximum_age=lambda: policy.current.challenge_max_age_seconds,
    )
    return Judging(challenges, archive, feed, appraisals, Appraiser(challenges, policy, appraisals, current))


def watch(member: Member, registry: Sequence[str], archive: Archive, appraisals: Appraisals) -> Watching:
    """Wire what appraises the registry's nodes."""

    async def fetch(listed: Listed) -> Shown:
        return await fetch_evidence(member, listed)

    def ca_spki() -> bytes:
        return spki_of_certificate(member.identity.ca_certificate)

    leases = LiveLeases(member.any_peer("registry", registry))
    return Watching(leases, Sweep(leases, fetch, member.policy, ca_spki, archive, appraisals))


def signer(member: Member) -> Signer:
    """The identity that signs now."""
    current = member.identity.current
    return Signer(member.spiffe_id, current.key, current.certificate.der, current.certificate.not_after)


if __name__ == "__main__":
    sys.exit(run("attestation", Config, serve))
