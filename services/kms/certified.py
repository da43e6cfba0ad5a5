"""It is responsible for certificates on record: each before it goes out, and how many anybody may cause.

The reserve of the outbox is for those without whom it is never emptied, or nothing is revoked: broker, ledger and KMS,
and operators. A service may name its instances as it likes, so the reserve has a rate for each role as well: beyond it
certificates have the room that everybody has, as outward ones always do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from libs.errors import Code, MeshError
from libs.identity.certificate import MeshCertificate
from libs.identity.lease import Lease
from libs.rpc.rates import Allowances
from services.kms.refusals import Refusals

CERTIFICATES_PER_MINUTE = 60
"""Of one SPIFFE ID on one machine, outward ones included; and of one role, from the reserve. So many may come at once.

By machine as well, so that nobody who takes another's name elsewhere takes what is that one's.
"""

RESERVED_ROLES = frozenset({"broker", "kms", "ledger", "operator"})

_PER_SECOND = CERTIFICATES_PER_MINUTE / 60
_REFUSED_NAME = "certificate"


class CertificatesTooMany(MeshError):
    """This name has had as many certificates on this machine as it may have for now."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "CERTIFICATES_TOO_MANY"


class Log(Protocol):
    """What makes the record of a certificate durable."""

    async def __call__(self, admission: Mapping[str, Any], *, essential: bool) -> None:
        """Raises `OutboxFull`; `essential` ones may use the reserve."""
        ...


class Certified:
    """Takes every certificate before it goes out."""

    def __init__(self, log: Log, refusals: Refusals, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._refusals = refusals
        self._of_name = Allowances(_PER_SECOND, CERTIFICATES_PER_MINUTE, clock)
        self._reserved = Allowances(_PER_SECOND, CERTIFICATES_PER_MINUTE, clock)

    async def record(self, certificate: MeshCertificate, device_id: str, detail: Mapping[str, Any]) -> None:
        """Record a certificate of the mesh durably here. Raises `CertificatesTooMany`, `OutboxFull`.

        `device_id` is the proven machine's; people's is "".
        """
        await self._require_allowance(certificate.spiffe_id, device_id)
        said = _said(certificate.spiffe_id, certificate.spki_sha256, detail)
        role = certificate.role
        await self._log(said, essential=role in RESERVED_ROLES and self._reserved.take(role))

    async def record_outward(self, caller: Lease, spki_sha256: bytes, detail: Mapping[str, Any]) -> None:
        """Record a service's outward certificate durably here. Raises `CertificatesTooMany`, `OutboxFull`."""
        spiffe_id = caller.certificate.spiffe_id
        await self._require_allowance(spiffe_id, caller.appraisal.device_id)
        await self._log(_said(spiffe_id, spki_sha256, detail), essential=False)

    async def _require_allowance(self, spiffe_id: str, device_id: str) -> None:
        if self._of_name.take(f"{spiffe_id} {device_id}"):
            return
        reason = CertificatesTooMany.reason
        await self._refusals.record(
            {"decision": "refused", "name": _REFUSED_NAME, "spiffe_id": spiffe_id, "reason": reason}
        )
        raise CertificatesTooMany(f"{CERTIFICATES_PER_MINUTE} certificates a minute under one name; try again later")


def _said(spiffe_id: str, spki_sha256: bytes, detail: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"decision": "certified", "spiffe_id": spiffe_id, "spki_sha256": spki_sha256.hex(), **detail}
