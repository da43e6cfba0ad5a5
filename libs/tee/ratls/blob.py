"""Responsible for dstack's versioned attestation: one byte string with the quote, its event log and the stack's words.

The first byte says which form it is: zero for SCALE (version 0), the header of a MessagePack map for version 1. Only
what a TDX guest of plain dstack makes is read; every other platform and stack has its own refusal. Nothing is
verified here: the signed registers decide about the log, and the signed report data about what the stack states.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from libs.errors import Code, MeshError
from libs.tee import eventlog, tdx
from libs.tee.eventlog import MAX_EVENTS, RUNTIME_EVENT_TYPE, RUNTIME_REGISTER, Event
from libs.tee.ratls.messagepack import MessagePackReader
from libs.tee.ratls.scale import ScaleReader

# dstack itself reads up to 10 MiB. The largest seen from real machines, with the whole log, has 12 KiB: ten times that
# leaves room for application events and bounds the work that a stranger can ask for.
MAX_BLOB_BYTES = 128 * 1024
_MAX_QUOTE_BYTES = 16 * 1024
_REPORT_DATA_BYTES = 64
_SCALE_VERSION = 0
_SCALE_TDX = 0
_MESSAGE_VERSION = 1
# Headers of a MessagePack map.
_MAP_BYTES = frozenset((*range(0x80, 0x90), 0xDE, 0xDF))
_DIGEST_FORMS = {1: eventlog.colon_digest, 2: eventlog.canonical_digest}


class AttestationTooLarge(MeshError):
    code = Code.INVALID_ARGUMENT
    reason = "ATTESTATION_TOO_LARGE"


class AttestationFormNotSupported(MeshError):
    """The bytes are of no version of dstack's attestation that is read here."""

    code = Code.INVALID_ARGUMENT
    reason = "ATTESTATION_FORM_NOT_SUPPORTED"


class AttestationPlatformNotSupported(MeshError):
    """The attestation is of another platform than TDX, or of TDX together with a TPM."""

    code = Code.INVALID_ARGUMENT
    reason = "ATTESTATION_PLATFORM_NOT_SUPPORTED"


class AttestationStackNotSupported(MeshError):
    """The attestation is not plain dstack's: a pod's binds a payload of its own and never a certificate's key."""

    code = Code.INVALID_ARGUMENT
    reason = "ATTESTATION_STACK_NOT_SUPPORTED"


class AttestationMalformed(MeshError):
    code = Code.INVALID_ARGUMENT
    reason = "ATTESTATION_MALFORMED"


class RuntimeEventsDisagree(MeshError):
    """The list of runtime events is not what the event log says of register 3: two readers would read two boots."""

    code = Code.PERMISSION_DENIED
    reason = "RUNTIME_EVENTS_DISAGREE"


class EventPreimageMismatch(MeshError):
    """An event states a digest preimage that does not follow from its name and payload."""

    code = Code.PERMISSION_DENIED
    reason = "EVENT_PREIMAGE_MISMATCH"


@dataclass(frozen=True, slots=True)
class Attestation:
    """What one attestation says, **unverified**."""

    # Cut to its parsed length.
    quote: bytes
    event_log: tuple[Event, ...]
    # What the stack states that it had quoted. Only the quote's own is signed.
    report_data: bytes
    # The host's description of the machine, JSON text: a claim, measured nowhere.
    config: str

    @property
    def runtime_log(self) -> tuple[Event, ...]:
        return runtime_log(self.event_log)


def runtime_log(events: Sequence[Event]) -> tuple[Event, ...]:
    """Return the events of register 3, which are the ones that replay from a stripped log.

    dstack strips a log for a certificate, but leaves three events of register 0: the other registers cannot be
    replayed and MUST be compared whole with an allow list.
    """
    return tuple(event for event in events if event.imr == RUNTIME_REGISTER)


def parse(blob: bytes) -> Attestation:
    """Read an attestation of either form.

    Raises the errors of this module, `ScaleMalformed`, `MessagePackMalformed`, `EventLogMalformed`, `QuoteMalformed`.
    """
    if len(blob) > MAX_BLOB_BYTES:
        raise AttestationTooLarge(f"the attestation has {len(blob)} bytes, at most {MAX_BLOB_BYTES} are read")
    if blob[:1] == bytes([_SCALE_VERSION]):
        return _read_scale(ScaleReader(blob))
    if blob and blob[0] in _MAP_BYTES:
        return _read_message(MessagePackReader(blob))
    raise AttestationFormNotSupported("the attestation begins with none of the versions that are read")


