"""It is responsible for an operator's calls to the KMS, whichever of its instances answers.

Every change that operators make is harmless to ask for twice, because it names its outcome: a policy version, a
revocation, an epoch, an order.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc.aio
from teemesh.kms.v1 import kms_pb2_grpc

from libs.errors import Code, MeshError
from services.cli.mesh.instances import Instances
from services.cli.mesh.reading import MeshReader
from services.cli.mesh.service_access import ServiceAccess, access_at

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

        async def over(channel: grpc.aio.Channel, seconds: float) -> T:
            return await ask(kms_pb2_grpc.KmsServiceStub(channel), seconds)

        return await Instances("the KMS", KmsSilent, self.instances).ask(over, timeout_seconds)


def read_kms_access(mesh: Path, trust_domain: str | None = None) -> KmsAccess:
    """Read mesh.json, and the trust domain there unless it is known. Raises `InputUnreadable`."""
    described = MeshReader(mesh)
    domain = trust_domain or described.text("trust_domain")
    return KmsAccess(tuple(access_at(described, "kms", target, domain) for target in described.texts("kms_grpc")))
