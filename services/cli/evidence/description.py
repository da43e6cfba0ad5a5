"""It is responsible for saying what evidence states, nothing of it verified, in sections of named facts."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cryptography import x509

from libs import jcs
from libs.errors import MeshError
from libs.tee import eventlog, registers, tdx
from libs.tee import evidence as evidences
from libs.tee.collateral import Collateral, rfc3339_seconds
from libs.tee.eventlog import RUNTIME_REGISTER, Event
from libs.tee.evidence import Evidence
from libs.tee.nvidia.evidence import GpuEvidence
from libs.tee.nvidia.token import DetachedEat
from libs.tee.ratls.certificate import read_certificate
from libs.tee.snp import report as snp
from libs.tee.snp.endorsement import SnpEndorsement
from libs.tee.snp.report import PolicyFlag
from services.cli.evidence.file import CertificateFile, DocumentFile, EvidenceFile, QuoteFile
from services.cli.terminal.words import Json, Moment

_DEBUG_BIT = 1
_GPU_CLAIMS = (
    "hwmodel",
    "ueid",
    "x-nvidia-gpu-driver-version",
    "x-nvidia-gpu-vbios-version",
    "x-nvidia-switch-bios-version",
    "measres",
    "secboot",
    "dbgstat",
)
_OVERALL_CLAIMS = ("iss", "x-nvidia-ver", "x-nvidia-overall-att-result")


@dataclass(frozen=True, slots=True)
class Fact:
    name: str
    value: Json | Moment
    entries: tuple[str, ...] = ()
    """For people, a line each, in place of the value."""

    def to_json(self) -> Json:
        return self.value.seconds if isinstance(self.value, Moment) else self.value


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    facts: tuple[Fact, ...]
    verbatim: bool = False
    """Whether the names are the evidence's own, not ours to write in another way."""

    @property
    def key(self) -> str:
        return _snake(self.title)

    def to_json(self) -> dict[str, Json]:
        return {fact.name if self.verbatim else _snake(fact.name): fact.to_json() for fact in self.facts}


def describe(file: EvidenceFile) -> tuple[Section, ...]:
    """Return what a file states. Raises what the parser of its kind raises; verifies nothing."""
    match file:
        case DocumentFile(data):
            return _document(evidences.parse(data))
        case CertificateFile(der):
            return _certificate(der)
        case QuoteFile(quote):
            return (_quote(quote, ()),)


def _document(evidence: Evidence) -> tuple[Section, ...]:
    challenge = evidence.challenge
    head = _section(
        "document",
        ("kind", "evidence document"),
        ("bytes", len(evidence.document)),
        ("digest", evidence.digest.hex()),
        ("tee type", evidence.tee_type),
        ("key SHA-256", hashlib.sha256(evidence.spki).hexdigest()),
        ("app-compose bytes", len(evidence.app_compose.encode())),
        ("app-compose SHA-256", hashlib.sha256(evidence.app_compose.encode()).hexdigest()),
    )
    asked = _section(
        "challenge",
        ("issuer", challenge.issuer),
        ("purpose", challenge.purpose),
        ("issued at", Moment(challenge.issued_at)),
        ("nonce", challenge.nonce.hex()),
        ("signed", challenge.signature is not None),
    )
    claims = Section("claims", tuple(Fact(name, value) for name, value in evidence.claims.items()), verbatim=True)
    technology: tuple[Section, ...]
    if isinstance(evidence.collateral, Collateral):
        technology = (
            _quote(evidence.quote, evidence.event_log),
            *_log(evidence.event_log),
            _collateral(evidence.collateral),
        )
    else:
        technology = (_report(evidence.quote), _endorsement(evidence.collateral))
    return (head, *technology, asked, claims, *_gpu(evidence.gpu_evidence))