def _read_scale(reader: ScaleReader) -> Attestation:
    reader.unsigned(1)
    platform = reader.unsigned(1)
    if platform != _SCALE_TDX:
        raise AttestationPlatformNotSupported(f"attestations of platform {platform} are not read, only of TDX (0)")
    quote = reader.vector()
    events = reader.items(lambda: _scale_event(reader), MAX_EVENTS)
    runtime_events = reader.items(lambda: (reader.text(), reader.vector()), MAX_EVENTS)
    report_data = reader.fixed(_REPORT_DATA_BYTES)
    config = reader.text()
    reader.finish()
    return _attestation(quote, events, runtime_events, report_data, config)


def _scale_event(reader: ScaleReader) -> Mapping[str, Any]:
    return {
        "imr": reader.unsigned(4),
        "event_type": reader.unsigned(4),
        "digest": reader.vector().hex(),
        "event": reader.text(),
        "event_payload": reader.vector().hex(),
    }


def _read_message(reader: MessagePackReader) -> Attestation:
    document = reader.members(
        {
            "version": lambda: _message_version(reader),
            "platform": lambda: reader.tagged(lambda kind: _message_platform(reader, kind)),
            "stack": lambda: reader.tagged(lambda kind: _message_stack(reader, kind)),
        }
    )
    reader.finish()
    platform, stack = document["platform"], document["stack"]
    return _attestation(
        platform["quote"], platform["event_log"], stack["runtime_events"], stack["report_data"], stack["config"]
    )


def _message_version(reader: MessagePackReader) -> int:
    version = reader.unsigned()
    if version != _MESSAGE_VERSION:
        raise AttestationFormNotSupported(f"attestations of version {version} are not read")
    return version


def _message_platform(reader: MessagePackReader, kind: str) -> Mapping[str, Any]:
    if kind != "tdx":
        raise AttestationPlatformNotSupported("attestations of other platforms than TDX are not read")
    return reader.members(
        {
            "quote": lambda: reader.octets(_MAX_QUOTE_BYTES),
            "event_log": lambda: reader.items(lambda: _message_event(reader), MAX_EVENTS),
        }
    )


def _message_stack(reader: MessagePackReader, kind: str) -> Mapping[str, Any]:
    if kind != "dstack":
        raise AttestationStackNotSupported("attestations of other stacks than plain dstack are not read")
    return reader.members(
        {
            "report_data": lambda: reader.octets(_REPORT_DATA_BYTES),
            "runtime_events": lambda: reader.items(lambda: _message_runtime_event(reader), MAX_EVENTS),
            "config": reader.text,
        }
    )


def _message_runtime_event(reader: MessagePackReader) -> tuple[str, bytes]:
    fields = reader.members(
        {"event": reader.text, "payload": reader.binary, "version": lambda: _digest_form(reader)},
        optional=frozenset({"version"}),
    )
    return fields["event"], fields["payload"]


def _message_event(reader: MessagePackReader) -> Mapping[str, Any]:
    fields = reader.members(
        {
            "imr": reader.unsigned,
            "event_type": reader.unsigned,
            "digest": reader.binary,
            "event": reader.text,
            "event_payload": reader.binary,
            "version": lambda: _digest_form(reader),
            "preimage": reader.text,
        },
        optional=frozenset({"version", "preimage"}),
    )
    if "preimage" in fields:
        _verify_preimage(fields)
    return {
        "imr": fields["imr"],
        "event_type": fields["event_type"],
        "digest": fields["digest"].hex(),
        "event": fields["event"],
        "event_payload": fields["event_payload"].hex(),
    }


def _digest_form(reader: MessagePackReader) -> Callable[[str, bytes], bytes]:
    version = reader.unsigned()
    if version not in _DIGEST_FORMS:
        raise AttestationMalformed(f"events of version {version} are not read")
    return _DIGEST_FORMS[version]


def _verify_preimage(fields: Mapping[str, Any]) -> None:
    """The preimage adds nothing to name and payload; it is checked so that nobody can show another one."""
    form = fields.get("version", _DIGEST_FORMS[1])
    try:
        digest = hashlib.sha384(bytes.fromhex(fields["preimage"])).digest()
    except ValueError as error:
        raise AttestationMalformed("an event's preimage is not hex") from error
    if fields["event_type"] != RUNTIME_EVENT_TYPE or digest != form(fields["event"], fields["event_payload"]):
        raise EventPreimageMismatch("an event's preimage does not follow from its name and payload")


def _attestation(
    quote: bytes,
    events: list[Mapping[str, Any]],
    runtime_events: list[tuple[str, bytes]],
    report_data: bytes,
    config: str,
) -> Attestation:
    log = eventlog.parse(events)
    if [(event.name, event.payload) for event in runtime_log(log)] != runtime_events:
        raise RuntimeEventsDisagree("the runtime events are not those of the event log")
    if len(report_data) != _REPORT_DATA_BYTES:
        raise AttestationMalformed(f"the stack states {len(report_data)} bytes of report data")
    return Attestation(tdx.cut(quote), log, report_data, config)
