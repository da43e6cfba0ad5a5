"""Rows about dstack's RA-TLS certificates: one that a foreign peer presents, wrong in one thing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from cryptography import x509

from libs.tee.device import DeviceLists
from libs.tee.eventlog import RUNTIME_EVENT_TYPE
from libs.tee.measurement import MeasurementSet
from libs.tee.ratls import blob, certificate
from libs.tee.ratls.messagepack import MessagePackReader
from libs.tee.ratls.scale import ScaleReader
from libs.tee.ratls.verification import IssuedBy, RatlsContext, verify_ratls
from libs.tee.role import RoleRules
from libs.tee.steps import Steps
from services.devtee import der
from services.devtee.attestation import attestation_blob
from tests.unit.libs.tee.bad_evidence.row import Benches, Present, Row
from tests.unit.libs.tee.bench import DAY, NOW, Bench
from tests.unit.libs.tee.ratls.maker import (
    ARC,
    AppCa,
    Subject,
    compressed,
    extension,
    legacy_log,
    message,
    packed,
    raw_extension,
)

CONTEXT = RatlsContext(now=NOW, issued=IssuedBy(AppCa.of("App CA").der, 2 * DAY), app_id=None)

Make = Callable[[Benches], Present]
Extensions = Callable[[Bench, Subject], Iterable[x509.UnrecognizedExtension]]


def presenting(
    der_bytes: bytes, bench: Bench, rules: RoleRules | None = None, context: RatlsContext = CONTEXT
) -> Present:
    collateral = bench.collateral()

    def present(steps: Steps) -> object:
        return verify_ratls(der_bytes, collateral, rules or bench.rules(), context, steps)

    return present


def good(bench: Bench, subject: Subject) -> x509.UnrecognizedExtension:
    """The evidence of the development guest agent, in dstack's first form."""
    return extension(8, attestation_blob(bench.td, subject.report_data))


def _certified(extensions: Extensions, edit: Callable[[bytes], bytes] = lambda data: data, **changes: Any) -> Make:
    """A certificate with these extensions, its bytes changed afterwards."""

    def make(benches: Benches) -> Present:
        subject = Subject.create()
        issued = subject.certificate(extensions(benches.tdx, subject), **changes)
        return presenting(edit(issued), benches.tdx)

    return make


def _edited(edit: Callable[[bytes], bytes], **changes: Any) -> Make:
    return _certified(lambda bench, subject: [good(bench, subject)], edit, **changes)


def _beside(*others: x509.UnrecognizedExtension, **changes: Any) -> Make:
    return _certified(lambda bench, subject: [good(bench, subject), *others], **changes)


def _scale(change: Callable[[bytes], bytes]) -> Make:
    return _certified(lambda b, s: [extension(8, change(attestation_blob(b.td, s.report_data)))])


def _message(change: Callable[[dict[str, Any]], object]) -> Make:
    """The second form, whose document was changed before it was written."""

    def extensions(bench: Bench, subject: Subject) -> Sequence[x509.UnrecognizedExtension]:
        document = message(bench.td, subject.report_data)
        change(document)
        return [extension(8, packed(document))]

    return _certified(extensions)


def _packed(change: Callable[[bytes], bytes]) -> Make:
    return _certified(lambda b, s: [extension(8, change(packed(message(b.td, s.report_data))))])


def _legacy(log: Callable[[Bench], bytes]) -> Make:
    return _certified(lambda b, s: [extension(1, b.td.quote(s.report_data)), extension(2, log(b))])


def _verified(rules: Callable[[Bench], RoleRules] | None = None, **context: Any) -> Make:
    """A good certificate under other rules, or before a verifier who knows something else."""

    def make(benches: Benches) -> Present:
        bench, subject = benches.tdx, Subject.create()
        issued = subject.certificate([good(bench, subject), extension(3, bench.td.identity.app_id)])
        return presenting(issued, bench, rules(bench) if rules else None, replace(CONTEXT, **context))

    return make


def issued_by(name: str, age: int = 2 * DAY) -> IssuedBy:
    return IssuedBy(AppCa.of(name).der, age)


def _issued_by_no_authority(benches: Benches) -> Present:
    bench, subject, issuer = benches.tdx, Subject.create(), AppCa.of("none", is_authority=False)
    issued = subject.certificate([good(bench, subject)], issuer=issuer)
    return presenting(issued, bench, None, replace(CONTEXT, issued=IssuedBy(issuer.der, 2 * DAY)))


def _stated(**data: Any) -> Callable[[dict[str, Any]], object]:
    return lambda document: document["stack"]["data"].update(data)


