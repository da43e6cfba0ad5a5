from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from libs.errors import MeshError
from libs.tee import eventlog, tdx
from libs.tee.collateral import Collateral
from libs.tee.ratls import certificate
from libs.tee.ratls.certificate import RatlsEvidence, read_certificate
from services.devtee import der
from services.devtee.attestation import attestation_blob
from services.devtee.collateral import CollateralShape
from services.devtee.machine import VirtualTd
from services.devtee.tls import TlsRequest, issue_tls_key
from tests.unit.libs.tee.ratls.maker import (
    DAY,
    NOW,
    Subject,
    compressed,
    extension,
    legacy_log,
    message,
    packed,
    raw_extension,
)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject.create()


@pytest.fixture(scope="module")
def presented(td: VirtualTd) -> bytes:
    """What the development guest agent hands out."""
    pem = issue_tls_key(td, TlsRequest("node", ra_tls=True), NOW).chain[0]
    return x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER)


def _reason(action: Callable[[], object], words: str | None = None) -> str:
    with pytest.raises(MeshError, match=words) as refusal:
        action()
    return refusal.value.reason


def _verify_whole(evidence: RatlsEvidence, td: VirtualTd) -> None:
    """Every check that needs no policy, in order."""
    evidence.verify_age(NOW, DAY)
    collateral = Collateral.parse(td.machine.collateral(CollateralShape(NOW)).members())
    report = tdx.verify(evidence.quote, collateral, [td.machine.vendor_root], NOW).report
    evidence.verify_report_data(report.report_data)
    eventlog.verify_replay(evidence.event_log, report.rtmrs)
    identity = eventlog.read_identity(evidence.event_log)
    assert identity.compose_hash == td.compose_hash
    evidence.verify_app_id(identity.app_id, td.identity.app_id)


def test_certificate_of_a_guest_agent_is_proven(td: VirtualTd, presented: bytes) -> None:
    evidence = read_certificate(presented)
    _verify_whole(evidence, td)
    public_key = x509.load_der_x509_certificate(presented).public_key()
    assert evidence.spki == public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert (evidence.claimed_app_id, evidence.claimed_usage) == (td.identity.app_id, "app:custom")
    assert evidence.not_before == NOW - 300


def test_messagepack_form_is_proven(td: VirtualTd, subject: Subject) -> None:
    blob = packed(message(td, subject.report_data))
    evidence = read_certificate(subject.certificate([extension(8, blob)]))
    _verify_whole(evidence, td)
    assert (evidence.claimed_app_id, evidence.claimed_usage) == (None, None)


@pytest.mark.parametrize("form", [lambda text: text, compressed])
def test_legacy_form_is_proven(td: VirtualTd, subject: Subject, form: Callable[[bytes], bytes]) -> None:
    quote, log = td.quote(subject.report_data), form(legacy_log(td.runtime_events))
    evidence = read_certificate(subject.certificate([extension(1, quote + bytes(70)), extension(2, log)]))
    _verify_whole(evidence, td)
    assert (evidence.quote, evidence.stated_report_data) == (quote, None)


def test_events_of_a_partial_register_are_left_to_the_allow_list(td: VirtualTd, subject: Subject) -> None:
    """As dstack strips a log for a certificate: three events of register 0 stay, which replay to nothing."""
    acpi = [event for event in td.events if event.name.startswith("acpi")]
    log = legacy_log([*acpi, *td.runtime_events])
    evidence = read_certificate(subject.certificate([extension(1, td.quote(subject.report_data)), extension(2, log)]))
    assert {event.imr for event in evidence.event_log} == {3}
    _verify_whole(evidence, td)


def test_key_of_another_certificate_is_refused(td: VirtualTd, subject: Subject) -> None:
    blob = attestation_blob(td, Subject.create().report_data)
    evidence = read_certificate(subject.certificate([extension(8, blob)]))
    report_data = tdx.read_report(evidence.quote).report_data
    assert _reason(lambda: evidence.verify_report_data(report_data)) == "RATLS_KEY_NOT_BOUND"


