"""Runs the registry: `python -m services.registry <config.toml>`."""

from __future__ import annotations

import asyncio
import sys

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.entry import run
from libs.events.connect import connect_nats
from libs.events.publish import open_publisher
from libs.events.subjects import inbox_prefix
from libs.identity.member import join
from libs.process import notify_ready, until_terminated
from services.registry.admissions import Admissions
from services.registry.catalogue import Catalogue, Retention
from services.registry.config import Config
from services.registry.directory import Directory
from services.registry.drains import Drains
from services.registry.leases import NodeLeases
from services.registry.refusals import Refusals
from services.registry.servicer import RegistryServicer, TenantServicer, registry_binding, tenants_binding
from services.registry.sessions import Sessions
from services.registry.store import make_store
from services.registry.tenants import Tenants
from services.registry.withdrawals import Withdrawals

_DAY_SECONDS = 86_400


async def serve(config: Config) -> None:
    """Wire the registry and serve until terminated."""
    log_key = Ed25519PrivateKey.generate()
    ledgers = (config.ledger, *config.other_ledgers)
    claims = {"log_key": log_key.public_key().public_bytes_raw().hex()}
    async with (
        join(config.member, "registry", claims) as member,
        connect_nats(
            config.events.nats_url,
            member.broker(config.events.broker),
            server_name=f"broker.{member.trust_domain}",
            name=f"registry-store/{member.instance}",
            inbox_prefix=inbox_prefix("registry"),
        ) as link,
        open_publisher(member, config.events, member.ledger(ledgers), log_key=log_key) as publisher,
    ):
        admissions = Admissions(publisher, lambda: member.policy.current.version)
        refusals = Refusals(admissions)
        store = make_store(link, config.store_timeout_seconds)
        sessions = Sessions(store.sessions)
        directory = Directory(store.providers, member.trust_domain)
        retention = Retention(config.session_days * _DAY_SECONDS, config.session_bytes)
        catalogue = Catalogue(store.sessions, sessions, directory.sessions, retention)
        leases = NodeLeases(
            store.providers, sessions, catalogue, admissions, config.lease_seconds, known=directory.stored
        )
        drains = Drains(store.providers, member.trust_domain)
        bindings = [
            registry_binding(RegistryServicer(directory, leases, drains, sessions, catalogue, member.policy)),
            tenants_binding(TenantServicer(Tenants(store.tenants, member.policy))),
        ]
        withdrawals = Withdrawals(directory, sessions, leases, admissions, member.policy, member.ca_spki)
        async with (
            refusals.kept(),
            member.serve(bindings, [refusals.middleware]) as serving,
            asyncio.TaskGroup() as tasks,
        ):
            upkeep = (
                *(directory.follow(), directory.tidy(), directory.beat()),
                *(catalogue.follow(), catalogue.tidy()),
                withdrawals.keep(),
            )
            background = [tasks.create_task(work) for work in upkeep]
            await directory.synchronised.wait()
            await catalogue.synchronised.wait()
            serving.ready()
            notify_ready()
            await until_terminated()
            for task in background:
                task.cancel()


if __name__ == "__main__":
    sys.exit(run("registry", Config, serve))