def _event(document: dict[str, Any], name: str) -> dict[str, Any]:
    events: list[dict[str, Any]] = document["platform"]["data"]["event_log"]
    return next(event for event in events if event["event"] == name)


def _other_preimage(document: dict[str, Any]) -> None:
    _event(document, "app-id")["preimage"] = "00"


def _preimage_of_a_boot_event(document: dict[str, Any]) -> None:
    """The preimage that its name and payload have as a runtime event, beside another type."""
    event = _event(document, "app-id")
    head = RUNTIME_EVENT_TYPE.to_bytes(4, "little")
    event["preimage"] = b":".join((head, b"app-id", bytes(event["event_payload"]))).hex()
    event["event_type"] = 4


def _unreadable_preimage(document: dict[str, Any]) -> None:
    event = _event(document, "app-id")
    # Otherwise good: the digest of no bytes at all would be refused for another reason.
    event["preimage"] = "no hex"


def _event_of_another_version(document: dict[str, Any]) -> None:
    _event(document, "app-id")["version"] = 3


def _short_report_data(document: dict[str, Any]) -> None:
    document["stack"]["data"]["report_data"] = document["stack"]["data"]["report_data"][:63]


def _twice(data: bytes) -> bytes:
    """The builder refuses to write an extension twice: two of the same length are made one."""
    seven, eight = (der.object_identifier(f"{ARC}.{arc}") for arc in (7, 8))
    return data.replace(seven, eight)


def _two_of_one_length(bench: Bench, subject: Subject) -> Sequence[x509.UnrecognizedExtension]:
    content = attestation_blob(bench.td, subject.report_data)
    return [extension(8, content), extension(7, content)]


def _serial(data: bytes) -> bytes:
    version = bytes.fromhex("a003020102")
    return data.replace(version + der.integer(1), version + b"\x02\x01\x00")


def _of_another_key(bench: Bench, _subject: Subject) -> Sequence[x509.UnrecognizedExtension]:
    return [extension(8, attestation_blob(bench.td, Subject.create().report_data))]


def _altered_log(bench: Bench) -> bytes:
    """The log of another boot, digests left out, as dstack's own logs have them."""
    return legacy_log(
        [replace(event, payload=b"\x01" + event.payload[1:], digest=b"") for event in bench.td.runtime_events]
    )


def _longer_compact(data: bytes) -> bytes:
    """Write the quote's length in four bytes where two would do."""
    first = int.from_bytes(data[2:4], "little")
    assert first & 3 == 1
    return data[:2] + ((first >> 2) << 2 | 2).to_bytes(4, "little") + data[4:]


def _config_that_is_no_text(data: bytes) -> bytes:
    assert data[-1:] == b"}"
    return data[:-1] + b"\xff"


def _alone(take: Callable[[], object]) -> Make:
    """What a whole attestation would be refused for all the same, because it does not end where its parts do."""

    def present(steps: Steps) -> object:
        with steps.step(1):
            return take()

    return lambda _: present


def _list_of_bytes(reader: ScaleReader) -> list[int]:
    return reader.items(lambda: reader.unsigned(1), 1)


def _member_twice(data: bytes) -> bytes:
    """`version` twice in a map of four."""
    return b"\x84" + b"\xa7version\x01" + data[1:]


def _three_for_two(data: bytes) -> bytes:
    """The map of a stack, whose header speaks of a third member beside kind and data."""
    at = data.rindex(b"\x82\xa4kind\xa4data")
    return data[:at] + b"\x83" + data[at + 1 :]


def _three_members(bench: Bench, subject: Subject) -> Sequence[x509.UnrecognizedExtension]:
    document = message(bench.td, subject.report_data)
    # A kind that is read as the next name would be, where the first is not.
    document["stack"]["kind"] = "data"
    return [extension(8, _three_for_two(packed(document)))]


def _member_missing(document: dict[str, Any]) -> None:
    del document["stack"]["data"]["config"]


def _kind_by_another_name(document: dict[str, Any]) -> None:
    document["stack"] = {"sort": "dstack", "data": document["stack"]["data"]}


def _data_by_another_name(document: dict[str, Any]) -> None:
    document["stack"] = {"kind": "dstack", "date": document["stack"]["data"]}


