"""It is responsible for the router's attestation reports, as clients of each of its hosts are told them.

One quote serves the clients of every host, each of whom is told the TLS key of theirs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from libs.aci import downstream, e2ee, report
from libs.identity import reports
from libs.identity.collateral import CollateralSource
from libs.identity.member import Member
from libs.identity.reports import TEE_TYPE, Made, Quoted
from services.router.errors import ReportsBusy, ServiceUnavailable
from services.router.workload.generation import Generation
from services.router.workload.workload import Workload

RETENTION = "teemesh_receipt_retention_seconds"
"""How long a receipt is handed out, while there is room: a word to clients that nothing binds."""


class Reports:
    """Tells them."""

    def __init__(
        self,
        member: Member,
        workload: Workload,
        collateral: CollateralSource,
        provenance: report.SourceProvenance,
        quotes_per_second: float,
        retain_seconds: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reports = reports.Reports(member.guest, workload, collateral, quotes_per_second, clock)
        self._provenance = provenance
        self._retain_seconds = retain_seconds

    async def report(self, nonce: str | None, host: str = "") -> bytes:
        """Return the report for a nonce, or the unchallenged one, as the clients of a host are told it; with domains
        that MUST be a host that the operator lists, or none. Raises `NonceMalformed`, `ReportsBusy`, `KeysetEnded` or
        `ServiceUnavailable`, and what device and collateral fail with.
        """
        with _as_clients_are_told():
            return self._tell(await self._reports.made(nonce), host)

    async def quoted(self, slot: bytes) -> Quoted:
        """Return a quote over 64 bytes for a report of another form, which this one's MUST NOT be taken for: within
        what the device may be asked for. Raises `ReportsBusy`.
        """
        with _as_clients_are_told():
            return await self._reports.quoted(slot)

    async def unchallenged(self, generation: Generation) -> bytes:
        """Return a keyset's report without a nonce, for clients of no host, made now if none is kept: for this
        service's own use, which nobody can ask for too often.
        """
        return self._tell(await self._reports.unchallenged(generation), "")

    def _tell(self, made: Made, host: str) -> bytes:
        keyset = made.keyset
        named = downstream.binding(keyset, host)
        # Without one it is the same for everybody.
        hearer = host if named else ""
        if hearer not in made.told:
            made.told[hearer] = report.assemble(
                keyset,
                nonce=made.nonce,
                tee_type=TEE_TYPE,
                provenance=self._provenance,
                evidence={**made.evidence, **named},
                e2ee_versions=(e2ee.VERSION,),
                more_capabilities={RETENTION: self._retain_seconds},
            )
        return made.told[hearer]


@contextmanager
def _as_clients_are_told() -> Iterator[None]:
    try:
        yield
    except reports.ReportsBusy as error:
        raise ReportsBusy(str(error)) from error
    except reports.ReportNotMade as error:
        raise ServiceUnavailable(str(error)) from error
