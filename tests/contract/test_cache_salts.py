"""The salts of prefix caches: one key for each measurement, from the KMS or not at all."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from teemesh.kms.v1 import kms_pb2

from libs.aci import receipt
from libs.aci.endpoints import CHAT, Endpoint
from libs.aci.receipt_events import Generated, PolicyInForce
from libs.errors import MeshError
from libs.identity.gpu_watch import GpuStanding
from libs.identity.sealed import ReceiverKey
from libs.policy.releases import cache_salt_key
from services.devtee.machine import VirtualTd
from services.node.channel import Answer, EngineChannel
from services.node.engine import EngineLoad
from services.node.generation import Claimed, Conclusion, Generation, Head, Request
from services.node.receipts import ReceiptSigner
from services.node.requests_fault import RequestsFault
from services.node.salting import Release, Salts, receive_salts, secrets_of_kms
from tests.fakes.engine_channels import channel_to
from tests.fakes.joined_mesh import JoinedMesh, KmsCore, measurement_of
from tests.fakes.kms_callers import operator
from tests.fakes.running_kms import RunningKms, running_kms

MODEL = "m"
POLICY = PolicyInForce(1, "sha256:" + "0" * 64)


def rule(td: VirtualTd, **changes: Any) -> dict[str, Any]:
    """What a drafted policy says of each node compose."""
    compose = td.compose_hash.hex()
    return {"name": cache_salt_key(compose), "roles": ["node"], "compose_hashes": [compose], **changes}


@pytest.fixture
def other(mesh: JoinedMesh) -> VirtualTd:
    """A node of another image, which policy allows as well."""
    td = mesh.boot("node", "another image")
    grant = mesh.draft["roles"]["node"]
    allowed = {**grant, "measurements": [*grant["measurements"], measurement_of(td).to_json()]}
    mesh.draft = {**mesh.draft, "roles": {**mesh.draft["roles"], "node": allowed}}
    mesh.seed = mesh.sign(mesh.draft)
    return td


@pytest.fixture
async def running(mesh: JoinedMesh, other: VirtualTd, kms: KmsCore) -> AsyncIterator[RunningKms]:
    async with running_kms(mesh, kms) as found:
        enact(mesh, found, rule(mesh.tds["node"]), rule(other))
        yield found


def enact(mesh: JoinedMesh, running: RunningKms, *rules: dict[str, Any]) -> None:
    running.core.policy.accept(mesh.successor(running.core.policy.current, key_releases=list(rules)))


@asynccontextmanager
async def releasing(
    mesh: JoinedMesh, running: RunningKms, *, instance: str = "1", td: VirtualTd | None = None, role: str = "node"
) -> AsyncIterator[Release]:
    receiver = ReceiverKey()
    claims: dict[str, Any] = {"hpke_key": receiver.public.hex()} | ({"models": []} if role == "node" else {})
    async with mesh.member(role, running.core, instance=instance, claims=claims, td=td) as member:
        yield secrets_of_kms(member.peer("kms", running.target), member.identity, receiver)


async def salts_of(mesh: JoinedMesh, running: RunningKms, td: VirtualTd, instance: str = "1") -> Salts:
    async with releasing(mesh, running, instance=instance, td=td) as release:
        return await receive_salts(release, td.compose_hash.hex())


async def refusal_of(release: Release, compose_hash: str) -> str:
    async def never(seconds: float) -> None:
        raise AssertionError("it was to be asked again")

    with pytest.raises(MeshError) as refused:
        await receive_salts(release, compose_hash, never)
    return refused.value.reason


async def test_a_restarted_node_and_its_replica_make_the_same_salts(mesh: JoinedMesh, running: RunningKms) -> None:
    mine = mesh.tds["node"]
    first, again, replica = [await salts_of(mesh, running, mine, instance) for instance in ("1", "1", "2")]
    assert first.of("tenant-a") == again.of("tenant-a") == replica.of("tenant-a")
    assert len(bytes.fromhex(first.of("tenant-a"))) == 32


async def test_two_tenants_never_have_one_salt(mesh: JoinedMesh, running: RunningKms) -> None:
    """Not those either whose ids begin alike, or would run into what stands before them."""
    salts = await salts_of(mesh, running, mesh.tds["node"])
    tenants = ("a", "b", "ab", "a_", "A", "a" * 63, "a" * 64)
    assert len({salts.of(tenant) for tenant in tenants}) == len(tenants)


async def test_another_measurement_makes_other_salts_and_is_refused_this_ones_key(
    mesh: JoinedMesh, running: RunningKms, other: VirtualTd
) -> None:
    mine = await salts_of(mesh, running, mesh.tds["node"])
    theirs = await salts_of(mesh, running, other)
    assert mine.of("tenant-a") != theirs.of("tenant-a")
    async with releasing(mesh, running, td=other) as release:
        assert await refusal_of(release, mesh.tds["node"].compose_hash.hex()) == "KEY_NOT_ALLOWED"


async def test_another_role_is_refused_the_key(mesh: JoinedMesh, running: RunningKms) -> None:
    async with releasing(mesh, running, role="router") as release:
        assert await refusal_of(release, mesh.tds["node"].compose_hash.hex()) == "KEY_NOT_ALLOWED"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (None, "KEY_NOT_ALLOWED"),
        ({"algorithm": "ed25519"}, "KEY_ALGORITHM_MISMATCH"),
        ({"compose_hashes": ["ab" * 32]}, "KEY_NOT_ALLOWED"),
    ],
)
async def test_without_a_key_there_are_no_salts(
    mesh: JoinedMesh, running: RunningKms, change: dict[str, Any] | None, reason: str
) -> None:
    mine = mesh.tds["node"]
    enact(mesh, running, *([] if change is None else [rule(mine, **change)]))
    async with releasing(mesh, running) as release:
        assert await refusal_of(release, mine.compose_hash.hex()) == reason


async def test_a_kms_that_cannot_log_the_release_is_asked_again(mesh: JoinedMesh, running: RunningKms) -> None:
    running.log.away = True
    pauses: list[float] = []

    async def back_after_two(seconds: float) -> None:
        pauses.append(seconds)
        running.log.away = len(pauses) < 2

    async with releasing(mesh, running) as release:
        await receive_salts(release, mesh.tds["node"].compose_hash.hex(), back_after_two)
    assert pauses == [0.2, 0.4]


async def test_a_new_epoch_makes_other_salts(mesh: JoinedMesh, running: RunningKms) -> None:
    mine = mesh.tds["node"]
    before = await salts_of(mesh, running, mine)
    async with operator(running) as ada:
        name = cache_salt_key(mine.compose_hash.hex())
        await ada.RotateKey(kms_pb2.RotateKeyRequest(name=name, epoch=2), timeout=10)
    after = await salts_of(mesh, running, mine)
    assert after.of("a") != before.of("a")
    assert (before.epoch, after.epoch) == (1, 2)


class SaltedEngine:
    """An engine behind a socket, which notes with which salt each prompt came."""

    ready = True
    salted = True
    lacks: frozenset[str] = frozenset()
    requests_faults: tuple[RequestsFault, ...] = ()
    calling = None
    endpoints = (CHAT,)
    load = EngineLoad(running=0, waiting=0, capacity=1)

    def __init__(self, channel: EngineChannel, seen: list[Any]) -> None:
        self._channel = channel
        self.seen = seen

    def post(
        self, endpoint: Endpoint, body: bytes, timeout_seconds: float, sequences: int = 1
    ) -> AbstractAsyncContextManager[Answer]:
        return self._channel.post(endpoint, body, timeout_seconds)

    async def until_ready(self) -> None: ...


@asynccontextmanager
async def engine(folder: Path) -> AsyncIterator[SaltedEngine]:
    seen: list[Any] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(json.loads(await request.read())["cache_salt"])
        return web.json_response({"choices": []})

    served = web.Application()
    served.router.add_post(CHAT.path, answer)
    async with channel_to(folder, served) as channel:
        yield SaltedEngine(channel, seen)


async def asked(
    generation: Generation, tenants: Sequence[str], **members: object
) -> list[tuple[int, str | None, int | None]]:
    """The status of each tenant's request, and the commitment in its receipt, with the epoch of the salt's key."""
    found: list[tuple[int, str | None, int | None]] = []
    for tenant in tenants:
        messages = [{"role": "user", "content": "Hi"}]
        body = json.dumps({"model": MODEL, "messages": messages, **members}).encode()
        async with aclosing(generation.generate(Request(CHAT.path, body, "r", tenant), 10.0)) as parts:
            head, *_, conclusion = [part async for part in parts]
        assert isinstance(head, Head)
        assert isinstance(conclusion, Conclusion)
        events = receipt.parse(conclusion.receipt).events
        said = [(e.cache_salt_sha256, e.cache_salt_key_epoch) for e in events if isinstance(e, Generated)]
        found.append((head.status, *(said[0] if said else (None, None))))
    return found


async def test_receipts_commit_to_the_same_salt_at_each_replica_and_a_tenants_own_is_refused(
    mesh: JoinedMesh, running: RunningKms, tmp_path: Path
) -> None:
    commitments: list[list[tuple[int, str | None, int | None]]] = []
    async with engine(tmp_path) as shared:
        for instance in ("1", "2"):
            salts = await salts_of(mesh, running, mesh.tds["node"], instance)
            claimed = Claimed("an engine", bytes(32), {MODEL: bytes(32)})
            generation = Generation(shared, claimed, ReceiptSigner(), lambda: POLICY, GpuStanding(), salts=salts)
            commitments.append(await asked(generation, ["a", "b", "a"]))
        stolen = shared.seen[0]
        assert len(set(shared.seen)) == 2
        assert await asked(generation, ["b"], cache_salt=stolen) == [(400, None, None)]
        assert len(shared.seen) == 6
    assert commitments[0] == commitments[1]
    (_, of_a, epoch), (_, of_b, _), (_, again, _) = commitments[0]
    assert of_a == again != of_b
    assert epoch == 1
    assert stolen not in str(commitments)
