from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from libs.errors import MeshError
from libs.tee import eventlog
from libs.tee.eventlog import RUNTIME_EVENT_TYPE, Event, EventLogMalformed, Identity

ZERO = bytes(48)


def _runtime(name: str, payload: bytes = b"", *, canonical: bool = False) -> Event:
    form = eventlog.canonical_digest if canonical else eventlog.colon_digest
    return Event(3, RUNTIME_EVENT_TYPE, form(name, payload), name, payload)


BOOT = (
    _runtime("system-preparing"),
    _runtime("app-id", b"a" * 20),
    _runtime("compose-hash", b"c" * 32),
    _runtime("instance-id", b"i" * 20),
    _runtime("boot-mr-done"),
    _runtime("os-image-hash", b"o" * 32),
    _runtime("key-provider", b"{}"),
    _runtime("system-ready"),
)


def _replay(events: Sequence[Event]) -> bytes:
    register = ZERO
    for event in events:
        register = hashlib.sha384(register + event.digest).digest()
    return register


def _reason(events: Sequence[Event]) -> str:
    with pytest.raises(MeshError) as refusal:
        eventlog.read_identity(events)
    return refusal.value.reason


def test_digest_forms_are_the_published_ones() -> None:
    assert eventlog.colon_digest("app-id", b"\x01") == hashlib.sha384(b"\x01\x00\x00\x08:app-id:\x01").digest()
    text = b'{"name":"app-id","payload":"01","type":134217729}'
    assert eventlog.canonical_digest("app-id", b"\x01") == hashlib.sha384(text).digest()


@pytest.mark.parametrize("canonical", [False, True])
@pytest.mark.parametrize("stripped", [False, True])
def test_either_form_replays_with_or_without_stated_digests(canonical: bool, stripped: bool) -> None:
    log = [_runtime(event.name, event.payload, canonical=canonical) for event in BOOT]
    registers = (ZERO, ZERO, ZERO, _replay(log))
    eventlog.verify_replay([replace(event, digest=b"") for event in log] if stripped else log, registers)


@pytest.mark.parametrize("canonical", [False, True])
@pytest.mark.parametrize("stripped", [slice(0), slice(None), slice(2, 5)], ids=["none", "all", "some"])
def test_digests_that_were_left_out_are_written_as_they_were_measured(canonical: bool, stripped: slice) -> None:
    log = [Event(1, 4, b"d" * 48, "", b""), *(_runtime(e.name, e.payload, canonical=canonical) for e in BOOT)]
    named = {event.name for event in list(BOOT)[stripped]}
    given = [replace(event, digest=b"") if event.name in named else event for event in log]
    assert eventlog.with_digests(given, _replay(log[1:])) == tuple(log)


def test_digests_are_not_written_into_a_log_that_was_not_measured() -> None:
    stripped = [replace(event, digest=b"") for event in BOOT]
    for log in (stripped[1:], [*stripped, _runtime("more")], [], BOOT[::-1]):
        with pytest.raises(eventlog.EventLogDoesNotReplay):
            eventlog.with_digests(log, _replay(BOOT))
    with pytest.raises(eventlog.EventDigestMismatch):
        eventlog.with_digests([replace(BOOT[1], payload=b"b" * 20), *BOOT], _replay(BOOT))


def test_register_3_is_replayed_even_when_the_log_is_empty() -> None:
    eventlog.verify_replay([], (ZERO,) * 4)
    with pytest.raises(eventlog.EventLogDoesNotReplay):
        eventlog.verify_replay([], (ZERO, ZERO, ZERO, _replay(BOOT)))


def test_boot_registers_are_replayed_where_the_log_has_events() -> None:
    digest = b"d" * 48
    log = [Event(1, 4, digest, "", b""), *BOOT]
    registers = (b"x" * 48, hashlib.sha384(ZERO + digest).digest(), b"y" * 48, _replay(BOOT))
    eventlog.verify_replay(log, registers)
    with pytest.raises(eventlog.EventLogDoesNotReplay):
        eventlog.verify_replay(log, (ZERO, ZERO, ZERO, registers[3]))


def test_stated_digest_of_another_payload_is_refused() -> None:
    # The stated digests alone would replay.
    log = [replace(BOOT[0], payload=b"other"), *BOOT[1:]]
    with pytest.raises(eventlog.EventDigestMismatch):
        eventlog.verify_replay(log, (ZERO, ZERO, ZERO, _replay(BOOT)))


def test_identity_is_read() -> None:
    assert eventlog.read_identity(BOOT) == Identity(b"a" * 20, b"c" * 32, b"i" * 20, b"{}", b"o" * 32)


def test_application_events_after_ready_are_nobodys_identity() -> None:
    assert eventlog.read_identity([*BOOT, _runtime("hello", b"x")]).app_id == b"a" * 20


@pytest.mark.parametrize("name", ["app-id", "compose-hash", "instance-id", "key-provider", "os-image-hash"])
def test_each_identity_event_is_there_once_and_before_ready(name: str) -> None:
    event = next(event for event in BOOT if event.name == name)
    without = [other for other in BOOT if other.name != name]
    assert _reason(without) == "IDENTITY_EVENT_MISSING"
    assert _reason([event, *BOOT]) == "IDENTITY_EVENT_REPEATED"
    assert _reason([*BOOT, event]) == "IDENTITY_EVENT_LATE"
    assert _reason([*without, event]) == "IDENTITY_EVENT_LATE"
    assert _reason([replace(event, payload=b""), *without]) == "IDENTITY_EVENT_MALFORMED"


def test_ready_is_there_once() -> None:
    assert _reason(BOOT[:-1]) == "IDENTITY_EVENT_MISSING"
    assert _reason([*BOOT, BOOT[-1]]) == "IDENTITY_EVENT_REPEATED"


def test_events_of_other_registers_are_no_identity() -> None:
    moved = [replace(event, imr=2) if event.name == "app-id" else event for event in BOOT]
    assert _reason(moved) == "IDENTITY_EVENT_MISSING"


def test_log_survives_its_own_json() -> None:
    assert eventlog.parse([event.to_json() for event in BOOT]) == BOOT


@pytest.mark.parametrize(
    "change",
    [
        {"event": "app-id:x"},
        {"event": ""},
        {"event": "\ud800"},
        {"event_type": 4},
        {"imr": 4},
        {"imr": 0, "digest": ""},
        {"digest": "00"},
        {"digest": "AA" * 48},
        {"event_payload": "0"},
        {"event_payload": None},
        {"more": 1},
    ],
)
def test_other_shapes_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(EventLogMalformed):
        eventlog.parse([BOOT[1].to_json() | change])


def test_overlong_log_is_refused() -> None:
    with pytest.raises(EventLogMalformed, match="513 events"):
        eventlog.parse([BOOT[0].to_json()] * 513)
    with pytest.raises(EventLogMalformed):
        eventlog.parse({})
