"""A node whose disk takes nothing: it serves on, takes no newer policy, says so, and makes up for it.

What stands for the full disk is the limit on file sizes of the node's own processes, so that the others keep theirs.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.full_disk import full_for
from tests.faults.load import Reply, open_client
from tests.mesh.effects import verified_receipt
from tests.mesh.https import Https
from tests.mesh.nodes import AnotherNode, another_node
from tests.mesh.operating import publish
from tests.mesh.patience import until
from tests.mesh.running import RunningMesh, short_folder

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(400)]


@pytest.fixture
def node(mesh: RunningMesh, https: Https) -> Iterator[AnotherNode]:
    with short_folder() as folder, another_node(mesh, https, folder) as found:
        yield found


def files(node: AnotherNode) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in node.folder.rglob("*") if path.is_file()}


def newest_policy(node: AnotherNode) -> int:
    versions = (node.folder / "state" / "policy").glob("*.json")
    return max(int(path.stem) for path in versions)


async def test_a_node_on_a_full_disk_answers_and_restarts_its_engine(
    mesh: RunningMesh, node: AnotherNode, tmp_path: Path
) -> None:
    former = node.engine
    assert former is not None
    with full_for([node.pid, former]):
        before = files(node)
        session = node.session()
        assert session is not None
        async with open_client(mesh.mesh) as client:
            for stream in (False, True):
                asked = node.question(session, max_tokens=4, stream=stream)
                reply = await client.follow(asked, Reply(stream=stream))
                assert (reply.status, reply.is_answer, reply.error_type) == (200, True, None)
                with short_folder() as folder:
                    await verified_receipt(mesh, client, asked, reply, folder)
        os.kill(former, signal.SIGKILL)
        await asyncio.to_thread(until, lambda: node.engine not in (None, former) and node.serves(), node.log)
        assert files(node) == before, "all this writes nothing"


def test_a_policy_that_a_node_cannot_keep_waits_until_it_can(
    mesh: RunningMesh, node: AnotherNode, tmp_path: Path
) -> None:
    known = newest_policy(node)
    with full_for([node.pid]):
        publish(mesh, {}, tmp_path)
        until(lambda: "POLICY_NOT_KEPT" in node.log(), node.log)
        assert node.serves()
        assert newest_policy(node) == known
    until(lambda: newest_policy(node) > known, node.log)
    until(node.serves, node.log)