def _certificate(der: bytes) -> tuple[Section, ...]:
    evidence = read_certificate(der)
    head = _section(
        "certificate",
        ("kind", "dstack RA-TLS certificate"),
        ("bytes", len(der)),
        ("digest", hashlib.sha256(der).hexdigest()),
        ("key SHA-256", hashlib.sha256(evidence.spki).hexdigest()),
        ("not before", Moment(evidence.not_before)),
        ("not after", Moment(evidence.not_after)),
        ("names the app id", None if evidence.claimed_app_id is None else evidence.claimed_app_id.hex()),
        ("names the usage", evidence.claimed_usage),
    )
    return (head, _quote(evidence.quote, evidence.event_log), *_log(evidence.event_log))


def _quote(quote: bytes, event_log: tuple[Event, ...]) -> Section:
    report = tdx.read_report(quote)
    providers = [event.payload for event in event_log if event.name == "key-provider"]
    return _section(
        "TDX quote",
        ("bytes", len(quote)),
        ("quote version", int.from_bytes(quote[:2], "little")),
        ("MRTD", report.mrtd.hex()),
        *((f"RTMR{number}", register.hex()) for number, register in enumerate(report.rtmrs)),
        ("TD attributes", report.td_attributes.hex()),
        ("debug", bool(report.td_attributes[0] & _DEBUG_BIT)),
        ("signer of the TDX module", report.mr_signer_seam.hex() if any(report.mr_signer_seam) else "zero, Intel's"),
        ("service TD", report.mr_service_td.hex() if any(report.mr_service_td) else None),
        ("configuration id", report.mr_config_id.hex() if any(report.mr_config_id) else None),
        (
            "mr_aggregated",
            registers.mr_aggregated(
                report.mrtd, report.rtmrs, report.mr_config_id, report.mr_owner, report.mr_owner_config
            ).hex(),
        ),
        (
            "mr_system",
            registers.mr_system(report.mrtd, report.rtmrs, registers.mr_key_provider(providers[0])).hex()
            if providers
            else None,
        ),
        ("report data", report.report_data.hex()),
    )


def _report(data: bytes) -> Section:
    report = snp.parse(data)
    return _section(
        "SEV-SNP report",
        ("report version", report.version),
        ("measurement", report.measurement.hex()),
        ("host data (compose hash)", report.host_data.hex()),
        ("guest policy", [flag.name for flag in PolicyFlag if flag in report.policy and flag.name is not None]),
        ("debug", PolicyFlag.DEBUG_ALLOWED in report.policy),
        ("VMPL", report.vmpl),
        ("chip id", report.chip_id.hex()),
        ("reported TCB", report.reported_tcb.hex()),
        ("report data", report.report_data.hex()),
    )


def _log(events: tuple[Event, ...]) -> tuple[Section, Section]:
    counts = [sum(event.imr == imr for event in events) for imr in range(RUNTIME_REGISTER + 1)]
    runtime = [(event.name, _text_or_hex(event.payload)) for event in events if event.imr == RUNTIME_REGISTER]
    return (
        _section("identity", *_identity(events)),
        Section(
            "event log",
            (
                Fact("events of RTMR0 to RTMR3", counts),
                Fact(
                    "runtime events",
                    [{"event": name, "payload": payload} for name, payload in runtime],
                    entries=tuple(f"{name}: {payload}" for name, payload in runtime),
                ),
            ),
        ),
    )


def _identity(events: tuple[Event, ...]) -> tuple[tuple[str, Json], ...]:
    try:
        found = eventlog.read_identity(events)
    except MeshError as error:
        return (("identity", f"not stated: {error.reason}: {error}"),)
    return (
        ("app id", found.app_id.hex()),
        ("compose hash", found.compose_hash.hex()),
        ("instance id", found.instance_id.hex()),
        ("OS image hash", found.os_image_hash.hex()),
        ("key provider", _text_or_hex(found.key_provider)),
    )


