"""GPUs of a running guest come, go and change their mode; whoever serves on them proves itself anew, or not at all."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from libs.errors import MeshError
from libs.gpus.collector import collecting
from libs.gpus.observed import Observed
from libs.identity.gpu import Gpus, GuestDevices
from libs.identity.gpu_watch import GpuSettings, GpuStanding, GpuWatch
from libs.identity.member import Member, join
from libs.policy.revocation import RevocationKind
from libs.tee.appraisal import AppraisalContext, OwnNonce, appraise
from libs.tee.dstack import Guest
from libs.tee.nvidia.evidence import GpuRule, verify_gpu_evidence
from libs.tee.nvidia.keys import Issuer
from services.devtee.gpus import Gpus as DevelopmentGpus
from services.devtee.gpus import Mode
from services.devtee.machine import Machine
from services.devtee.nras import ISSUER
from tests.fakes.gpu_collector import CONFIDENTIAL, PROTECTED_PCIE, has_nvml
from tests.fakes.gpu_collector import Machine as Collected
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh
from tests.fakes.joining import Surroundings, surroundings

NONCE = hashlib.sha256(b"asked").digest()


@pytest.fixture
def machine() -> Machine:
    """A machine of its own: its GPUs change."""
    return Machine.create(int(time.time()))


@dataclass(slots=True)
class Watched:
    member: Member
    gpus: DevelopmentGpus
    watch: GpuWatch
    around: Surroundings

    @property
    def standing(self) -> GpuStanding:
        return self.member.gpus

    def shown(self) -> set[str]:
        """The UEIDs that this service's evidence proves, under the policy of now."""
        evidence, policy = self.member.identity.current.evidence, self.member.policy.current
        context = AppraisalContext(
            int(time.time()), evidence.spki, OwnNonce(evidence.challenge.nonce), policy_version=policy.version
        )
        verdict = appraise(evidence, policy.rules("router"), context).gpu
        assert verdict is not None
        return {device.ueid for device in verdict.devices}

    def there(self) -> set[str]:
        return {gpu.ueid for gpu in self.gpus.devices}


@asynccontextmanager
async def watched(mesh: JoinedMesh) -> AsyncIterator[Watched]:
    """A member that needs a GPU, and a watch that looks when it is told to."""
    mesh.require_gpu("router")
    async with (
        surroundings(mesh, mesh.kms()) as around,
        join(around.settings, "router", {}, gpus=GpuSettings(look_seconds=60)) as member,
    ):
        source = Gpus(GuestDevices(member.guest), around.settings.attestation_bootstrap, TRUST_DOMAIN)
        watch = GpuWatch(member.identity, member.policy, "router", source, member.gpus)
        await watch.look()
        yield Watched(member, mesh.machine.gpus, watch, around)


def _now() -> int:
    return int(time.time())


def _unplugged(gpus: DevelopmentGpus) -> None:
    gpus.unplug(gpus.devices[0])


def _plugged(gpus: DevelopmentGpus) -> None:
    gpus.plug(_now())


def _replaced(gpus: DevelopmentGpus) -> None:
    gpus.unplug(gpus.devices[0])
    gpus.plug(_now())


async def test_gpus_that_stay_are_judged_once(mesh: JoinedMesh) -> None:
    async with watched(mesh) as node:
        before = node.member.identity.current
        await node.watch.look()
        assert node.standing.is_judged
        assert node.member.identity.current is before


@pytest.mark.parametrize("change", [_unplugged, _plugged, _replaced])
async def test_gpus_that_change_are_judged_anew_before_anything_is_served(
    mesh: JoinedMesh, change: Callable[[DevelopmentGpus], None]
) -> None:
    mesh.machine.gpus.plug(_now())
    async with watched(mesh) as node:
        before = node.member.identity.current
        served = asyncio.create_task(_serve(node.standing))
        doubted = asyncio.create_task(node.standing.until_doubted())
        await asyncio.sleep(0)
        change(node.gpus)
        assert node.shown() != node.there()
        await node.watch.look()
        assert doubted.done()
        with pytest.raises(MeshError) as ended:
            await served
        assert ended.value.reason == "GPUS_NOT_JUDGED"
        assert node.standing.is_judged
        assert node.shown() == node.there()
        assert before.certificate.spki_sha256 in node.standing.outdated
        assert node.member.identity.current.certificate.spki_sha256 not in node.standing.outdated


async def _serve(standing: GpuStanding) -> None:
    with standing.hold():
        await asyncio.Event().wait()


