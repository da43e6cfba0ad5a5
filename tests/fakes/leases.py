"""Leases as an appraisal would leave them, for tests of what is done with them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from typing import Any, cast

from libs import jcs
from libs.identity.certificate import MeshCertificate
from libs.identity.lease import Lease
from libs.policy.document import Policy
from libs.tee.appraisal import Appraisal
from libs.tee.challenge import Challenge
from libs.tee.collateral import Collateral
from libs.tee.evidence import Evidence
from libs.tee.measurement import Measurement
from libs.tee.workload import Claim, Source, Status, WorkloadClaims

TRUST_DOMAIN = "mesh.test"
MODEL = "smollm2-135m"
WEIGHTS = "77" * 32
MEASUREMENT = Measurement(*(f"{number:02x}" * 32 for number in range(8)))
PROVEN = Claim(Status.ASSERTED, Source.HARDWARE_PROVEN, "proven")
UNKNOWN = Claim(Status.UNKNOWN)
CLAIMS = WorkloadClaims(PROVEN, UNKNOWN, PROVEN, PROVEN, PROVEN, PROVEN)


def node_lease(
    instance: str = "one",
    *,
    key: str = "first",
    models: tuple[tuple[str, str], ...] = ((MODEL, WEIGHTS),),
    life_seconds: float = 600.0,
    claims: WorkloadClaims = CLAIMS,
    more_claims: Mapping[str, Any] | None = None,
) -> Lease:
    """A node of this name and key; `key` is any text that tells keys apart."""
    now = int(time.time())
    spki = f"spki of {instance} {key}".encode()
    workload = {
        "role": "node",
        "engine": "llama",
        "models": [{"id": model, "weights_sha256": weights} for model, weights in models],
        **(more_claims or {}),
    }
    document = jcs.dumps({"spki": spki.hex(), "claims": workload})
    digest = hashlib.sha256(document).digest()
    certificate = MeshCertificate(
        f"certificate of {instance} {key}".encode(), TRUST_DOMAIN, "node", instance, spki, digest, now, now + 3600
    )
    evidence = Evidence(
        tee_type="tdx",
        quote=b"quote",
        event_log=(),
        app_compose="{}",
        spki=spki,
        claims=workload,
        challenge=Challenge.unsigned("kms/1", "evidence", now),
        gpu_evidence=None,
        gpu_evidence_digest=None,
        collateral=cast(Collateral, None),
        document=document,
        digest=digest,
    )
    appraisal = Appraisal(
        role="node",
        tee_type="tdx",
        measurement=MEASUREMENT,
        spki_sha256=certificate.spki_sha256,
        evidence_digest=digest,
        policy_version=1,
        appraised_at=now,
        valid_until=now + 3600,
        instance_id="aa" * 20,
        app_id="bb" * 20,
        device_id="cc" * 32,
        cpu_family="00906ed50000",
        tcb_status="UpToDate",
        advisories=(),
        vendor_root_sha256=b"\x0d" * 32,
        gpu=None,
        claims=claims,
        workload_claims=workload,
    )
    return Lease(certificate, evidence, appraisal, now + life_seconds, cast(Policy, None))