def test_stack_that_states_the_right_key_beside_a_quote_of_another_is_refused(td: VirtualTd, subject: Subject) -> None:
    document = message(td, bytes(64))
    document["stack"]["data"]["report_data"] = subject.report_data
    evidence = read_certificate(subject.certificate([extension(8, packed(document))]))
    assert evidence.stated_report_data == subject.report_data
    report_data = tdx.read_report(evidence.quote).report_data
    assert _reason(lambda: evidence.verify_report_data(report_data)) == "RATLS_KEY_NOT_BOUND"


def test_stack_that_states_other_report_data_is_refused(td: VirtualTd, subject: Subject) -> None:
    document = message(td, subject.report_data)
    document["stack"]["data"]["report_data"] = bytes(64)
    evidence = read_certificate(subject.certificate([extension(8, packed(document))]))
    assert _reason(lambda: evidence.verify_report_data(subject.report_data)) == "RATLS_REPORT_DATA_MISMATCH"


def test_certificate_is_current_from_its_start_to_its_end(presented: bytes) -> None:
    evidence = read_certificate(presented)
    start, end = evidence.not_before, evidence.not_after
    evidence.verify_age(start, 0)
    evidence.verify_age(end, end - start)
    assert _reason(lambda: evidence.verify_age(start - 1, DAY)) == "RATLS_CERTIFICATE_NOT_CURRENT"
    assert _reason(lambda: evidence.verify_age(end + 1, 2 * end)) == "RATLS_CERTIFICATE_NOT_CURRENT"


def test_valid_certificate_is_refused_when_it_is_too_old(presented: bytes) -> None:
    evidence = read_certificate(presented)
    evidence.verify_age(evidence.not_before + DAY, DAY)
    assert _reason(lambda: evidence.verify_age(evidence.not_before + DAY + 1, DAY)) == "RATLS_CERTIFICATE_TOO_OLD"


def test_certificate_dated_as_dstack_dates_it_does_not_pass_a_useful_bound(td: VirtualTd, subject: Subject) -> None:
    blob = attestation_blob(td, subject.report_data)
    evidence = read_certificate(subject.certificate([extension(8, blob)], not_before=157_766_400))
    assert _reason(lambda: evidence.verify_age(NOW, 30 * DAY)) == "RATLS_CERTIFICATE_TOO_OLD"


def test_application_is_the_expected_and_the_named_one(td: VirtualTd, presented: bytes) -> None:
    evidence = read_certificate(presented)
    measured = td.identity.app_id
    evidence.verify_app_id(measured)
    assert _reason(lambda: evidence.verify_app_id(measured, bytes(20)), "expected") == "RATLS_APP_ID_MISMATCH"
    assert _reason(lambda: evidence.verify_app_id(bytes(20)), "names another") == "RATLS_APP_ID_MISMATCH"


def test_new_form_beside_the_old_one_is_refused(td: VirtualTd, subject: Subject) -> None:
    new = extension(8, attestation_blob(td, subject.report_data))
    for old in (extension(1, td.quote(subject.report_data)), extension(2, legacy_log(td.runtime_events))):
        both = subject.certificate([new, old])
        assert _reason(lambda both=both: read_certificate(both)) == "RATLS_EVIDENCE_AMBIGUOUS"  # type: ignore[misc]


def test_extension_that_is_there_twice_is_refused(td: VirtualTd, subject: Subject) -> None:
    # The builder refuses to write one twice: two of the same length are made one.
    blob = attestation_blob(td, subject.report_data)
    twice = subject.certificate([extension(8, blob), extension(7, blob)])
    seven, eight = (der.object_identifier(f"1.3.6.1.4.1.62397.1.{arc}") for arc in (7, 8))
    assert _reason(lambda: read_certificate(twice.replace(seven, eight))) == "RATLS_EVIDENCE_AMBIGUOUS"


