"""It is responsible for a job's place in the mesh: joined under its role, writing to its log, receiving keys."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from libs.events.publish import open_publisher
from libs.identity.agent_key import AgentKey
from libs.identity.any_peer import Channels
from libs.identity.member import join
from libs.identity.renewal import Identity
from libs.identity.sealed import ReceiverKey
from libs.jobs.sealed_inputs import Release
from libs.jobs.settings import JobSettings
from libs.jobs.stages import Stages
from libs.policy.releases import KeyAlgorithm
from libs.policy.vocabulary import JOB


@asynccontextmanager
async def open_job(settings: JobSettings) -> AsyncIterator[Stages]:
    """Join the mesh and begin to write to its log, until the body ends.

    Raises whatever refuses this job, or the KMS, under the policy, and what opening the outbox raises. Services that
    are away are waited for.
    """
    log_key, receiver = Ed25519PrivateKey.generate(), ReceiverKey()
    claims = {"log_key": log_key.public_key().public_bytes_raw().hex(), "hpke_key": receiver.public.hex()}
    async with join(settings.member, JOB, claims, registry=settings.registry) as member:
        ledger = member.ledger((settings.ledger, *settings.other_ledgers))
        async with open_publisher(member, settings.events, ledger, log_key=log_key) as publisher:
            yield Stages(publisher, settings.ledger_seconds, released_by_kms(member.kms, member.identity, receiver))


def released_by_kms(kms: Channels, identity: Identity, receiver: ReceiverKey) -> Release:
    """Ask the KMS for keys; the identity's evidence MUST bind the receiver's key."""

    async def release(name: str, epoch: int) -> X25519PrivateKey:
        private = await AgentKey(name, kms, identity).receive(KeyAlgorithm.X25519, receiver, epoch)
        return cast(X25519PrivateKey, private)  # By the algorithm that was asked for.

    return release
