"""Responsible for the values that policy states about evidence: what one role may be.

The values only say; `libs.tee.appraisal` judges. An empty measurement set allows nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Measurement:
    """One allowed combination of code, operating system and machine shape; every member is lower-case hex.

    The eight are compared together: a compose hash on another firmware is another measurement.
    """

    compose_hash: str
    app_id: str
    os_image_hash: str
    # SHA-256 of the payload of the `key-provider` event.
    key_provider: str
    mrtd: str
    rtmr0: str
    rtmr1: str
    rtmr2: str

    def to_json(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class TcbRule:
    """Which platform states are accepted, and how old the vendor's word about them may be."""

    # In Intel's words, for example "UpToDate". A status not listed is refused.
    statuses: frozenset[str]
    refused_advisories: frozenset[str]
    # For how long after its TCB date a level that is listed but out of date is still accepted; 0 accepts none.
    grace_seconds: int
    minimum_evaluation_number: int
    maximum_collateral_age_seconds: int


@dataclass(frozen=True, slots=True)
class DeviceRule:
    """Which machines are accepted, by device id (SHA-256 of the PPID, lower-case hex)."""

    # Empty: policy lists no machines, and any that is not revoked will do.
    allowed: frozenset[str]
    revoked: frozenset[str]


@dataclass(frozen=True, slots=True)
class RoleRules:
    """Everything that one role's evidence must satisfy."""

    role: str
    # DER of the vendors' root certificates.
    vendor_roots: tuple[bytes, ...]
    measurements: frozenset[Measurement]
    tcb: TcbRule
    devices: DeviceRule
    gpu_required: bool
    # For nodes: model id to allowed weights digests. An id or digest that is not listed is refused.
    models: Mapping[str, frozenset[str]]
    # Accepted TD attributes, exact values, 16 hex characters.
    td_attributes: frozenset[str]