_ROWS_OF_STEP_1: list[tuple[str, str, Make]] = [
    ("overlong", "RATLS_CERTIFICATE_MALFORMED", _beside(extension(7, bytes(certificate.MAX_CERTIFICATE_BYTES)))),
    ("serial number zero", "RATLS_CERTIFICATE_MALFORMED", _edited(_serial)),
    ("cut off", "RATLS_CERTIFICATE_MALFORMED", _edited(lambda data: data[:-1])),
    ("critical extension", "RATLS_CERTIFICATE_MALFORMED", _beside(extension(7, b""), critical=True)),
    ("app id of another size", "RATLS_CERTIFICATE_MALFORMED", _beside(extension(3, bytes(19)))),
    ("extension without its second layer", "RATLS_CERTIFICATE_MALFORMED", _beside(raw_extension(9, b"bare"))),
    ("evidence twice", "RATLS_EVIDENCE_AMBIGUOUS", _certified(_two_of_one_length, _twice)),
    (
        "old form beside the new one",
        "RATLS_EVIDENCE_AMBIGUOUS",
        _certified(lambda b, s: [good(b, s), extension(2, legacy_log(b.td.runtime_events))]),
    ),
    ("no evidence", "RATLS_EVIDENCE_MISSING", _certified(lambda b, s: [])),
    (
        "quote without its log",
        "RATLS_EVIDENCE_MISSING",
        _certified(lambda b, s: [extension(1, b.td.quote(s.report_data))]),
    ),
    ("log that is not compressed", "RATLS_EVENT_LOG_MALFORMED", _legacy(lambda _: b"ELGZv1 no")),
    (
        "compressed log with a tail",
        "RATLS_EVENT_LOG_MALFORMED",
        _legacy(lambda b: compressed(legacy_log(b.td.runtime_events)) + b"\0"),
    ),
    (
        "compressed log without its last byte",
        "RATLS_EVENT_LOG_MALFORMED",
        _legacy(lambda b: compressed(legacy_log(b.td.runtime_events))[:-1]),
    ),
    (
        "overlong log",
        "RATLS_EVENT_LOG_MALFORMED",
        _legacy(lambda b: legacy_log(b.td.runtime_events).ljust(certificate.MAX_EVENT_LOG_BYTES + 1)),
    ),
    (
        "log that inflates to much",
        "RATLS_EVENT_LOG_MALFORMED",
        _legacy(lambda b: compressed(legacy_log(b.td.runtime_events).ljust(certificate.MAX_EVENT_LOG_BYTES + 1))),
    ),
    ("log that is no JSON", "JSON_MALFORMED", _legacy(lambda _: b"{")),
    ("log of another shape", "EVENT_LOG_MALFORMED", _legacy(lambda _: b"{}")),
    (
        "overlong attestation",
        "ATTESTATION_TOO_LARGE",
        lambda b: _oversized(b),
    ),
    ("attestation of another form", "ATTESTATION_FORM_NOT_SUPPORTED", _scale(lambda data: b"\x01" + data[1:])),
    ("attestation of version 2", "ATTESTATION_FORM_NOT_SUPPORTED", _message(lambda d: d.update(version=2))),
    (
        "attestation of another platform",
        "ATTESTATION_PLATFORM_NOT_SUPPORTED",
        _scale(lambda data: data[:1] + b"\x01" + data[2:]),
    ),
    (
        "attestation of a cloud's TDX",
        "ATTESTATION_PLATFORM_NOT_SUPPORTED",
        _message(lambda d: d["platform"].update(kind="gcp-tdx")),
    ),
    (
        "attestation of a pod",
        "ATTESTATION_STACK_NOT_SUPPORTED",
        _message(lambda d: d["stack"].update(kind="dstack-pod")),
    ),
    ("runtime events left out", "RUNTIME_EVENTS_DISAGREE", _message(_stated(runtime_events=[]))),
    ("another preimage", "EVENT_PREIMAGE_MISMATCH", _message(_other_preimage)),
    ("preimage of a boot event", "EVENT_PREIMAGE_MISMATCH", _message(_preimage_of_a_boot_event)),
    ("preimage that is no hex", "ATTESTATION_MALFORMED", _message(_unreadable_preimage)),
    ("event of version 3", "ATTESTATION_MALFORMED", _message(_event_of_another_version)),
    ("stated report data too short", "ATTESTATION_MALFORMED", _message(_short_report_data)),
    ("SCALE that ends too early", "SCALE_MALFORMED", _alone(lambda: ScaleReader(b"\x08a").vector())),
    ("SCALE with a tail", "SCALE_MALFORMED", _scale(lambda data: data + b"\0")),
    ("SCALE length in a longer form", "SCALE_MALFORMED", _scale(_longer_compact)),
    ("SCALE text that is none", "SCALE_MALFORMED", _scale(_config_that_is_no_text)),
    (
        "SCALE list that is longer than it may be",
        "SCALE_MALFORMED",
        _alone(lambda: _list_of_bytes(ScaleReader(b"\x08ab"))),
    ),
    ("message with a tail", "MESSAGEPACK_MALFORMED", _packed(lambda data: data + b"\0")),
    ("message that ends too early", "MESSAGEPACK_MALFORMED", _alone(lambda: MessagePackReader(b"\xa2a").text())),
    ("message with a member twice", "MESSAGEPACK_MALFORMED", _packed(_member_twice)),
    ("message with a member that is not known", "MESSAGEPACK_MALFORMED", _message(lambda d: d.update(extra=1))),
    ("message of kind and data that counts three", "MESSAGEPACK_MALFORMED", _certified(_three_members)),
    ("message without a member", "MESSAGEPACK_MALFORMED", _message(_member_missing)),
    ("message with kind by another name", "MESSAGEPACK_MALFORMED", _message(_kind_by_another_name)),
    ("message with data by another name", "MESSAGEPACK_MALFORMED", _message(_data_by_another_name)),
    ("message with a number for a text", "MESSAGEPACK_MALFORMED", _message(_stated(config=7))),
    (
        "message with an overlong quote",
        "MESSAGEPACK_MALFORMED",
        _message(lambda d: d["platform"]["data"].update(quote=bytes(16385))),
    ),
    (
        "message with a byte of 256",
        "MESSAGEPACK_MALFORMED",
        _message(lambda d: d["platform"]["data"]["quote"].append(256)),
    ),
    (
        "message with 513 events",
        "MESSAGEPACK_MALFORMED",
        _message(lambda d: d["platform"]["data"]["event_log"].extend(d["platform"]["data"]["event_log"][:1] * 513)),
    ),
]

