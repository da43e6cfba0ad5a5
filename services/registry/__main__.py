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
from services.registry.config import Config
from services.registry.directory import Directory
from services.registry.leases import NodeLeases
from services.registry.servicer import RegistryServicer, TenantServicer, registry_binding, tenants_binding
from services.registry.sessions import Sessions
from services.registry.store import make_store
from services.registry.tenants import Tenants


async def serve(config: Config) -> None:
    """Wire the registry and serve until terminated."""
    log_key = Ed25519PrivateKey.generate()
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
        open_publisher(member, config.events, member.peer("ledger", config.ledger), log_key=log_key) as publisher,
    ):
        store = make_store(link, config.store_timeout_seconds)
        sessions = Sessions(store.sessions)
        directory = Directory(store.providers)
        leases = NodeLeases(store.providers, sessions, Admissions(publisher), config.lease_seconds)
        bindings = [
            registry_binding(RegistryServicer(directory, leases, sessions)),
            tenants_binding(TenantServicer(Tenants(store.tenants, member.policy))),
        ]
        async with member.serve(bindings) as serving, asyncio.TaskGroup() as tasks:
            background = [tasks.create_task(directory.follow()), tasks.create_task(directory.end_expired())]
            await directory.synchronised.wait()
            serving.ready()
            notify_ready()
            await until_terminated()
            for task in background:
                task.cancel()


if __name__ == "__main__":
    sys.exit(run("registry", Config, serve))
