"""It is responsible for a job's place in the mesh: joined under its role, and a writer of the log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.events.publish import open_publisher
from libs.identity.member import join
from libs.jobs.settings import JobSettings
from libs.jobs.stages import Stages
from libs.policy.vocabulary import JOB


@asynccontextmanager
async def open_job(settings: JobSettings) -> AsyncIterator[Stages]:
    """Join the mesh and begin to write to its log, until the body ends.

    Raises whatever refuses this job, or the KMS, under the policy, and what opening the outbox raises. Services that
    are away are waited for.
    """
    log_key = Ed25519PrivateKey.generate()
    claims = {"log_key": log_key.public_key().public_bytes_raw().hex()}
    async with join(settings.member, JOB, claims, registry=settings.registry) as member:
        ledger = member.ledger((settings.ledger, *settings.other_ledgers))
        async with open_publisher(member, settings.events, ledger, log_key=log_key) as publisher:
            yield Stages(publisher, settings.ledger_seconds)
