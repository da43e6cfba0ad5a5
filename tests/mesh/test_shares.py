"""A tenant at two routers of a mesh: at a node that takes one of its requests at once, they share one place."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.faults.load import Reply, open_client
from tests.mesh.effects import verified_receipt
from tests.mesh.https import Https
from tests.mesh.nodes import AnotherNode, another_node
from tests.mesh.patience import until
from tests.mesh.routers import another_router
from tests.mesh.running import RunningMesh, short_folder, teemesh

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(400)]

_LONG_TOKENS = 1900


@pytest.fixture
def node(mesh: RunningMesh, https: Https) -> Iterator[AnotherNode]:
    with short_folder() as folder, another_node(mesh, https, folder, tenant_parallel=1) as found:
        yield found


@pytest.fixture
def second(mesh: RunningMesh, node: AnotherNode) -> Iterator[Https]:
    """Another router, which knows the node as well."""
    with another_router(mesh) as router:
        until(lambda: replace(node, https=router.https).serves(), node.log)
        yield router.https


def other_tenant(mesh: RunningMesh) -> str:
    """A new tenant's API key."""
    signing = ("--sign-key", str(mesh.state / "operators" / "tenant-admin.pem"))
    done = teemesh("tenants", "create", "Other", *signing, "--json", "--mesh", str(mesh.state / "mesh.json"))
    assert done.returncode == 0, done.stderr
    key: str = json.loads(done.stdout)["api_key"]
    return key


async def test_one_tenant_has_one_place_at_a_node_through_two_routers_and_another_has_its_own(
    mesh: RunningMesh, node: AnotherNode, second: Https
) -> None:
    session = node.session()
    assert session is not None
    elsewhere = {**mesh.mesh, "router_url": second.url}
    others_key = await asyncio.to_thread(other_tenant, mesh)
    async with (
        open_client(mesh.mesh) as first_door,
        open_client(elsewhere) as second_door,
        open_client({**elsewhere, "api_key": others_key}) as others_door,
        asyncio.TaskGroup() as tasks,
    ):
        holding = Reply(stream=True)
        asked = node.question(session, max_tokens=_LONG_TOKENS, stream=True, ignore_eos=True)
        task = tasks.create_task(first_door.follow(asked, holding))
        async with asyncio.timeout(60):
            await holding.begun.wait()
        refused = {}
        for door in (first_door, second_door):
            request = node.question(session, max_tokens=2)
            reply = await door.follow(request, Reply(stream=False))
            assert (reply.status, reply.error_type) == (429, "overloaded")
            refused[request] = (door, reply)
        served = await others_door.follow(node.question(session, max_tokens=2), Reply(stream=False))
        assert (served.status, holding.ended) == (200, False)
        task.cancel()
        for request, (door, reply) in refused.items():
            with short_folder() as folder:
                events = await verified_receipt(mesh, door, request, reply, folder)
            assert events["teemesh.abort"]["reason"] == "upstream_failed"
    await asyncio.to_thread(until, node.serves, node.log)
