"""It is responsible for an operator's calls to the KMS, whichever of its instances answers.

They are asked in the order of mesh.json, each for an equal share of the time that is left, so that one which is silent
leaves enough for the others. What an instance answers counts, a refusal too; the next one is asked only after one that
is away or cannot do it now. That one may have done what was asked without being heard, so what is asked MUST be
harmless to do twice. Every change that operators make is, because it names its outcome: a policy version, a revocation,
an epoch, an order.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from teemesh.kms.v1 import kms_pb2_grpc

from libs.errors import Code, MeshError
from libs.identity.instances import is_away
from libs.rpc.errors import RemoteRefused, remote_errors
from services.cli.mesh_reading import MeshReader
from services.cli.service_access import ServiceAccess, access_at

TIMEOUT_SECONDS = 15.0

T = TypeVar("T")


class KmsSilent(MeshError):
    """An instance of the KMS did not answer in its share of the time."""

    code = Code.DEADLINE_EXCEEDED
    reason = "KMS_SILENT"


@dataclass(frozen=True, slots=True)
class KmsAccess:
    """The instances, at least one, the preferred one first."""

    instances: tuple[ServiceAccess, ...]

    @property
    def trust_domain(self) -> str:
        return self.instances[0].trust_domain

    @property
    def ca_spki(self) -> bytes:
        return self.instances[0].ca_spki

    async def ask(
        self,
        ask: Callable[[kms_pb2_grpc.KmsServiceStub, float], Awaitable[T]],
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> T:
        """Return what `ask` gets from one instance, with its calls' deadline in seconds.

        All instances together take `timeout_seconds` at most. Raises what the KMS refuses with, and `KmsSilent`.
        """
        ends_at = asyncio.get_running_loop().time() + timeout_seconds
        errors: list[MeshError] = []
        for asked, instance in enumerate(self.instances):
            left = max(ends_at - asyncio.get_running_loop().time(), 0.0)
            try:
                return await _ask_one(instance, ask, left / (len(self.instances) - asked))
            except MeshError as error:
                if not is_away(error):
                    raise
                errors.append(error)
                if instance is not self.instances[-1]:
                    _say(f"no answer from the KMS at {instance.target} ({error.reason}): asking the next one")
        raise _telling_most(errors)


def read_kms_access(mesh: Path, trust_domain: str | None = None) -> KmsAccess:
    """Read mesh.json, and the trust domain there unless it is known. Raises `InputUnreadable`."""
    described = MeshReader(mesh)
    domain = trust_domain or described.text("trust_domain")
    return KmsAccess(tuple(access_at(described, "kms", target, domain) for target in described.texts("kms_grpc")))


async def _ask_one(
    instance: ServiceAccess, ask: Callable[[kms_pb2_grpc.KmsServiceStub, float], Awaitable[T]], seconds: float
) -> T:
    try:
        async with asyncio.timeout(seconds), instance.channel() as channel:
            with remote_errors():
                return await ask(kms_pb2_grpc.KmsServiceStub(channel), seconds)
    except TimeoutError as error:
        raise KmsSilent(f"the KMS at {instance.target} did not answer within {seconds:.1f} s") from error


def _telling_most(errors: Sequence[MeshError]) -> MeshError:
    """Return the first that a KMS gave a reason for, or the first of all where none answered."""
    return next(
        (error for error in errors if isinstance(error, RemoteRefused) and error.reason != error.code), errors[0]
    )


def _say(text: str) -> None:
    sys.stderr.write(f"teemesh: {text}\n")
