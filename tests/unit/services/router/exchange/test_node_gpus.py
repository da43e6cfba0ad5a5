"""A router holds the GPUs that a node's receipt names against those of the evidence that it appraised."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest

from libs.aci import receipt_gpus
from libs.aci.receipt_events import Generated, ServedByNode
from libs.tee.nvidia.evidence import GpuEvidence
from tests.fakes.leases import WEIGHTS, node_lease
from tests.fakes.nodes import STREAMED
from tests.fakes.routers import RouterBench, aborts, prompt, router_bench
from tests.unit.libs.tee.nvidia.gpu_bench import GpuBench

GENERATED = Generated("llama", "00" * 32, WEIGHTS, "{}")


@dataclass(frozen=True, slots=True)
class PolicyOnGpus:
    """As far as it says whether a node needs one."""

    gpu_required: bool

    def rules(self, role: str) -> PolicyOnGpus:
        assert role == "node"
        return self


@pytest.fixture(scope="module")
def shown() -> GpuEvidence:
    return GpuBench.create().evidence()


@pytest.fixture(params=[False, True], ids=["in parts", "in one message"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[RouterBench]:
    async with router_bench(tmp_path, whole=request.param) as running:
        yield running


async def admit(bench: RouterBench, shown: GpuEvidence | None, *, required: bool, claims: bool = True) -> None:
    """Have the one node verified with these GPUs in its evidence."""
    node = bench.nodes[0]
    said = {**node.lease.appraisal.workload_claims, **({receipt_gpus.CLAIM: True} if claims else {})}
    lease = node_lease("n0", key="second", more_claims=said)
    evidence = replace(lease.evidence, gpu_evidence=shown)
    node.lease = replace(lease, evidence=evidence, policy=cast(Any, PolicyOnGpus(required)))
    bench.peer_of(node).known = node.lease
    bench.publish_session(node.lease, node.target)
    bench.upstreams.take(bench.snapshot(node.provider()))
    await bench.upstreams.verify()


def receipted(bench: RouterBench) -> list[str]:
    return [type(event).__name__ for event in bench.only_receipt().events if isinstance(event, ServedByNode)]


async def test_an_answer_of_the_gpus_that_were_appraised_is_released(bench: RouterBench, shown: GpuEvidence) -> None:
    await admit(bench, shown, required=True)
    bench.nodes[0].generated = replace(GENERATED, gpus=receipt_gpus.listed(shown.ueids))
    assert (await bench.run(prompt())).started.status == 200
    assert receipted(bench) == ["ServedByNode"]


@pytest.mark.parametrize("named", ['["7"]', None], ids=["others", "none"])
async def test_an_answer_of_others_or_of_none_is_kept_back(
    bench: RouterBench, shown: GpuEvidence, named: str | None
) -> None:
    await admit(bench, shown, required=True)
    bench.nodes[0].generated = replace(GENERATED, gpus=named)
    answer = await bench.run(prompt())
    assert (answer.started.status, json.loads(answer.body)["error"]["type"]) == (502, "upstream_error")
    assert (receipted(bench), aborts(bench.only_receipt())) == ([], ["upstream_failed"])


@pytest.mark.parametrize("events", [2, len(STREAMED)], ids=["without an end", "with its end"])
async def test_a_stream_from_other_gpus_is_a_failed_one(bench: RouterBench, shown: GpuEvidence, events: int) -> None:
    """What it said is receipted, and that no node is proven to have said it."""
    await admit(bench, shown, required=True)
    bench.nodes[0].stream(*STREAMED[:events])
    bench.nodes[0].generated = replace(GENERATED, gpus='["7"]')
    answer = await bench.run(prompt(stream=True))
    assert (b'"type":"upstream_error"' in answer.body) is (events < len(STREAMED))
    assert (receipted(bench), aborts(bench.only_receipt())) == ([], ["upstream_failed"])


async def test_gpus_that_no_evidence_shows_are_believed_by_nobody(bench: RouterBench) -> None:
    await admit(bench, None, required=False)
    bench.nodes[0].generated = replace(GENERATED, gpus='["7"]')
    assert (await bench.run(prompt())).started.status == 502


@pytest.mark.parametrize(("required", "claims"), [(False, True), (True, False)], ids=["not needed", "earlier version"])
async def test_a_node_need_not_name_gpus_that_nobody_needs_or_from_before_receipts_did(
    bench: RouterBench, shown: GpuEvidence, required: bool, claims: bool
) -> None:
    await admit(bench, shown, required=required, claims=claims)
    bench.nodes[0].generated = GENERATED
    assert (await bench.run(prompt())).started.status == 200
