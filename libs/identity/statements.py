"""It is responsible for keeping a service's policy fresh: the KMS's statements, and what they announce."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Protocol

import structlog
from teemesh.kms.v1 import kms_pb2, kms_pb2_grpc

from libs.errors import Code, MeshError
from libs.identity.any_peer import Channels
from libs.identity.certificate import spki_of_certificate
from libs.identity.freshness import PolicyKeeper
from libs.identity.policy_sources import PolicySource, stated_chain
from libs.identity.renewal import Identity
from libs.policy.statement import Statement, verify_statement
from libs.rpc.errors import remote_errors

_TIMEOUT_SECONDS = 5.0
_SILENCE_SECONDS = 30.0
"""The KMS gives a sign of life every 10 s."""

log = structlog.get_logger()


class StatementsEnded(MeshError):
    """The KMS states nothing any more: ask again."""

    code = Code.UNAVAILABLE
    reason = "STATEMENTS_ENDED"


class Statements(Protocol):
    """Where statements, and the policies and revocations that they name, come from."""

    def watch(self) -> AsyncGenerator[Statement, None]:
        """Yield the newest statement, its signature verified, and each one after it as it is made.

        MUST raise `MeshError` when it cannot go on, silence included; it never just ends.
        """
        ...

    async def policy(self, version: int) -> bytes: ...

    async def revocations(self) -> Sequence[bytes]: ...


class KmsStatements:
    """The KMS over its mesh listener."""

    def __init__(self, kms: Channels, identity: Identity, silence_seconds: float = _SILENCE_SECONDS) -> None:
        self._kms = kms
        self._identity = identity
        self._silence_seconds = silence_seconds

    async def watch(self) -> AsyncGenerator[Statement, None]:
        channel = await self._kms.channel(_TIMEOUT_SECONDS)
        call = kms_pb2_grpc.KmsServiceStub(channel).WatchStatements(kms_pb2.WatchStatementsRequest())
        try:
            while True:
                with remote_errors():
                    async with asyncio.timeout(self._silence_seconds):
                        response = await call.read()
                if not isinstance(response, kms_pb2.WatchStatementsResponse):
                    raise StatementsEnded("the KMS ended its statements")
                if response.HasField("stated"):
                    yield self._verified(response.stated)
        except TimeoutError as error:
            # The next watch is to be another instance's, where there is one.
            channel.is_away = True
            raise StatementsEnded(f"the KMS gave no sign of life for {self._silence_seconds:g} s") from error
        finally:
            call.cancel()

    async def policy(self, version: int) -> bytes:
        stub = await self._stub()
        with remote_errors():
            response = await stub.GetPolicy(kms_pb2.GetPolicyRequest(version=version), timeout=_TIMEOUT_SECONDS)
        return response.signed_policy

    async def revocations(self) -> Sequence[bytes]:
        stub = await self._stub()
        signed: list[bytes] = []
        request = kms_pb2.GetRevocationsRequest()
        while True:
            with remote_errors():
                page = await stub.GetRevocations(request, timeout=_TIMEOUT_SECONDS)
            signed.extend(page.signed_revocations)
            if page.next_page_token <= request.page_token:
                return signed
            request = kms_pb2.GetRevocationsRequest(page_token=page.next_page_token)

    async def _stub(self) -> kms_pb2_grpc.KmsServiceStub:
        return kms_pb2_grpc.KmsServiceStub(await self._kms.channel(_TIMEOUT_SECONDS))

    def _verified(self, stated: kms_pb2.Stated) -> Statement:
        return verify_statement(stated.statement, stated.signature, spki_of_certificate(self._identity.ca_certificate))


async def follow_statements(
    statements: Statements, policy: PolicyKeeper, retry_seconds: float, registry: PolicySource | None = None
) -> None:
    """Watch for ever. What fails is logged and watched again; silence is what `require_fresh` acts on."""
    while True:
        try:
            await watch_statements(statements, policy, registry)
        except MeshError as error:
            log.warning("no policy statement", reason=error.reason, detail=str(error))
        await asyncio.sleep(retry_seconds)


async def watch_statements(statements: Statements, policy: PolicyKeeper, registry: PolicySource | None = None) -> None:
    """Take statements as they come, until one cannot be taken or no more come. Raises `MeshError`."""
    async with aclosing(statements.watch()) as stated:
        async for statement in stated:
            await take_statement(statement, statements, policy, registry)


async def take_statement(
    statement: Statement, statements: Statements, policy: PolicyKeeper, registry: PolicySource | None = None
) -> None:
    """Take one statement, and first every policy version up to the one it names, and the revocations that it names.

    Versions may come from the registry, nothing else does. What the KMS then still names otherwise than this service is
    refused by `note`. Raises `MeshError`.
    """
    try:
        for signed in await stated_chain(statements, registry, policy.current, statement):
            policy.accept(signed)
    except MeshError:
        # A version that cannot be had, or read, keeps no revocation from counting.
        await _take_revocations(statement, statements, policy)
        raise
    await _take_revocations(statement, statements, policy)
    policy.note(statement)


async def _take_revocations(statement: Statement, statements: Statements, policy: PolicyKeeper) -> None:
    if statement.revocations_digest == policy.revocations.digest:
        return
    revocations = await statements.revocations()
    await _learn_signers(revocations, statements, policy)
    policy.accept_revocations(revocations)


async def _learn_signers(revocations: Sequence[bytes], statements: Statements, policy: PolicyKeeper) -> None:
    """Ask for the versions before the seed, as far down as it takes to know who signed these revocations.

    Whoever is in none of them is refused when the revocations are accepted, and so is everyone where the KMS cannot
    tell: what can be verified counts in any case.
    """
    try:
        while policy.oldest > 1 and not policy.knows_signers(revocations):
            policy.accept_earlier(await statements.policy(policy.oldest - 1))
    except MeshError as error:
        log.warning("no earlier policy", version=policy.oldest - 1, reason=error.reason, detail=str(error))
