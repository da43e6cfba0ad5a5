"""Responsible for the attestation statement (§3.2) and the report around it (§4).

The report is not signed: its integrity comes from the bindings that `verify_report_binding` recomputes and from the
quote, which the caller verifies. Evidence is carried, not judged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from libs import jcs
from libs.aci import keyset as keysets
from libs.aci.encoding import API_VERSION, Members, is_digest, is_hex
from libs.aci.keyset import Keyset
from libs.errors import Code, MeshError

DIRECT = "direct"
AGGREGATOR = "aggregator"


class NonceMalformed(MeshError):
    """The nonce is not 64 lower-case hex digits."""

    code = Code.INVALID_ARGUMENT
    reason = "NONCE_MALFORMED"


class ReportMalformed(MeshError):
    """The report is not the document that §4.1 defines."""

    code = Code.INVALID_ARGUMENT
    reason = "REPORT_MALFORMED"


class KeysetDigestMismatch(MeshError):
    """The report names another digest than its keyset has."""

    reason = "KEYSET_DIGEST_MISMATCH"


class ReportDataMismatch(MeshError):
    """The report data is not the statement's digest for this keyset and nonce."""

    reason = "REPORT_DATA_MISMATCH"


class ReportSlotMismatch(MeshError):
    """The quote's 64-byte slot does not hold the report data."""

    reason = "REPORT_SLOT_MISMATCH"


@dataclass(frozen=True, slots=True)
class SourceProvenance:
    """Where the workload's code comes from (§4.1). A claim: only measured evidence makes it count."""

    repo_url: str | None = None
    repo_commit: str | None = None
    image_digest: str | None = None
    image_provenance: Mapping[str, Any] | None = None

    def document(self) -> dict[str, Any]:
        return {
            "repo_url": self.repo_url,
            "repo_commit": self.repo_commit,
            "image_digest": self.image_digest,
            "image_provenance": None if self.image_provenance is None else dict(self.image_provenance),
        }


@dataclass(frozen=True, slots=True)
class Report:
    """A report as parsed. `keyset_digest` is what it says, not what was computed."""

    keyset_digest: str
    keyset: Keyset
    tee_type: str
    report_data: bytes
    provenance: SourceProvenance | None
    evidence: Mapping[str, Any] = field(repr=False)
    serving: str
    e2ee_versions: tuple[str, ...]


def check_nonce(nonce: str) -> str:
    """Return the nonce. Raises `NonceMalformed` unless it is 32 bytes in lower-case hex."""
    if not is_hex(nonce, 32):
        raise NonceMalformed("nonce must be exactly 64 lower-case hex digits")
    return nonce


def statement(keyset_digest: str, nonce: str | None) -> bytes:
    """Return the exact bytes that a quote binds. Without a nonce it proves binding, not freshness."""
    if not is_digest(keyset_digest):
        raise ReportMalformed("the keyset digest must be sha256: and 64 lower-case hex digits")
    quoted = "null" if nonce is None else f'"{check_nonce(nonce)}"'
    return f'{{"keyset_digest":"{keyset_digest}","nonce":{quoted},"purpose":"aci.report_data.v1"}}'.encode("ascii")


def report_data(keyset_digest: str, nonce: str | None) -> bytes:
    """Return the 32 bytes that name keyset and nonce in a quote."""
    return hashlib.sha256(statement(keyset_digest, nonce)).digest()


def slot(data: bytes) -> bytes:
    """Return the 64-byte report-data slot for 32 bytes of report data."""
    if len(data) != 32:
        raise ReportMalformed("report data is 32 bytes")
    return data + bytes(32)


def assemble(
    keyset: Keyset,
    *,
    nonce: str | None,
    tee_type: str,
    provenance: SourceProvenance,
    evidence: Mapping[str, Any],
    serving: str = AGGREGATOR,
    e2ee_versions: tuple[str, ...] = (),
    more_capabilities: Mapping[str, Any] | None = None,
) -> bytes:
    """Return the report document, JSON. The evidence must hold a quote over `slot(report_data(...))`.

    `more_capabilities` are of the service's own making; readers that do not know them ignore them (Appendix B).
    """
    keyset_digest = keyset.digest
    return jcs.dumps(
        {
            "api_version": API_VERSION,
            "workload_keyset_digest": keyset_digest,
            "attestation": {
                "tee_type": tee_type,
                "workload_keyset": keyset.document(),
                "report_data": report_data(keyset_digest, nonce).hex(),
                "source_provenance": provenance.document(),
                "evidence": dict(evidence),
            },
            "service_capabilities": {
                **(more_capabilities or {}),
                "supported_e2ee_versions": list(e2ee_versions),
                "serving": serving,
            },
        }
    )


def parse(document: bytes) -> Report:
    """Read a report. Raises `ReportMalformed`, `JsonMalformed`, `KeysetMalformed` or `KeyRolesMixed`.

    Members that this version does not define are ignored outside the keyset (Appendix B).
    """
    members = Members(jcs.loads(document), "report", ReportMalformed)
    members.api_version()
    attestation = members.object("attestation")
    capabilities = members.object("service_capabilities")
    serving = capabilities.text("serving")
    return Report(
        keyset_digest=members.digest("workload_keyset_digest"),
        keyset=keysets.parse(attestation.mapping("workload_keyset")),
        tee_type=attestation.text("tee_type"),
        report_data=bytes.fromhex(attestation.hex("report_data", 32)),
        provenance=_provenance(attestation.object("source_provenance"))
        if attestation.has("source_provenance")
        else None,
        evidence=attestation.mapping("evidence"),
        # An unknown serving mode is treated as the one that promises less (Appendix B).
        serving=DIRECT if serving == DIRECT else AGGREGATOR,
        e2ee_versions=capabilities.texts("supported_e2ee_versions"),
    )


def verify_report_binding(report: Report, nonce: str) -> str:
    """Recompute the chain from keyset over statement to report data (§9.1 step 2) and return the keyset's digest.

    The nonce must be the verifier's own. Raises `NonceMalformed`, `KeysetDigestMismatch` or `ReportDataMismatch`. Does
    not check the quote, nor that its slot holds the report data: see `verify_slot`.
    """
    check_nonce(nonce)
    keyset_digest = report.keyset.digest
    if report.keyset_digest != keyset_digest:
        raise KeysetDigestMismatch("the report names another digest than its keyset has")
    if report.report_data != report_data(keyset_digest, nonce):
        raise ReportDataMismatch("the report data does not bind this keyset and the nonce that was sent")
    return keyset_digest


def verify_slot(report: Report, quoted: bytes) -> None:
    """Accept the 64 bytes that the verified quote carries. Raises `ReportSlotMismatch`."""
    if quoted != slot(report.report_data):
        raise ReportSlotMismatch("the quote binds other report data than the report states")


def _provenance(members: Members) -> SourceProvenance:
    return SourceProvenance(
        repo_url=_nullable_text(members, "repo_url"),
        repo_commit=_nullable_text(members, "repo_commit"),
        image_digest=_nullable_text(members, "image_digest"),
        image_provenance=None if members.raw().get("image_provenance") is None else members.mapping("image_provenance"),
    )


def _nullable_text(members: Members, name: str) -> str | None:
    return members.text_or_null(name) if members.has(name) else None
