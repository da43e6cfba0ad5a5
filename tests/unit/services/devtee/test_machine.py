from __future__ import annotations

from hashlib import sha256

import pytest

from services.devtee.attestation import attestation_blob, compact
from services.devtee.eventlog import RUNTIME_EVENT, replay, runtime_event
from services.devtee.machine import (
    ComposeMalformed,
    EventNameInvalid,
    InstanceIdentity,
    Machine,
    ReportDataInvalid,
    VirtualTd,
)


def test_a_runtime_digest_is_dstacks() -> None:
    """`system-preparing` with an empty payload, as every dstack 0.5 boot logs it first."""
    event = runtime_event("system-preparing", b"")
    assert event.digest.hex() == (
        "f9974020ef507068183313d0ca808e0d1ca9b2d1ad0c61f5784e7157c362c06536f5ddacdad4451693f48fcc72fff624"
    )


def test_runtime_events_are_in_dstacks_order(machine: Machine, td: VirtualTd) -> None:
    assert [event.name for event in td.runtime_events] == [
        "system-preparing",
        "app-id",
        "compose-hash",
        "instance-id",
        "boot-mr-done",
        "os-image-hash",
        "key-provider",
        "storage-fs",
        "system-ready",
    ]
    payloads = {event.name: event.payload for event in td.runtime_events}
    assert payloads["compose-hash"] == sha256(td.app_compose.encode()).digest()
    assert payloads["app-id"] == td.identity.app_id != td.compose_hash[:20]
    assert payloads["os-image-hash"] == machine.image.os_image_hash
    assert {event.event_type for event in td.runtime_events} == {RUNTIME_EVENT}


def test_the_log_replays_to_each_register_and_none_is_empty(td: VirtualTd) -> None:
    td.emit("mine", b"payload")
    registers = tuple(replay(td.events, imr) for imr in range(4))
    assert registers == td.rtmrs
    assert len({*registers, bytes(48)}) == 5


def test_the_image_is_the_same_on_every_machine_and_the_keys_are_not(machine: Machine, now: int) -> None:
    other = Machine.create(now)
    assert other.image.mrtd == machine.image.mrtd
    assert other.vendor_root != machine.vendor_root
    assert other.device_id != machine.device_id
    assert other.kms.root != machine.kms.root


def test_an_emitted_event_extends_rtmr3_alone(td: VirtualTd) -> None:
    before = td.rtmrs
    td.emit("mine", b"")
    assert td.rtmrs[:3] == before[:3]
    assert td.rtmrs[3] != before[3]


@pytest.mark.parametrize("name", ["", "a:b"])
def test_an_ambiguous_event_name_is_refused(td: VirtualTd, name: str) -> None:
    with pytest.raises(EventNameInvalid):
        td.emit(name, b"")


@pytest.mark.parametrize("size", [0, 65])
def test_report_data_of_another_size_is_refused(td: VirtualTd, size: int) -> None:
    with pytest.raises(ReportDataInvalid):
        td.quote(bytes(size))


@pytest.mark.parametrize("compose", [b"", b"[]", b'{"a":1,"a":2}', b"\xff"])
def test_a_compose_that_is_no_object_is_refused(machine: Machine, compose: bytes, now: int) -> None:
    with pytest.raises(ComposeMalformed):
        machine.boot(compose, InstanceIdentity.random(), now)


def test_scale_compact_lengths_take_one_two_or_four_bytes() -> None:
    assert [compact(value).hex() for value in (0, 63, 64, 16383, 16384)] == ["00", "fc", "0101", "fdff", "02000100"]


def test_a_blob_holds_the_quote_the_log_and_the_report_data(td: VirtualTd) -> None:
    blob = attestation_blob(td, b"abc")
    size = int.from_bytes(blob[2:4], "little") >> 2
    assert blob[:2] == b"\0\0"
    assert blob[4 + 568 : 4 + 571] == b"abc"
    assert blob[4 + size] == len(td.events) << 2
    assert blob.endswith(td.machine.image.vm_config.encode())
    assert len(attestation_blob(td, b"abc", whole_log=False)) < len(blob)