@pytest.mark.parametrize("gone", ["mode", "devices"])
async def test_without_confidential_mode_or_without_a_gpu_nothing_is_served(mesh: JoinedMesh, gone: str) -> None:
    async with watched(mesh) as node:
        (gpu,), before = node.gpus.devices, node.member.identity.current
        if gone == "mode":
            node.gpus.mode = Mode.OFF
        else:
            node.gpus.unplug(gpu)
        await node.watch.look()
        assert (node.standing.is_judged, node.standing.why) == (False, "GUEST_REFUSED")
        with pytest.raises(MeshError) as refused, node.standing.hold():
            raise AssertionError("served")
        assert refused.value.reason == "GPUS_NOT_JUDGED"
        # Neither does it get another certificate, whoever asks for it.
        with pytest.raises(MeshError):
            await node.member.identity.renew()
        assert node.member.identity.current is before
        node.gpus.mode, node.gpus.devices = Mode.CONFIDENTIAL, (gpu,)
        # It is the same GPU, and it was reset meanwhile: the old evidence does not speak for it.
        await node.watch.look()
        assert node.standing.is_judged
        assert node.member.identity.current is not before
        assert before.certificate.spki_sha256 in node.standing.outdated


async def test_a_service_does_not_start_on_gpus_without_confidential_mode(mesh: JoinedMesh) -> None:
    mesh.machine.gpus.mode = Mode.OFF
    mesh.require_gpu("router")
    async with surroundings(mesh, mesh.kms()) as around:
        with pytest.raises(MeshError) as refused:
            async with join(around.settings, "router", {}):
                raise AssertionError("joined")
    assert refused.value.reason == "GUEST_REFUSED"


@pytest.mark.skipif(has_nvml(), reason="this machine has NVIDIA's driver")
async def test_a_service_that_is_to_ask_nvidias_libraries_does_not_start_without_them(mesh: JoinedMesh) -> None:
    mesh.require_gpu("router")
    async with surroundings(mesh, mesh.kms()) as around:
        with pytest.raises(MeshError) as refused:
            async with join(around.settings, "router", {}, gpus=GpuSettings(source="nvidia")):
                raise AssertionError("joined")
    assert refused.value.reason == "GPU_LIBRARY_MISSING"


async def test_developer_tools_are_found_when_the_vendor_judges(mesh: JoinedMesh) -> None:
    async with watched(mesh) as node:
        node.gpus.mode = Mode.DEVELOPER_TOOLS
        with pytest.raises(MeshError) as refused:
            await node.member.identity.renew()
        assert refused.value.reason == "GPU_MEASUREMENTS_FAILED"
        node.gpus.plug(_now())
        await node.watch.look()
        assert (node.standing.is_judged, node.standing.why) == (False, "GPU_MEASUREMENTS_FAILED")


async def test_a_gpu_that_operators_withdrew_is_not_served_on_when_it_appears(mesh: JoinedMesh) -> None:
    async with watched(mesh) as node:
        new = node.gpus.plug(_now())
        revocation = mesh.revocation(RevocationKind.DEVICE, new.ueid)
        node.around.kms.core.policy.accept_revocations([revocation])
        await node.watch.look()
        assert (node.standing.is_judged, node.standing.why) == (False, "GPU_DEVICE_REVOKED")
        node.gpus.unplug(new)
        await node.watch.look()
        assert node.standing.is_judged
        assert node.shown() == node.there()


async def test_a_guest_that_cannot_be_asked_ends_nothing_that_runs_and_lets_nothing_begin(mesh: JoinedMesh) -> None:
    class Away(GuestDevices):
        """The guest's agent when nobody answers on its socket."""

        async def observe(self) -> Observed:
            async with Guest(node.around.settings.guest_socket.with_name("nobody.sock")):
                raise AssertionError("answered")

    async with watched(mesh) as node:
        source = Gpus(Away(node.member.guest), "127.0.0.1:9", TRUST_DOMAIN)
        watch = GpuWatch(node.member.identity, node.member.policy, "router", source, node.standing)
        served = asyncio.create_task(_serve(node.standing))
        await asyncio.sleep(0)
        await watch.look()
        assert (node.standing.is_judged, node.standing.why) == (False, "GUEST_UNAVAILABLE")
        await asyncio.sleep(0)
        assert not served.done()
        served.cancel()


