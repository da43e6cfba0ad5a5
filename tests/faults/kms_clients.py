"""Those who use a KMS while it dies: what each was promised, and what it must never be told.

An operator begins epochs, a node has keys released, a service obtains certificates, each again and again.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import count

import grpc.aio
from cryptography.hazmat.primitives.asymmetric import ec
from teemesh.kms.v1 import kms_pb2 as pb
from teemesh.kms.v1 import kms_pb2_grpc as pb_grpc

from libs.errors import Code, MeshError
from libs.identity.authority import KmsAuthority
from libs.identity.certificate import Subject, key_pem, make_csr, parse, pem_of
from libs.identity.member import Member, join
from libs.identity.sealed import ReceiverKey, release_info
from libs.policy.releases import KeyAlgorithm
from libs.rpc.channel import open_channel
from libs.rpc.errors import remote_errors
from libs.tee.challenge import Challenge
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh, KmsCore
from tests.faults.kms_processes import KmsMesh

NAMES = ("models/a", "models/b", "models/c")
_CALL_SECONDS = 3.0
_PAUSE_SECONDS = 0.02
_AGAIN_SECONDS = 0.1
_PASSES = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.ABORTED})
"""What a caller may be told of a KMS that is away, or of a key whose next epoch began while it was asked for. Whatever
else it is told is wrong.
"""


@dataclass(slots=True)
class Promised:
    """What clients were told, and what they were told wrongly."""

    epochs: dict[str, int] = field(default_factory=lambda: dict.fromkeys(NAMES, 1))
    """The newest epoch of each key that was acknowledged to somebody."""
    released: Counter[tuple[str, int]] = field(default_factory=Counter)
    certified: set[str] = field(default_factory=set)
    """SHA-256 of the keys in certificates that arrived."""
    refused: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    rotated: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by each acknowledged rotation."""

    def take(self, asked: str, error: MeshError) -> None:
        self.refused[error.reason] += 1
        if error.code not in _PASSES:
            self.wrong.append(f"{asked}: {error.reason}: {error}")


@dataclass(frozen=True, slots=True)
class Request:
    """What a service brings to get a certificate."""

    mesh: JoinedMesh
    key: ec.EllipticCurvePrivateKey
    instance: str = "certified"

    @property
    def csr(self) -> bytes:
        return make_csr(self.key)

    async def prove(self, challenge: Challenge) -> bytes:
        return self.mesh.evidence("router", challenge, self.key).document


@asynccontextmanager
async def operator_channel(core: KmsCore, role: str, target: str) -> AsyncIterator[grpc.aio.Channel]:
    """An operator's channel to a service, under the mesh's CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = core.ca.issue_svid(Subject(TRUST_DOMAIN, "operator", "ada", None), key.public_key(), time.time())
    async with open_channel(
        target,
        root_pem=pem_of(core.ca.certificate),
        server_name=f"{role}.{TRUST_DOMAIN}",
        key_pem=key_pem(key),
        certificate_pem=pem_of(certificate),
    ) as channel:
        yield channel


@asynccontextmanager
async def using(kms: KmsMesh, core: KmsCore, promised: Promised) -> AsyncIterator[None]:
    """Use the KMS until the block ends."""
    mesh, receiver = kms.mesh, ReceiverKey()
    async with mesh.guest(mesh.tds["node"]) as socket:
        settings = mesh.settings(
            "node",
            "1",
            socket,
            kms=(kms.address("kms"),),
            kms_bootstrap=(kms.address("kms_bootstrap"),),
            attestation_bootstrap=kms.attestation,
        )
        claims = {"hpke_key": receiver.public.hex(), "models": []}
        async with join(settings, "node", claims) as node, asyncio.TaskGroup() as tasks:
            running = [
                *(tasks.create_task(_rotate(kms, core, name, promised)) for name in NAMES),
                tasks.create_task(_release(kms, core, node, receiver, promised)),
                tasks.create_task(_certify(kms, promised)),
            ]
            yield
            for task in running:
                task.cancel()


async def _rotate(kms: KmsMesh, core: KmsCore, name: str, promised: Promised) -> None:
    """Begin epoch after epoch. One that nobody acknowledged is asked for again."""
    while True:
        try:
            async with operator_channel(core, "kms", kms.address("kms")) as channel:
                stub = pb_grpc.KmsServiceStub(channel)
                while True:
                    epoch = promised.epochs[name] + 1
                    with remote_errors():
                        await stub.RotateKey(pb.RotateKeyRequest(name=name, epoch=epoch), timeout=_CALL_SECONDS)
                    promised.epochs[name] = epoch
                    promised.rotated.set()
                    await asyncio.sleep(_PAUSE_SECONDS)
        except MeshError as error:
            promised.take(f"rotate {name}", error)
        await asyncio.sleep(_AGAIN_SECONDS)


async def _release(kms: KmsMesh, core: KmsCore, node: Member, receiver: ReceiverKey, promised: Promised) -> None:
    """Have any epoch of any key released, and hold its bytes against what the root gives."""
    chance = random.Random(0)  # noqa: S311 - which epoch is no secret
    peer = node.peer("kms", kms.address("kms"))
    while True:
        name = chance.choice(NAMES)
        known = promised.epochs[name]
        request = pb.ReleaseKeyRequest(
            name=name, epoch=chance.choice((0, chance.randint(1, known))), algorithm=pb.KEY_ALGORITHM_AES_256
        )
        try:
            stub = pb_grpc.KmsServiceStub(await peer.channel(_CALL_SECONDS))
            with remote_errors():
                answer = await stub.ReleaseKey(request, timeout=_CALL_SECONDS)
        except MeshError as error:
            promised.take(f"release {name} {request.epoch}", error)
            await asyncio.sleep(_AGAIN_SECONDS)
        else:
            material = receiver.open(answer.sealed_key, release_info(name, answer.epoch, node.spiffe_id))
            promised.released[name, answer.epoch] += 1
            if material != core.keyring.material(name, answer.epoch, KeyAlgorithm.AES_256):
                promised.wrong.append(f"{name} {answer.epoch} is another key than before")
            if request.epoch not in (0, answer.epoch) or answer.newest_epoch < known:
                promised.wrong.append(
                    f"{name} {request.epoch} was released as {answer.epoch} of {answer.newest_epoch}, not {known}"
                )
        await asyncio.sleep(_PAUSE_SECONDS)


async def _certify(kms: KmsMesh, promised: Promised) -> None:
    """Obtain a certificate, over and over."""
    policy = kms.mesh.keeper("certified").current
    # Each time as another instance: one name has so many a minute.
    for number in count():
        key = ec.generate_private_key(ec.SECP256R1())
        try:
            authority = KmsAuthority((kms.address("kms_bootstrap"),), TRUST_DOMAIN)
            async with asyncio.timeout(_CALL_SECONDS):
                issued = await authority.issue(Request(kms.mesh, key, f"certified-{number}"), policy)
        except TimeoutError:
            promised.refused["TIMEOUT"] += 1
        except MeshError as error:
            promised.take("certify", error)
            await asyncio.sleep(_AGAIN_SECONDS)
        else:
            promised.certified.add(sha256(parse(issued.certificate).spki).hexdigest())
        await asyncio.sleep(_PAUSE_SECONDS)