second_form = _message(_stated())
legacy_form = _legacy(lambda b: compressed(legacy_log(b.td.runtime_events)))

ROWS = [
    *(Row(f"RA-TLS: {name}", 1, reason, make) for name, reason, make in _ROWS_OF_STEP_1),
    Row("RA-TLS: not valid yet", 5, "RATLS_CERTIFICATE_NOT_CURRENT", _beside(not_before=NOW + 1)),
    Row("RA-TLS: expired", 5, "RATLS_CERTIFICATE_NOT_CURRENT", _beside(not_after=NOW - 1)),
    Row("RA-TLS: too old", 5, "RATLS_CERTIFICATE_TOO_OLD", _verified(issued=issued_by("App CA", age=DAY - 1))),
    Row("RA-TLS: issued by a stranger", 5, "RATLS_ISSUER_NOT_TRUSTED", _verified(issued=issued_by("another"))),
    Row(
        "RA-TLS: issued by what is no authority",
        5,
        "RATLS_ISSUER_NOT_TRUSTED",
        _issued_by_no_authority,
    ),
    Row("RA-TLS: another application meant", 11, "RATLS_APP_ID_MISMATCH", _verified(app_id=bytes(20))),
    Row("RA-TLS: another application named", 11, "RATLS_APP_ID_MISMATCH", _beside(extension(3, bytes(20)))),
    Row("RA-TLS: key of another certificate", 5, "RATLS_KEY_NOT_BOUND", _certified(_of_another_key)),
    Row("RA-TLS: other report data stated", 5, "RATLS_REPORT_DATA_MISMATCH", _message(_stated(report_data=bytes(64)))),
    Row("RA-TLS: log of another boot", 6, "EVENT_LOG_DOES_NOT_REPLAY", _legacy(_altered_log)),
    Row(
        "RA-TLS: another measurement",
        8,
        "MEASUREMENT_NOT_ALLOWED",
        _verified(lambda b: replace(b.rules(), tdx=b.tdx(measurements=MeasurementSet(frozenset())))),
    ),
    Row(
        "RA-TLS: machine not listed",
        9,
        "DEVICE_NOT_LISTED",
        _verified(lambda b: replace(b.rules(), devices=DeviceLists(allowed=frozenset({"00"})).rule())),
    ),
    Row("RA-TLS: GPU needed", 10, "GPU_EVIDENCE_MISSING", _verified(lambda b: replace(b.rules(), gpu_required=True))),
]


def _oversized(benches: Benches) -> Present:
    """Too large for a certificate as well, which is refused first: so the attestation comes by itself."""
    document = message(benches.tdx.td, bytes(64))
    document["stack"]["data"]["config"] = "c" * blob.MAX_BLOB_BYTES
    data = packed(document)

    def present(steps: Steps) -> object:
        with steps.step(1):
            return blob.parse(data)

    return present