async def test_where_policy_asks_for_no_gpu_none_is_watched(mesh: JoinedMesh) -> None:
    async with surroundings(mesh, mesh.kms()) as around, join(around.settings, "router", {}) as member:
        source = Gpus(GuestDevices(member.guest), around.settings.attestation_bootstrap, TRUST_DOMAIN)
        mesh.machine.gpus.mode = Mode.OFF
        member.gpus.doubt("GPU_CHANGED", frozenset({member.identity.current.certificate.spki_sha256}))
        await GpuWatch(member.identity, member.policy, "router", source, member.gpus).look()
        assert (member.gpus.is_judged, member.gpus.outdated) == (True, frozenset())


async def test_a_policy_that_comes_to_ask_for_a_gpu_is_obeyed_at_the_next_look(mesh: JoinedMesh) -> None:
    before = mesh.seed
    mesh.require_gpu("router")
    draft, mesh.seed = mesh.draft, before
    kms = mesh.kms()
    async with surroundings(mesh, kms) as around, join(around.settings, "router", {}) as member:
        source = Gpus(GuestDevices(member.guest), around.settings.attestation_bootstrap, TRUST_DOMAIN)
        watch = GpuWatch(member.identity, member.policy, "router", source, member.gpus)
        await watch.look()
        assert member.identity.current.gpus is None
        following = mesh.sign({**draft, "version": 2, "previous": kms.policy.current.digest.hex()})
        for keeper in (kms.policy, member.policy):
            keeper.accept(following)
        await watch.look()
        assert member.gpus.is_judged
        assert member.identity.current.gpus is not None


async def test_looks_are_sooner_while_there_is_doubt(mesh: JoinedMesh) -> None:
    pauses: list[float] = []

    class Enough(Exception):
        pass

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        node.gpus.mode = Mode.CONFIDENTIAL if len(pauses) in (5, 6) else Mode.OFF
        if len(pauses) == 8:
            raise Enough

    async with watched(mesh) as node:
        with pytest.raises(Enough):
            await node.watch.keep(9, sleep)
    assert pauses == [9, 2, 4, 8, 9, 9, 9, 2]


@pytest.mark.parametrize("settings", [{"source": "nvml"}, {"look_seconds": 0.5}, {"look_seconds": 61.0}])
def test_settings_that_would_look_away_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        GpuSettings(**settings)  # type: ignore[arg-type]


async def test_through_the_libraries_switches_are_judged_beside_their_gpus(mesh: JoinedMesh, tmp_path: Path) -> None:
    gpus = mesh.machine.gpus
    gpus.plug(_now())
    gpu, switch = gpus.devices
    devices = Collected(tmp_path / "devices.json", gpu.vendor, [gpu], [switch], PROTECTED_PCIE)
    devices.write()
    rule = GpuRule(
        issuers={ISSUER: Issuer({}, (gpus.nras.authority.root.der,))},
        device_roots=(gpus.device_root,),
        allowed_ueids=frozenset(),
        revoked_ueids=frozenset(),
        allowed_models=frozenset(),
        maximum_token_age_seconds=600,
        reports_required=True,
    )
    async with surroundings(mesh, mesh.kms()) as around, collecting(devices.command) as collector:
        source = Gpus(collector, around.settings.attestation_bootstrap, TRUST_DOMAIN)
        answer = await source.evidence(NONCE)
        assert answer.observed == await source.observe()
        verdict = verify_gpu_evidence(answer.evidence, NONCE, rule, _now())
        assert [device.ueid for device in verdict.devices] == [gpu.ueid]
        assert [device.ueid for device in verdict.switches] == [switch.ueid]
        with pytest.raises(MeshError) as refused:
            verify_gpu_evidence(answer.evidence, NONCE, replace(rule, revoked_ueids=frozenset({switch.ueid})), _now())
        assert refused.value.reason == "GPU_DEVICE_REVOKED"


async def test_what_the_libraries_refuse_is_no_evidence(mesh: JoinedMesh, tmp_path: Path) -> None:
    gpu = mesh.machine.gpus.devices[0]
    devices = Collected(tmp_path / "devices.json", gpu.vendor, [gpu], mode=replace(CONFIDENTIAL, devtools=1))
    devices.write()
    async with watched(mesh) as node, collecting(devices.command) as collector:
        source = Gpus(collector, node.around.settings.attestation_bootstrap, TRUST_DOMAIN)
        watch = GpuWatch(node.member.identity, node.member.policy, "router", source, node.standing)
        await watch.look()
        assert (node.standing.is_judged, node.standing.why) == (False, "GPU_DEVTOOLS_ON")
