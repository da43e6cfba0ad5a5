"""Runs a node: `python -m services.node <config.toml>`."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack

from libs.aci import receipt_gpus, whole_answers
from libs.aci.endpoints import paths
from libs.aci.receipt_events import PolicyInForce
from libs.entry import run
from libs.identity.collateral import AttestationCollateral
from libs.identity.member import Member, join, open_guest
from libs.identity.reports import Reports
from libs.identity.sealed import ReceiverKey
from libs.policy.compose import compose_hash
from libs.policy.measured_engine import read_engine
from libs.process import freeze_heap, notify_ready, until_terminated
from services.node.aci_servicer import AciServicer, aci_binding
from services.node.config import Config
from services.node.engine import open_engine
from services.node.generation import Claimed, Generation
from services.node.gpus import EvidencedGpus
from services.node.installed import engine_name
from services.node.kept_receipts import KeptReceipts
from services.node.launch import plan
from services.node.opening import released_by_kms
from services.node.receipts import ReceiptSigner
from services.node.registration import Registration, ServedModel, registered
from services.node.reports import NodeReports
from services.node.salting import receive_salts, secrets_of_kms
from services.node.servicer import InferenceServicer, binding
from services.node.weights import weights_of
from services.node.whole_answers import WholeAnswerServicer
from services.node.whole_answers import binding as whole_binding


async def serve(config: Config) -> None:
    """Wire the node and serve until terminated.

    The weights are measured before the engine reads them, those that come encrypted once the KMS has released their
    key; it starts only in a node that the mesh has admitted, and answers before routers are told of this node.
    """
    async with open_guest(config.member, "node") as (guest, _):
        compose = await guest.measured_compose()
    measured = read_engine(compose)
    launch = plan(config.engine, measured, await engine_name(measured))
    source = await weights_of(config.engine, launch, config.member.state_dir)
    models = [ServedModel(config.engine.model, source.digest)]
    kept, receiver = KeptReceipts(), ReceiverKey()
    receipts = ReceiptSigner(kept.keep)
    claims = {
        "engine": launch.name,
        "engine_args_sha256": launch.arguments_sha256.hex(),
        "endpoints": paths(launch.endpoints),
        "models": [{"id": model.model_id, "weights_sha256": model.weights_sha256.hex()} for model in models],
        "receipt_key": receipts.public_key.hex(),
        receipt_gpus.CLAIM: True,
        whole_answers.CLAIM: True,
        "hpke_key": receiver.public.hex(),
        **({"region": config.region} if config.region else {}),
    }
    collateral = AttestationCollateral(config.member.attestation_bootstrap, config.member.trust_domain)
    async with AsyncExitStack() as stack:
        member = await stack.enter_async_context(
            join(config.member, "node", claims, collateral=collateral, registry=config.registry, gpus=config.gpus)
        )
        weights = await source.ready(released_by_kms(member.kms, member.identity, receiver))
        secrets = secrets_of_kms(member.kms, member.identity, receiver)
        salts = await receive_salts(secrets, compose_hash(compose.encode())) if launch.salted else None
        engine = await stack.enter_async_context(open_engine(config.engine, launch, weights, config.member.state_dir))
        claimed = Claimed(
            launch.name,
            launch.arguments_sha256,
            {model.model_id: model.weights_sha256 for model in models},
            await source.key(),
        )
        generation = Generation(
            engine,
            claimed,
            receipts,
            lambda: _policy_in_force(member),
            member.gpus,
            named_gpus=EvidencedGpus(lambda: member.identity.current.evidence).named,
            salts=salts,
            tenant_parallel=config.engine.tenant_parallel,
            fetches=launch.fetches,
        )
        servicer = InferenceServicer(generation, models, config.engine.request_seconds)
        whole = WholeAnswerServicer(generation, config.engine.request_seconds)
        reports = Reports(member.guest, receipts, collateral, config.reports.quotes_per_second)
        documents = AciServicer(NodeReports(reports, config.reports, compose), kept)
        async with member.serve([binding(servicer), whole_binding(whole), aci_binding(documents)]) as serving:
            await engine.until_ready()
            serving.ready()
            registry = member.any_peer("registry", config.registry)
            registration = Registration(
                peer=registry,
                endpoint=config.endpoint or config.member.listen,
                models=models,
                busyness=engine,
                gpus=member.gpus,
                key=lambda: registry.credential.certificate.spki_sha256,
            )
            # Left first when this ends: routers must look elsewhere while running requests finish.
            async with registered(registration):
                freeze_heap()
                notify_ready()
                await until_terminated()


def _policy_in_force(member: Member) -> PolicyInForce:
    policy = member.policy.current
    return PolicyInForce(policy.version, f"sha256:{policy.digest.hex()}")


if __name__ == "__main__":
    sys.exit(run("node", Config, serve))
