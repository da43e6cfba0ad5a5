"""It is responsible for keeping a service's policy fresh: the KMS's statements, and the versions they announce."""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog
from teemesh.kms.v1 import kms_pb2, kms_pb2_grpc

from libs.errors import MeshError
from libs.identity.certificate import spki_of_certificate
from libs.identity.freshness import PolicyKeeper
from libs.identity.peers import Peer
from libs.identity.renewal import Identity
from libs.policy.statement import Statement, verify_statement
from libs.rpc.errors import remote_errors

_TIMEOUT_SECONDS = 5.0

log = structlog.get_logger()


class Statements(Protocol):
    """Where statements and the policies that they name come from."""

    async def newest(self) -> Statement: ...

    async def policy(self, version: int) -> bytes: ...


class KmsStatements:
    """The KMS over its mesh listener."""

    def __init__(self, kms: Peer, identity: Identity) -> None:
        self._kms = kms
        self._identity = identity

    async def newest(self) -> Statement:
        """Return the newest statement, its signature verified. Raises `MeshError`."""
        stub = kms_pb2_grpc.KmsServiceStub(await self._kms.channel(_TIMEOUT_SECONDS))
        with remote_errors():
            response = await stub.GetStatement(kms_pb2.GetStatementRequest(), timeout=_TIMEOUT_SECONDS)
        ca_spki = spki_of_certificate(self._identity.ca_certificate)
        return verify_statement(response.statement, response.signature, ca_spki)

    async def policy(self, version: int) -> bytes:
        stub = kms_pb2_grpc.KmsServiceStub(await self._kms.channel(_TIMEOUT_SECONDS))
        with remote_errors():
            response = await stub.GetPolicy(kms_pb2.GetPolicyRequest(version=version), timeout=_TIMEOUT_SECONDS)
        return response.signed_policy


async def follow_statements(statements: Statements, policy: PolicyKeeper, poll_seconds: float) -> None:
    """Ask for ever. What fails is logged and asked again; silence is what `require_fresh` acts on."""
    while True:
        try:
            await take_statement(statements, policy)
        except MeshError as error:
            log.warning("no policy statement", reason=error.reason, detail=str(error))
            await asyncio.sleep(min(poll_seconds, 1.0))
        else:
            await asyncio.sleep(poll_seconds)


async def take_statement(statements: Statements, policy: PolicyKeeper) -> None:
    """Take one statement, and first every policy version up to the one it names. Raises `MeshError`."""
    statement = await statements.newest()
    while policy.current.version < statement.version:
        policy.accept(await statements.policy(policy.current.version + 1))
    policy.note(statement)
