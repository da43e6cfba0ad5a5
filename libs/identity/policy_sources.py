"""It is responsible for where policy versions come from: the registry first, which nobody trusts, and then the KMS.

A statement of the KMS names one digest, and each version names the digest of the one before. So there is one chain of
documents that leads from what a service holds to what the KMS states, whoever hands it out: another is not taken, not
even a part of it, since an accepted version cannot be given up again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import structlog
from teemesh.registry.v1 import registry_pb2, registry_pb2_grpc

from libs.errors import Code, MeshError
from libs.identity.any_peer import Channels
from libs.policy.document import Policy
from libs.policy.statement import Statement
from libs.policy.succession import verify_successor
from libs.rpc.errors import remote_errors

_TIMEOUT_SECONDS = 5.0

log = structlog.get_logger()


class PolicyNotStated(MeshError):
    """Genuine versions, and not the ones that the KMS put in force."""

    code = Code.UNAVAILABLE
    reason = "POLICY_NOT_STATED"


class PolicySourceSilent(MeshError):
    """Whoever hands out policy versions takes too long."""

    code = Code.UNAVAILABLE
    reason = "POLICY_SOURCE_SILENT"


class PolicySource(Protocol):
    """Hands out signed policy versions; believed in nothing."""

    async def policy(self, version: int) -> bytes: ...


class RegistryPolicies:
    """The registry over its mesh listener."""

    def __init__(self, registry: Channels) -> None:
        self._registry = registry

    async def policy(self, version: int) -> bytes:
        stub = registry_pb2_grpc.ProviderRegistryServiceStub(await self._registry.channel(_TIMEOUT_SECONDS))
        request = registry_pb2.GetPolicyRequest(version=version)
        with remote_errors():
            return (await stub.GetPolicy(request, timeout=_TIMEOUT_SECONDS)).signed_policy


async def stated_chain(
    kms: PolicySource,
    registry: PolicySource | None,
    current: Policy,
    statement: Statement,
    *,
    registry_seconds: float = _TIMEOUT_SECONDS,
) -> Sequence[bytes]:
    """Return the signed versions after `current` up to the stated one, each verified to follow the one before.

    Raises what refuses the KMS's own; what the registry gives instead of them is logged.
    """
    if current.version >= statement.version:
        return ()
    if registry is not None:
        try:
            # All of it in the time of one call: a registry that is slow on purpose delays nothing further.
            async with asyncio.timeout(registry_seconds):
                return await _chain(registry, current, statement)
        except MeshError as error:
            _tell(error)
        except TimeoutError:
            _tell(PolicySourceSilent(f"the registry did not give all versions within {registry_seconds:g} s"))
    return await _chain(kms, current, statement)


async def _chain(source: PolicySource, current: Policy, statement: Statement) -> Sequence[bytes]:
    chain: list[bytes] = []
    policy = current
    while policy.version < statement.version:
        signed = await source.policy(policy.version + 1)
        policy = verify_successor(policy, signed)
        chain.append(signed)
    if policy.digest != statement.digest:
        raise PolicyNotStated(f"this version {policy.version} is not the one that the KMS states")
    return chain


def _tell(refusal: MeshError) -> None:
    log.warning("no policy from the registry", reason=refusal.reason, detail=str(refusal))
