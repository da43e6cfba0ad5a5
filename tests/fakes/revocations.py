"""What a revocation of each kind says to hit a lease, and the reason that everyone then refuses with."""

from __future__ import annotations

from libs.identity.lease import Lease
from libs.policy.revocation import RevocationKind

REASONS = {
    RevocationKind.MEASUREMENT: "MEASUREMENT_REVOKED",
    RevocationKind.DEVICE: "DEVICE_REVOKED",
    RevocationKind.CPU_FAMILY: "CPU_FAMILY_REVOKED",
    RevocationKind.KEY: "KEY_REVOKED",
    RevocationKind.NODE: "NODE_REVOKED",
}


def value_of(kind: RevocationKind, lease: Lease) -> str:
    appraisal, certificate = lease.appraisal, lease.certificate
    return {
        RevocationKind.MEASUREMENT: appraisal.measurement.compose_hash,
        RevocationKind.DEVICE: appraisal.device_id,
        RevocationKind.CPU_FAMILY: appraisal.cpu_family,
        RevocationKind.KEY: certificate.spki_sha256.hex(),
        RevocationKind.NODE: certificate.spiffe_id,
    }[kind]
