"""It is responsible for requests that carry no prompt: models, reports, sessions, evidence, and tenants' receipts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass

from libs.aci.encoding import is_hex
from libs.aci.endpoints import paths
from libs.errors import MeshError
from libs.policy.tenant_record import RECEIPTS
from services.router.admission.reads import Reads
from services.router.admission.tenants import Tenants, bearer
from services.router.errors import InvalidRequest, KeyNotScoped, NotFound, TenantDisabled, TenantRevoked, Unauthorized
from services.router.face.answers import Reply, document, value
from services.router.face.arrivals import Arrival
from services.router.face.credentials import authenticated, authorization
from services.router.proof.commitments import Commitments, EvidenceDocuments
from services.router.proof.kept_receipts import KeptReceipts, ReceiptNotFound, StoredReceipt
from services.router.proof.usage import UsageCopies
from services.router.routing.foreign.providers import ForeignProviders
from services.router.routing.models import Models
from services.router.routing.sessions import Sessions
from services.router.routing.upstreams import Upstreams
from services.router.workload.reports import Reports
from services.router.workload.worker_form import WorkerForm
from services.router.workload.workload import Workload

_PLACE = re.compile(r"[0-9]{1,15}")


@dataclass(frozen=True, slots=True)
class Documents:
    """What the documents are made of. Each method answers one path; `name` is what the path names, if anything."""

    workload: Workload
    overdue: Callable[[], str | None]
    """Says why the keyset is not renewed, although it should be by now."""
    reports: Reports
    tenants: Tenants
    reads: Reads
    served: Models
    upstreams: Upstreams
    foreign: ForeignProviders
    cited: Sessions
    receipts: KeptReceipts
    commitments: Commitments
    evidence: EvidenceDocuments
    usage: UsageCopies
    worker: WorkerForm

    async def root(self, arrival: Arrival, name: str) -> Reply:
        return value({"api_version": "aci/1", "workload_keyset_digest": self.workload.lasting(0).digest})

    async def health(self, arrival: Arrival, name: str) -> Reply:
        """That the process serves, under a keyset of its own. Raises `KeysetEnded`."""
        self.workload.lasting(0)
        overdue = self.overdue()
        return value({"status": "ok"} if overdue is None else {"status": "ok", "keyset_overdue": overdue})

    async def models(self, arrival: Arrival, name: str) -> Reply:
        tenant = await authenticated(self.tenants, arrival)
        models = [
            {
                "id": model.name,
                "object": "model",
                "created": 0,
                "owned_by": "teemesh",
                "endpoints": paths(model.endpoints),
            }
            for model in self.served.of(tenant)
        ]
        return value({"object": "list", "data": models})

    async def attestation(self, arrival: Arrival, name: str) -> Reply:
        return document(await self.reports.report(arrival.query.only("nonce"), arrival.host))

    async def receipt(self, arrival: Arrival, name: str) -> Reply:
        return document((await self._stored(arrival, name)).receipt)

    async def commitment(self, arrival: Arrival, name: str) -> Reply:
        return value(await self.commitments.of(await self._stored(arrival, name)))

    async def used(self, arrival: Arrival, name: str) -> Reply:
        tenant = await authenticated(self.tenants, arrival)
        tenant.require_scope(RECEIPTS)
        self.reads.require(tenant)
        before = arrival.query.only("before")
        if before is not None and _PLACE.fullmatch(before) is None:
            raise InvalidRequest("before is the place that the page before named")
        return value(await self.usage.page(tenant.tenant_id, None if before is None else int(before)))

    async def sessions(self, arrival: Arrival, name: str) -> Reply:
        # The specification writes the query with both names, and nothing after them: that asks for all.
        filters = arrival.query.only("upstream_name") or None, arrival.query.only("model") or None
        listed = self.upstreams.current_sessions(*filters) + self.foreign.current_sessions(*filters)
        # Anybody may ask for it. What is said of each was written down when it was verified.
        return document(b'{"api_version": "aci/1", "sessions": [%s]}' % b", ".join(each.entry for each in listed))

    async def session(self, arrival: Arrival, name: str) -> Reply:
        try:
            if not is_hex(name, 32):
                raise NotFound("session ids are 64 lower-case hex digits")
            return document(await self.cited.find(name))
        except MeshError as error:
            if error.reason == "SESSION_UNKNOWN":
                raise NotFound("no such session") from error
            raise

    async def evidence_document(self, arrival: Arrival, name: str) -> Reply:
        return document(await self.evidence.find(name))

    async def worker_report(self, arrival: Arrival, name: str) -> Reply:
        query = arrival.query
        return value(
            await self.worker.report(
                query.only("nonce"), query.only("signing_algo"), query.only("version"), host=arrival.host
            )
        )

    async def signature(self, arrival: Arrival, name: str) -> Reply:
        stored = await self._stored(arrival, name)
        # Telling which of two keys signed takes longer than the loop should wait.
        signed = asyncio.to_thread(self.worker.signature, stored.receipt, arrival.query.only("signing_algo"))
        return value(await signed)

    async def _stored(self, arrival: Arrival, name: str) -> StoredReceipt:
        """The receipt that is asked for. A key that opens nothing is refused as if there were no such receipt (ACI
        section 7.6), whosever it is or was; only that there is no key at all is told.
        """
        shown = authorization(arrival.headers)
        try:
            tenant = await authenticated(self.tenants, arrival)
            tenant.require_scope(RECEIPTS)
        except (Unauthorized, TenantRevoked, TenantDisabled, KeyNotScoped) as error:
            if bearer(shown) is None:
                raise
            raise ReceiptNotFound from error
        self.reads.require(tenant)
        return await self.receipts.find(name, tenant.tenant_id)
