"""A virtual TDX machine and its TDs: responsible for what each TD measures, and for quoting it.

Everything here is in memory and takes its keys and identities as values; `state` makes them last.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from libs import jcs
from libs.errors import Code, MeshError
from services.devtee.collateral import Collateral, CollateralShape, make_collateral
from services.devtee.eventlog import RUNTIME_REGISTER, Event, replay, runtime_event
from services.devtee.gpus import Gpus
from services.devtee.image import Image
from services.devtee.keys import AppKeys, MockKms
from services.devtee.pki import VendorPki
from services.devtee.platform import Platform
from services.devtee.quotes import TD_ATTRIBUTES, TdReport, make_quote

_REPORT_DATA_SIZE = 64


class ComposeMalformed(MeshError):
    """An instance's app-compose is not one JSON object in UTF-8."""

    code = Code.INVALID_ARGUMENT
    reason = "COMPOSE_MALFORMED"


class EventNameInvalid(MeshError):
    """An event name is empty or holds a colon, which would make its digest ambiguous."""

    code = Code.INVALID_ARGUMENT
    reason = "EVENT_NAME_INVALID"


class ReportDataInvalid(MeshError):
    """Report data is not 1 to 64 bytes long."""

    code = Code.INVALID_ARGUMENT
    reason = "REPORT_DATA_INVALID"


@dataclass(frozen=True, slots=True)
class InstanceIdentity:
    """What makes an instance the same one after a restart."""

    app_id: bytes
    """20 bytes, assigned at random: it says nothing about the code, as on a real KMS with assigned ids."""
    seed: bytes

    @classmethod
    def random(cls) -> InstanceIdentity:
        return cls(app_id=secrets.token_bytes(20), seed=secrets.token_bytes(32))

    @property
    def instance_id(self) -> bytes:
        return sha256(self.seed + self.app_id).digest()[:20]


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine: its vendor PKI, the KMS its TDs use, its GPUs, and the image they boot."""

    pki: VendorPki
    kms: MockKms
    gpus: Gpus
    image: Image = field(default_factory=Image)

    @classmethod
    def create(cls, now: int) -> Machine:
        """A new machine with fresh random keys. `now` is in Unix seconds."""
        return cls(VendorPki.create(Platform.random(), now), MockKms.create(now), Gpus.create(now))

    @property
    def device_id(self) -> bytes:
        return sha256(self.pki.platform.ppid).digest()

    @property
    def vendor_root(self) -> bytes:
        """DER of the only root under which this machine's quotes verify."""
        return self.pki.root.der

    def collateral(self, shape: CollateralShape) -> Collateral:
        return make_collateral(self.pki, shape)

    def boot(self, compose: bytes, identity: InstanceIdentity, now: int) -> VirtualTd:
        """Start a TD on these app-compose bytes. Raises `ComposeMalformed`."""
        return VirtualTd(self, compose, identity, now)


class VirtualTd:
    """A running TD. RTMR3 lives as long as this object: a restart is a reboot."""

    def __init__(self, machine: Machine, compose: bytes, identity: InstanceIdentity, now: int) -> None:
        try:
            members = jcs.loads_object(compose)
        except jcs.JsonMalformed as error:
            raise ComposeMalformed(f"the app-compose must be a JSON object: {error}") from error
        self.machine = machine
        self.identity = identity
        self.app_name = str(members.get("name", ""))
        self.app_compose = compose.decode()
        self.compose_hash = sha256(compose).digest()
        self.keys: AppKeys = machine.kms.app_keys(identity.app_id, now)
        self._events: list[Event] = [*machine.image.boot_events(), *self._runtime_events()]

    @property
    def events(self) -> Sequence[Event]:
        return tuple(self._events)

    @property
    def runtime_events(self) -> Sequence[Event]:
        return tuple(event for event in self._events if event.imr == RUNTIME_REGISTER)

    @property
    def rtmrs(self) -> tuple[bytes, bytes, bytes, bytes]:
        events = self._events
        return replay(events, 0), replay(events, 1), replay(events, 2), replay(events, 3)

    @property
    def mr_aggregated(self) -> bytes:
        return sha256(b"".join((self.machine.image.mrtd, *self.rtmrs))).digest()

    def emit(self, name: str, payload: bytes) -> None:
        """Extend RTMR3. Raises `EventNameInvalid`."""
        if not name or ":" in name:
            raise EventNameInvalid("an event needs a name without a colon")
        self._events.append(runtime_event(name, payload))

    def quote(self, report_data: bytes, *, td_attributes: bytes = TD_ATTRIBUTES) -> bytes:
        """Quote the present registers. Shorter report data is padded with zeros. Raises `ReportDataInvalid`."""
        report = TdReport(
            report_data=pad_report_data(report_data),
            mrtd=self.machine.image.mrtd,
            rtmrs=self.rtmrs,
            td_attributes=td_attributes,
        )
        return make_quote(self.machine.pki, report)

    def _runtime_events(self) -> tuple[Event, ...]:
        """dstack 0.5's order for a TD with a KMS."""
        return (
            runtime_event("system-preparing", b""),
            runtime_event("app-id", self.identity.app_id),
            runtime_event("compose-hash", self.compose_hash),
            runtime_event("instance-id", self.identity.instance_id),
            runtime_event("boot-mr-done", b""),
            runtime_event("os-image-hash", self.machine.image.os_image_hash),
            runtime_event("key-provider", self.machine.kms.provider.encode()),
            runtime_event("storage-fs", b"zfs"),
            runtime_event("system-ready", b""),
        )


def pad_report_data(report_data: bytes) -> bytes:
    """The 64 bytes that are quoted. Raises `ReportDataInvalid`."""
    if not 1 <= len(report_data) <= _REPORT_DATA_SIZE:
        raise ReportDataInvalid("report data must be 1 to 64 bytes long")
    return report_data.ljust(_REPORT_DATA_SIZE, b"\0")