def _collateral(collateral: Collateral) -> Section:
    def crl(text: str) -> x509.CertificateRevocationList:
        return x509.load_der_x509_crl(bytes.fromhex(text))

    def crl_end(text: str) -> Moment | None:
        end = crl(text).next_update_utc
        return None if end is None else Moment(int(end.timestamp()))

    def member(document: str, name: str) -> Json:
        value: Json = jcs.loads_object(document.encode()).get(name)
        return value

    def moment(document: str, name: str) -> Moment:
        return Moment(rfc3339_seconds(member(document, name)))

    info, identity = collateral.tcb_info, collateral.qe_identity
    read: tuple[tuple[str, Callable[[], Json | Moment]], ...] = (
        ("CPU family (FMSPC)", lambda: member(info, "fmspc")),
        ("TCB evaluation number", lambda: member(info, "tcbEvaluationDataNumber")),
        ("TCB info issued at", lambda: moment(info, "issueDate")),
        ("TCB info ends at", lambda: moment(info, "nextUpdate")),
        ("QE identity issued at", lambda: moment(identity, "issueDate")),
        ("QE identity ends at", lambda: moment(identity, "nextUpdate")),
        ("PCK CRL issued at", lambda: Moment(int(crl(collateral.pck_crl).last_update_utc.timestamp()))),
        ("PCK CRL ends at", lambda: crl_end(collateral.pck_crl)),
        ("root CRL ends at", lambda: crl_end(collateral.root_ca_crl)),
        ("root CRL's issuer", lambda: crl(collateral.root_ca_crl).issuer.rfc4514_string()),
    )
    return Section("collateral", tuple(Fact(name, _readable(value)) for name, value in read))


def _endorsement(endorsement: SnpEndorsement) -> Section:
    crl = endorsement.crl
    end = None if crl is None else crl.next_update_utc
    return _section(
        "endorsement",
        ("root SHA-256", hashlib.sha256(endorsement.ark.der).hexdigest()),
        ("revocation list", crl is not None),
        ("revocation list ends at", None if end is None else Moment(int(end.timestamp()))),
    )


def _gpu(evidence: GpuEvidence | None) -> Iterator[Section]:
    if evidence is None:
        yield _section("GPU evidence", ("present", False))
        return
    yield _section(
        "GPU evidence",
        ("present", True),
        ("devices", sorted(evidence.eat.submodules)),
        ("switches", [] if evidence.switch_eat is None else sorted(evidence.switch_eat.submodules)),
        ("signing keys", sorted(evidence.keys)),
        ("own reports", len(evidence.reports)),
        *_token(evidence.eat.overall, _OVERALL_CLAIMS),
    )
    yield from _devices(evidence.eat, "{}")
    if evidence.switch_eat is not None:
        # By another title: what a prover calls a switch must not take a GPU's place.
        yield _section("switch token", *_token(evidence.switch_eat.overall, _OVERALL_CLAIMS))
        yield from _devices(evidence.switch_eat, "{} of the switch token")


def _devices(eat: DetachedEat, title: str) -> Iterator[Section]:
    for name, token in sorted(eat.submodules.items()):
        yield _section(title.format(name), *_token(token, _GPU_CLAIMS))


def _token(token: str, names: tuple[str, ...]) -> Iterator[tuple[str, Json | Moment]]:
    """A few of a token's claims, its signature not looked at."""
    claims = _token_claims(token)
    if claims is None:
        yield "token", "its claims cannot be read"
        return
    for name in names:
        if name in claims:
            yield name, claims[name]
    for name, title in (("iat", "issued at"), ("exp", "ends at")):
        value = claims.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            yield title, Moment(value)


def _token_claims(token: str) -> Mapping[str, Any] | None:
    segments = token.split(".")
    try:
        text = segments[1] if len(segments) > 1 else ""
        return jcs.loads_object(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (ValueError, MeshError):
        return None


def _readable(read: Callable[[], Json | Moment]) -> Json | Moment:
    """One part that cannot be read is said, and does not hide the others."""
    try:
        return read()
    except MeshError as error:
        return f"cannot be read: {error.reason}"
    except (ValueError, OverflowError):
        return "cannot be read"


def _text_or_hex(data: bytes) -> str:
    text = data.decode("ascii", errors="replace")
    return text if text and text.isascii() and text.isprintable() else data.hex()


def _snake(name: str) -> str:
    return re.sub("[^a-z0-9]+", "_", name.lower()).strip("_")


def _section(title: str, *facts: tuple[str, Json | Moment]) -> Section:
    return Section(title, tuple(Fact(name, value) for name, value in facts))