def test_half_of_the_evidence_or_none_is_refused(td: VirtualTd, subject: Subject) -> None:
    for extensions in (
        [],
        [extension(1, td.quote(subject.report_data))],
        [extension(2, legacy_log(td.runtime_events))],
        [extension(3, td.identity.app_id), extension(4, b"app:custom")],
    ):
        der_bytes = subject.certificate(extensions)
        assert (
            _reason(lambda der_bytes=der_bytes: read_certificate(der_bytes)) == "RATLS_EVIDENCE_MISSING"  # type: ignore[misc]
        )


@pytest.mark.parametrize(
    "value",
    [b"", b"bare", b"\x0c\x01a", b"\x04\x05a", b"\x04\x01ab", b"\x04\x81\x01a", b"\x24\x03\x04\x01a"],
    ids=["empty", "bare", "other type", "short", "long", "longer length", "constructed"],
)
@pytest.mark.parametrize("last_arc", [1, 2, 3, 4, 8, 9])
def test_extension_without_its_second_layer_is_refused(
    td: VirtualTd, subject: Subject, last_arc: int, value: bytes
) -> None:
    extensions = [extension(8, attestation_blob(td, subject.report_data))] if last_arc != 8 else []
    broken = subject.certificate([*extensions, raw_extension(last_arc, value)])
    assert _reason(lambda: read_certificate(broken)) == "RATLS_CERTIFICATE_MALFORMED"


def test_claims_of_other_forms_are_refused(td: VirtualTd, subject: Subject) -> None:
    evidence = extension(8, attestation_blob(td, subject.report_data))
    for claim in (extension(3, bytes(19)), extension(3, b""), extension(4, b"\xff")):
        odd = subject.certificate([evidence, claim])
        assert _reason(lambda odd=odd: read_certificate(odd)) == "RATLS_CERTIFICATE_MALFORMED"  # type: ignore[misc]


def test_app_info_is_never_read(td: VirtualTd, subject: Subject) -> None:
    evidence = extension(8, attestation_blob(td, subject.report_data))
    _verify_whole(read_certificate(subject.certificate([evidence, extension(9, b"anything")])), td)


def test_critical_extension_is_refused_unless_it_is_understood(td: VirtualTd, subject: Subject) -> None:
    evidence = extension(8, attestation_blob(td, subject.report_data))
    _verify_whole(read_certificate(subject.certificate([evidence], critical=True)), td)
    strange = subject.certificate([evidence, extension(7, b"")], critical=True)
    assert _reason(lambda: read_certificate(strange)) == "RATLS_CERTIFICATE_MALFORMED"
    _verify_whole(read_certificate(subject.certificate([evidence, extension(7, b"")])), td)


