"""Responsible for what a TD report may say of the TD: not debugged, not steered, not movable, attributes as listed."""

from __future__ import annotations

from dataclasses import dataclass

from libs.errors import Code, MeshError
from libs.tee.steps import Note

_DEBUG_BIT = 1
_ZERO = bytes(48)


class DebugTd(MeshError):
    """The TD runs with debugging on, so its host can read its memory."""

    code = Code.PERMISSION_DENIED
    reason = "TD_DEBUG"


class SeamSignerNotAllowed(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "SEAM_SIGNER_NOT_ALLOWED"


class TdAttributesNotAllowed(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "TD_ATTRIBUTES_NOT_ALLOWED"


class ServiceTdNotAllowed(MeshError):
    """A service TD is bound to this one and could migrate it elsewhere."""

    code = Code.PERMISSION_DENIED
    reason = "SERVICE_TD_NOT_ALLOWED"


@dataclass(frozen=True, slots=True)
class TdReport:
    """The parts of a quote's TD report that this mesh judges."""

    mr_signer_seam: bytes
    td_attributes: bytes
    # Zero, or absent in TD report 1.0.
    mr_service_td: bytes
    mrtd: bytes
    rtmrs: tuple[bytes, bytes, bytes, bytes]
    report_data: bytes
    # What the host configured when it launched the TD; dstack states the application there, or leaves zeros.
    mr_config_id: bytes = _ZERO
    mr_owner: bytes = _ZERO
    mr_owner_config: bytes = _ZERO


def judge_td(report: TdReport, td_attributes: frozenset[str], note: Note) -> None:
    """Refuse a TD that its host can look into, move or steer. `td_attributes`: accepted values, 16 hex characters."""
    note("debug bit", report.td_attributes[0] & _DEBUG_BIT, 0)
    if report.td_attributes[0] & _DEBUG_BIT:
        raise DebugTd("the TD runs in debug mode")
    note("signer of the TDX module", report.mr_signer_seam, "zero, Intel's own")
    if any(report.mr_signer_seam):
        raise SeamSignerNotAllowed("the TDX module is not signed by Intel's own key")
    note("TD attributes", report.td_attributes, td_attributes)
    if report.td_attributes.hex() not in td_attributes:
        raise TdAttributesNotAllowed(f"policy does not list the TD attributes {report.td_attributes.hex()}")
    note("service TD", report.mr_service_td, "zero, none")
    if any(report.mr_service_td):
        raise ServiceTdNotAllowed("a service TD is bound to the TD")
