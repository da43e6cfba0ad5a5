"""Responsible for what callers wait for at a KMS: a certificate for evidence, a key by a released name.

The KMS, its ledger and its broker are processes of their own; callers and the bare comparisons run in this one.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from teemesh.kms.v1 import bootstrap_pb2, bootstrap_pb2_grpc, kms_pb2, kms_pb2_grpc

from libs.errors import MeshError
from libs.identity.authority import ProvenKms, proven_kms
from libs.identity.certificate import make_csr
from libs.identity.member import Member, join
from libs.identity.sealed import ReceiverKey, seal
from libs.rpc.errors import remote_errors
from libs.tee.challenge import Challenge
from services.devtee.machine import Machine
from tests.bench.bare_crypto import operations
from tests.bench.calls import plain
from tests.bench.report import Row, Section
from tests.bench.samples import Action, Samples
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh, KmsCore
from tests.faults.kms_processes import KmsMesh
from tests.faults.patience import until

_SECONDS = 10.0
_TIMES = 300
_ISSUANCE_GOAL_MS = 25.0
_RELEASE_GOAL_MS = 10.0
_CERTIFICATE_BYTES = 600
_KEY = bytes(32)

Prepare = Callable[[], Awaitable[Action]]
"""Does what is not to be measured, each time anew."""


@asynccontextmanager
async def _running(folder: Path) -> AsyncIterator[tuple[KmsMesh, KmsCore]]:
    mesh = JoinedMesh(folder, Machine.create(int(time.time())))
    async with KmsMesh(mesh).prepared() as kms:
        await kms.kms.start()
        if not await kms.kms.ready():
            raise RuntimeError(f"the KMS does not start: {kms.kms.log.read_text()}")
        core = mesh.kms("core", root=await kms.root_of(kms.kms))
        async with kms.logging(core):
            yield kms, core


@asynccontextmanager
async def _releasing(kms: KmsMesh, role: str, name: str) -> AsyncIterator[tuple[Prepare, Member, ReceiverKey]]:
    """A member that asks the KMS for one key, over and over; it can from the start of the block."""
    mesh, receiver = kms.mesh, ReceiverKey()
    async with mesh.guest(mesh.tds[role]) as socket:
        settings = mesh.settings(
            role,
            "bench",
            socket,
            kms=(kms.address("kms"),),
            kms_bootstrap=(kms.address("kms_bootstrap"),),
            attestation_bootstrap=kms.attestation,
        )
        async with join(settings, role, {"hpke_key": receiver.public.hex(), "models": []}) as member:
            peer = member.peer("kms", kms.address("kms"))
            request = kms_pb2.ReleaseKeyRequest(name=name, algorithm=kms_pb2.KEY_ALGORITHM_AES_256)

            async def act() -> None:
                stub = kms_pb2_grpc.KmsServiceStub(await peer.channel(_SECONDS))
                with remote_errors():
                    await stub.ReleaseKey(request, timeout=_SECONDS)

            async def is_released() -> bool:
                try:
                    await act()
                except MeshError:
                    return False
                return True

            async def prepare() -> Action:
                return act

            await until(is_released)
            yield prepare, member, receiver


def _issuing(mesh: JoinedMesh, proven: ProvenKms) -> Prepare:
    """Services, each of which has its evidence and wants its certificate: one gets no more than so many a minute."""
    stub = bootstrap_pb2_grpc.KmsBootstrapServiceStub(proven.channel)
    numbers = count()

    async def prepare() -> Action:
        offered = await stub.CreateIssuanceChallenge(bootstrap_pb2.CreateIssuanceChallengeRequest(), timeout=_SECONDS)
        key = ec.generate_private_key(ec.SECP256R1())
        document = mesh.evidence("router", Challenge.decode(offered.challenge), key).document
        instance = f"bench-{next(numbers)}"
        request = bootstrap_pb2.IssueCertificateRequest(csr=make_csr(key), document=document, instance=instance)

        async def act() -> None:
            await stub.IssueCertificate(request, timeout=_SECONDS)

        return act

    return prepare


def _bare_issuance(mesh: JoinedMesh, core: KmsCore) -> Prepare:
    """The quote and the challenge verified, one P-256 signature made."""

    async def prepare() -> Action:
        key = ec.generate_private_key(ec.SECP256R1())
        evidence = mesh.evidence("router", core.challenges.issue("certificate"), key)
        found = operations(evidence, mesh.machine.vendor_root, b"", int(time.time()))

        async def act() -> None:
            for operation in found:
                operation()
            core.ca.key.sign(bytes(_CERTIFICATE_BYTES), ec.ECDSA(hashes.SHA256()))

        return act

    return prepare


def _bare_release(call: Action, receiver: ReceiverKey) -> Prepare:
    """One HPKE seal, and one call on gRPC's own mutual TLS."""
    public = receiver.public.hex()

    async def act() -> None:
        seal(_KEY, public, b"bench")
        await call()

    async def prepare() -> Action:
        return act

    return prepare


async def _in_turns(base: Prepare, ours: Prepare) -> tuple[Samples, Samples]:
    """Take so many samples of each, one of the one after one of the other."""
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(_TIMES):
        for prepare, seconds in zip((base, ours), taken, strict=True):
            action = await prepare()
            began = time.perf_counter()
            await action()
            seconds.append(time.perf_counter() - began)
    of_base, of_ours = (Samples(seconds, elapsed=sum(seconds)) for seconds in taken)
    return of_base, of_ours


def _goal(what: str, taken: Samples, goal_ms: float) -> str:
    found_ms = taken.p50 * 1000
    return f"{what}: median {found_ms:.1f} ms, {'within' if found_ms < goal_ms else 'BEYOND'} {goal_ms:g} ms"


async def measure(folder: Path) -> Section:
    async with _running(folder) as (kms, core):
        policy = kms.mesh.keeper("bench").current
        async with (
            proven_kms(kms.address("kms_bootstrap"), TRUST_DOMAIN, policy) as proven,
            _releasing(kms, "ledger", "ledger-keyring") as (boot_class, _, _),
            _releasing(kms, "node", "models/a") as (logged, node, receiver),
            kms.mesh.member("kms", core, instance="bare") as bare_kms,
            plain(node, bare_kms) as bare_call,
        ):
            base_issued, issued = await _in_turns(_bare_issuance(kms.mesh, core), _issuing(kms.mesh, proven))
            bare = _bare_release(bare_call, receiver)
            base_boot, released_boot = await _in_turns(bare, boot_class)
            base_logged, released = await _in_turns(bare, logged)
    return Section(
        "kms",
        "bare: dcap_qvl, the challenge's signature and one P-256 signature; HPKE seal and plain mutual TLS call",
        "a KMS process over mutual TLS, decisions durable",
        [
            Row("certificate for evidence, its quote made before", base_issued, issued),
            Row("key release, boot class: durable in the outbox first", base_boot, released_boot),
            Row("key release, any other: acknowledged by the ledger first", base_logged, released),
        ],
        [
            _goal("issuance", issued, _ISSUANCE_GOAL_MS),
            _goal("release, boot class", released_boot, _RELEASE_GOAL_MS),
            _goal("release with the ledger's acknowledgement", released, _RELEASE_GOAL_MS),
        ],
    )