def test_bytes_that_are_no_certificate_are_refused(presented: bytes) -> None:
    for data in (b"", b"\x30", presented[:-1], presented + b"\0", presented[: len(presented) // 2]):
        assert _reason(lambda data=data: read_certificate(data)) == "RATLS_CERTIFICATE_MALFORMED"  # type: ignore[misc]


@pytest.mark.parametrize("serial", ["020100", "0201ff"])
@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_serial_number_that_is_not_positive_is_refused(td: VirtualTd, subject: Subject, serial: str) -> None:
    ours = subject.certificate([extension(8, attestation_blob(td, subject.report_data))])
    version = bytes.fromhex("a003020102")
    odd = ours.replace(version + der.integer(1), version + bytes.fromhex(serial))
    assert odd != ours
    assert _reason(lambda: read_certificate(odd)) == "RATLS_CERTIFICATE_MALFORMED"


def test_certificate_of_an_unknown_version_is_refused(td: VirtualTd, subject: Subject) -> None:
    ours = subject.certificate([extension(8, attestation_blob(td, subject.report_data))])
    odd = ours.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020105"))
    assert odd != ours
    assert _reason(lambda: read_certificate(odd)) == "RATLS_CERTIFICATE_MALFORMED"


def test_alternative_name_of_an_unsupported_form_is_refused(td: VirtualTd, subject: Subject) -> None:
    evidence = extension(8, attestation_blob(td, subject.report_data))
    # An x400Address, which the library has no type for.
    names = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.17"), der.sequence(b"\xa3\x00"))
    odd = subject.certificate([evidence, names])
    assert _reason(lambda: read_certificate(odd)) == "RATLS_CERTIFICATE_MALFORMED"


def test_overlong_certificate_is_refused(subject: Subject) -> None:
    large = subject.certificate([extension(8, bytes(certificate.MAX_CERTIFICATE_BYTES))])
    assert _reason(lambda: read_certificate(large), "at most 65536") == "RATLS_CERTIFICATE_MALFORMED"


def test_exchanged_key_is_not_bound(td: VirtualTd, subject: Subject) -> None:
    ours = subject.certificate([extension(8, attestation_blob(td, subject.report_data))])
    evidence = read_certificate(ours.replace(subject.spki, Subject.create().spki))
    assert _reason(lambda: evidence.verify_report_data(subject.report_data)) == "RATLS_KEY_NOT_BOUND"


def test_key_of_an_unknown_kind_is_refused(td: VirtualTd, subject: Subject) -> None:
    ours = subject.certificate([extension(8, attestation_blob(td, subject.report_data))])
    known, unknown = der.object_identifier("1.2.840.10045.3.1.7"), der.object_identifier("1.2.840.10045.3.1.6")
    assert _reason(lambda: read_certificate(ours.replace(known, unknown))) == "RATLS_CERTIFICATE_MALFORMED"


@pytest.mark.parametrize(
    "log",
    [
        b"ELGZv1",
        b"ELGZv1not gzip",
        compressed(b"[]")[:-1],
        compressed(b"[]") + b"\0",
        compressed(b"[]") + compressed(b"[]")[6:],
        compressed(b" " * certificate.MAX_EVENT_LOG_BYTES + b"[]"),
        b" " * certificate.MAX_EVENT_LOG_BYTES + b"[]",
    ],
    ids=["empty", "not gzip", "cut", "followed", "two members", "too large", "too large and plain"],
)
def test_log_that_cannot_be_inflated_is_refused(td: VirtualTd, subject: Subject, log: bytes) -> None:
    broken = subject.certificate([extension(1, td.quote(subject.report_data)), extension(2, log)])
    assert _reason(lambda: read_certificate(broken)) == "RATLS_EVENT_LOG_MALFORMED"


def test_log_of_exactly_the_bound_is_read(td: VirtualTd, subject: Subject) -> None:
    log = legacy_log(td.runtime_events).ljust(certificate.MAX_EVENT_LOG_BYTES)
    quote = extension(1, td.quote(subject.report_data))
    _verify_whole(read_certificate(subject.certificate([quote, extension(2, compressed(log))])), td)


def test_log_that_inflates_to_much_is_not_inflated(td: VirtualTd, subject: Subject) -> None:
    bomb = compressed(bytes(32 << 20))
    broken = subject.certificate([extension(1, td.quote(subject.report_data)), extension(2, bomb)])
    tracemalloc.start()
    try:
        assert _reason(lambda: read_certificate(broken)) == "RATLS_EVENT_LOG_MALFORMED"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("log", "reason"), [(b"{", "JSON_MALFORMED"), (b"{}", "EVENT_LOG_MALFORMED")])
def test_log_of_another_shape_is_refused(td: VirtualTd, subject: Subject, log: bytes, reason: str) -> None:
    broken = subject.certificate([extension(1, td.quote(subject.report_data)), extension(2, log)])
    assert _reason(lambda: read_certificate(broken)) == reason


def test_legacy_quote_of_another_shape_is_refused(td: VirtualTd, subject: Subject) -> None:
    broken = subject.certificate([extension(1, b"stub"), extension(2, legacy_log(td.runtime_events))])
    assert _reason(lambda: read_certificate(broken)) == "QUOTE_MALFORMED"
