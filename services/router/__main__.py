"""Runs the router: `python -m services.router <config.toml>`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs import jcs
from libs.aci.provenance import provenance_of
from libs.entry import run
from libs.events.publish import open_publisher
from libs.https.connections import PROTOCOLS
from libs.identity.collateral import AttestationCollateral
from libs.identity.member import join
from libs.identity.sealed import ReceiverKey
from libs.process import beside, freeze_heap, notify_ready, notify_status, until_terminated
from libs.rpc.middleware import public_middleware
from libs.rpc.policies import merge_methods
from libs.rpc.server import Serving, serving
from services.router.admission.directory import TenantDirectory
from services.router.admission.limits import Gates
from services.router.admission.quota_file import QuotaFile
from services.router.admission.quotas import Quotas
from services.router.admission.reads import Reads
from services.router.admission.refusals import Refusals
from services.router.admission.tenants import Tenants
from services.router.admission.usage import Usage
from services.router.config import Config
from services.router.e2ee.opening import Opening
from services.router.e2ee.window import AcceptanceWindow
from services.router.exchange.running import Exchanges
from services.router.face.aci_servicer import AciServicer, aci_binding
from services.router.face.bodies import BodyRoom
from services.router.face.documents import Documents
from services.router.face.door import Door
from services.router.face.listener import https, plain_http
from services.router.face.origins import Origins
from services.router.face.paths import Paths
from services.router.face.prompts import Prompts
from services.router.face.servicer import ENVELOPE_BYTES, RouterServicer, router_binding
from services.router.face.settings import DELIVERY_SECONDS
from services.router.face.watching import Watched
from services.router.metrics import Metrics
from services.router.proof.commitments import Attested, Commitments, EvidenceDocuments
from services.router.proof.erasures import ErasureReading
from services.router.proof.issuance import Issuance
from services.router.proof.retention import Retention
from services.router.proof.store import open_receipt_store
from services.router.proof.usage import UsageCopies
from services.router.proof.vaults import Vaults
from services.router.reading import Reading
from services.router.routing.foreign.access import read_credentials
from services.router.routing.foreign.adapters import Adapters
from services.router.routing.foreign.providers import ForeignProviders
from services.router.routing.foreign.record import SessionRecord
from services.router.routing.models import Models
from services.router.routing.routes import Routes
from services.router.routing.sessions import Sessions
from services.router.routing.upstreams import Upstreams
from services.router.workload.introduction import Introduction
from services.router.workload.outward import Outward
from services.router.workload.renewal import Renewal
from services.router.workload.reports import Reports
from services.router.workload.worker_form import WorkerForm
from services.router.workload.workload import Workload


async def serve(config: Config) -> None:
    """Wire the router and serve until terminated."""
    settings = config.member
    credentials = read_credentials(config.foreign)
    quota_file = QuotaFile(settings.state_dir / "quotas.json")
    counted_tokens = quota_file.read()
    log_key = Ed25519PrivateKey.generate()
    receiver = ReceiverKey()
    outward = Outward(config.keyset.dns_names, config.keyset.ip_addresses, config.keyset.domains)
    subject = f"spiffe://{settings.trust_domain}/router/{settings.instance}"
    workload = Workload(subject, config.keyset.lifetime, outward.listed)
    claims = {
        "log_key": log_key.public_key().public_bytes_raw().hex(),
        "hpke_key": receiver.public.hex(),
        "receipt_key": workload.newest.receipt_public,
    }
    collateral = AttestationCollateral(settings.attestation_bootstrap, settings.trust_domain)
    async with join(settings, "router", claims, collateral=collateral, registry=config.registry) as member:
        keyset = config.keyset
        provenance = provenance_of(
            await member.guest.measured_compose(), repo_url=keyset.repo_url, image_digest_of=keyset.image_digest_of
        )
        ledgers = (config.ledger, *config.other_ledgers)
        ledger, acknowledging = member.ledger(ledgers), member.ledger(ledgers)
        registry = member.any_peer("registry", config.registry)
        vaults = Vaults(member, ledger, receiver)
        reports = Reports(
            member,
            workload,
            collateral,
            provenance,
            config.keyset.quotes_per_second,
            config.receipts.retain_seconds,
        )
        # With it the log has the keyset that this process's receipts name, and the quote that binds it.
        report = jcs.loads_object(await reports.report(None))
        async with (
            open_publisher(
                member, config.events, acknowledging, log_key=log_key, open_vault=vaults.key, report=report
            ) as publisher,
            open_receipt_store(settings.state_dir / "receipts.sqlite") as store,
            Reading() as reading,
        ):
            metrics = Metrics(lambda: workload.newest.not_after)
            upstreams = Upstreams(member, registry, settings=config.routing, metrics=metrics.routing)
            adapters = Adapters(
                credentials, lambda: AttestationCollateral(settings.attestation_bootstrap, settings.trust_domain)
            )
            foreign = ForeignProviders(member.policy, adapters.of, SessionRecord(publisher, store.documents), reading)
            models = Models(upstreams, foreign)
            copies = UsageCopies(store.usage)
            gates, usage = Gates(), Usage(publisher, vaults.key, copies.keep)
            quotas = Quotas(quota_file, counted_tokens)
            sessions = Sessions(upstreams, foreign)
            attested = Attested(member, acknowledging, publisher.boot)
            issuance = Issuance(publisher, vaults, store, attested, sessions.find)
            exchanges = Exchanges(
                member.policy,
                workload,
                Opening(workload, AcceptanceWindow(), reading),
                reading,
                Routes(upstreams, foreign),
                issuance,
                config.receipts.ledger_seconds,
                metrics,
                gates,
                usage,
                quotas,
            )
            refusals = Refusals(publisher)

            def counted(reason: str) -> None:
                refusals.count(reason)
                metrics.refusals.add(reason)

            tenants = Tenants(
                TenantDirectory(registry).find,
                lambda: member.policy.current.tenant_admin_key,
                lambda: member.policy.current.revoked.tenants,
                counted,
            )
            renewal = Renewal(
                workload,
                reports,
                Introduction(member, publisher, outward),
                config.keyset.overlap,
                metrics.keyset_renewals.add,
            )
            documents = Documents(
                workload=workload,
                overdue=lambda: renewal.overdue,
                reports=reports,
                tenants=tenants,
                reads=Reads(config.http.reads_per_second),
                served=models,
                upstreams=upstreams,
                foreign=foreign,
                cited=sessions,
                receipts=store.receipts,
                commitments=Commitments(member, ledger, store.documents),
                evidence=EvidenceDocuments(member, store.documents),
                usage=copies,
                worker=WorkerForm(workload, reports),
            )
            room = BodyRoom(config.http.max_bodies_bytes, config.http.max_body_bytes)
            prompts = Prompts(
                tenants,
                gates,
                exchanges,
                max_body_bytes=config.http.max_body_bytes,
                body_seconds=config.http.body_seconds,
                request_seconds=config.http.request_seconds,
                total_seconds=config.http.request_seconds + DELIVERY_SECONDS,
            )
            paths = Paths(workload.headers, prompts, documents, Origins(config.http.allowed_origins), metrics)
            servicer = RouterServicer(
                gates,
                exchanges,
                models,
                store.receipts,
                room,
                config.http.max_body_bytes,
                config.http.request_seconds,
            )
            await outward.certify(member)
            clients = [router_binding(servicer), aci_binding(AciServicer(documents))]
            door = Door(tenants, usage, metrics.refusals, counted, calls=config.http.max_grpc_calls)
            listeners = beside(
                https(
                    config.http,
                    paths.answer,
                    paths.unread_headers,
                    outward.context(PROTOCOLS),
                    room=room,
                    metrics=metrics.connections,
                    drain_seconds=settings.drain_seconds,
                ),
                serving(
                    config.http.grpc_listen,
                    outward.credentials(),
                    clients,
                    (*public_middleware(merge_methods(clients)), door.middleware),
                    drain_seconds=settings.drain_seconds,
                    message_bytes=config.http.max_body_bytes + ENVELOPE_BYTES,
                    bounds=config.http.grpc_bounds(),
                ),
            )
            async with (
                issuance.recording(),
                refusals.recording(),
                usage.recording(),
                quotas.keeping(),
                member.serve([]) as inner,
                AsyncExitStack() as watched,
                asyncio.TaskGroup() as tasks,
            ):
                async with listeners as (_, outer):
                    background = [
                        tasks.create_task(upstreams.follow()),
                        tasks.create_task(upstreams.reconcile()),
                        tasks.create_task(foreign.maintain()),
                        tasks.create_task(ErasureReading(ledger, vaults, store.erased).follow()),
                        tasks.create_task(renewal.keep()),
                        tasks.create_task(Retention(store.receipts, config.receipts, metrics.let_go.add).keep()),
                    ]
                    if config.metrics.listen:
                        await watched.enter_async_context(plain_http(config.metrics.listen, Watched(metrics).answer))
                    for each in (outer, inner):
                        each.ready()
                    health = tasks.create_task(renewal.watch(partial(_serve, (outer, inner))))
                    freeze_heap()
                    notify_ready()
                    await until_terminated()
                    health.cancel()
                    inner.not_ready()
                    servicer.stop()
                    upstreams.queue.close()
                # Whatever was on its way has ended: until then it needed the leases, the erasures and the keyset.
                for task in background:
                    task.cancel()


def _serve(servers: Sequence[Serving], holds_keyset: bool) -> None:
    """Say to whoever asks for this router's health whether it has a keyset to serve under."""
    for server in servers:
        if holds_keyset:
            server.ready()
        else:
            server.not_ready()
    notify_status("serving" if holds_keyset else "the keyset has ended, and none follows it")


if __name__ == "__main__":
    sys.exit(run("router", Config, serve))
