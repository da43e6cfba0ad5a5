"""It is responsible for refusing what operators revoked: keys and names, whatever their evidence proves, and at once
those of whom an earlier appraisal found what is revoked now.
"""

from __future__ import annotations

from libs.errors import Code, MeshError
from libs.policy.document import Policy
from libs.tee.appraisal import Appraisal
from libs.tee.device import Device, NotRevoked
from libs.tee.measurement import MeasurementRevoked
from libs.tee.nvidia import evidence as gpu_evidence
from libs.tee.steps import ignore


class KeyRevoked(MeshError):
    """Operators revoked the key: its holder needs a certificate for another one."""

    code = Code.PERMISSION_DENIED
    reason = "KEY_REVOKED"


class NodeRevoked(MeshError):
    """Operators revoked the instance or person, by SPIFFE ID."""

    code = Code.PERMISSION_DENIED
    reason = "NODE_REVOKED"


def verify_not_revoked(spki_sha256: bytes, spiffe_id: str, policy: Policy) -> None:
    """Raise `KeyRevoked` or `NodeRevoked` if operators have withdrawn the bearer of a certificate."""
    if spki_sha256.hex() in policy.revoked.keys:
        raise KeyRevoked(f"the key {spki_sha256.hex()} is revoked")
    if spiffe_id in policy.revoked.spiffe_ids:
        raise NodeRevoked(f"{spiffe_id} is revoked")


def verify_findings_not_revoked(appraisal: Appraisal, policy: Policy) -> None:
    """Raise what an appraisal would raise now if operators have withdrawn something that this earlier one found.

    It verifies nothing anew and takes microseconds, so whomever it passes MUST be judged in full all the same.
    """
    revoked = policy.revoked
    if appraisal.measurement.compose_hash in revoked.compose_hashes:
        raise MeasurementRevoked(f"compose hash {appraisal.measurement.compose_hash} is revoked")
    machine = Device(appraisal.device_id, appraisal.cpu_family)
    NotRevoked(revoked.devices, revoked.cpu_families).holds_until(machine, appraisal.appraised_at, ignore)
    if (gpu := appraisal.gpu) is not None:
        ueids = (*(device.ueid for device in gpu.devices), *(switch.ueid for switch in gpu.switches))
        if found := revoked.devices.intersection(ueids):
            raise gpu_evidence.DeviceRevoked(f"policy has revoked the device {min(found)}")
