"""Every parser of foreign evidence as one function of bytes, with its seeds and the memory that it may take.

The invariant: whatever the bytes, a target returns or raises a `MeshError`, and its peak of allocated memory stays
below `Target.allowance`. Hypothesis and atheris run the same targets.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import rfc8785

from libs import jcs
from libs.errors import MeshError
from libs.tee import ear, eventlog, evidence, shape, tdx
from libs.tee.archived import AppraisalRecord, Bundle
from libs.tee.challenge import Challenge
from libs.tee.collateral import Collateral
from libs.tee.evidence import Evidence
from libs.tee.nvidia import claims as gpu_claims
from libs.tee.nvidia.chain import verify_chain
from libs.tee.nvidia.collected import read_collected
from libs.tee.nvidia.evidence import GpuEvidence, verify_gpu_evidence
from libs.tee.nvidia.jwks import read_jwks
from libs.tee.nvidia.keys import read_chains, verify_key_chain
from libs.tee.nvidia.report import parse_report
from libs.tee.ratls import blob
from libs.tee.ratls.certificate import read_certificate
from libs.tee.snp import report as snp
from libs.tee.snp import verification
from libs.tee.snp.endorsement import SnpEndorsement
from libs.tee.snp.report import Product, Tcb
from tests.fakes import snp_platform
from tests.fuzz import seeds
from tests.fuzz.seeds import Seeds, world
from tests.unit.libs.tee.bench import NOW
from tests.unit.libs.tee.nvidia import gpu_bench

_KIB = 1024


class BoundExceeded(AssertionError):
    """A parser took more memory than its target states."""


@dataclass(frozen=True, slots=True)
class Target:
    run: Callable[[bytes], object]
    seeds: Seeds
    # Peak of allocated memory: so many bytes for each byte of input, and so many beside.
    bytes_per_byte: int
    bytes_beside: int
    # How long hostile inputs are made.
    max_bytes: int = 32 * _KIB

    def allowance(self, size: int) -> int:
        return self.bytes_per_byte * size + self.bytes_beside

    def survive(self, data: bytes) -> None:
        """Run one input. Only a `MeshError` with a reason may come out of the parser."""
        try:
            self.run(data)
        except MeshError as refusal:
            if not refusal.reason.isupper():
                raise AssertionError("a refusal has no reason") from refusal

    def survive_measured(self, data: bytes) -> int:
        """Run one input and return its peak of allocated memory. Raises `BoundExceeded`."""
        tracemalloc.start()
        try:
            self.survive(data)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        if peak > self.allowance(len(data)):
            raise BoundExceeded(f"{len(data)} bytes of input took {peak} bytes")
        return peak


def _quote(data: bytes) -> None:
    try:
        cut = tdx.cut(data)
    except MeshError:
        tdx.read_report(data)
        raise
    if cut + bytes(len(data) - len(cut)) != data or tdx.cut(cut) != cut:
        raise AssertionError("the cut form is another quote")
    tdx.read_report(cut)


def _event_log(data: bytes) -> None:
    events = eventlog.parse(jcs.loads(data))
    if eventlog.parse([event.to_json() for event in events]) != events:
        raise AssertionError("the events are not those that were written")
    try:
        eventlog.verify_replay(events, world().bench.td.rtmrs)
    finally:
        eventlog.read_identity(events)


def _certificate(data: bytes) -> None:
    read = read_certificate(data)
    eventlog.verify_replay(read.event_log, world().bench.td.rtmrs)
    read.verify_report_data(tdx.read_report(read.quote).report_data)
    read.verify_age(NOW, 24 * 3600)


def _attestation(data: bytes) -> None:
    read = blob.parse(data)
    eventlog.verify_replay(read.event_log, world().bench.td.rtmrs)


def _collateral(data: bytes) -> None:
    read = Collateral.decode(data)
    if Collateral.decode(read.encode()) != read:
        raise AssertionError("the collateral is not what was written")
    for act in (read.root_crl, lambda: read.is_current(NOW), read.expires_at):
        try:
            act()
        except MeshError:
            continue


def _verified_quote(data: bytes) -> None:
    parts = jcs.loads_object(data)
    collateral = Collateral.parse(parts.get("collateral"))
    tdx.verify(tdx.cut(_octets(parts.get("quote"))), collateral, (world().bench.machine.vendor_root,), NOW)


def _snp_report(data: bytes) -> None:
    read = snp.parse(data)
    for product in Product:
        for tcb in (read.reported_tcb, read.launch_tcb):
            try:
                Tcb.decode(tcb, product)
            except MeshError:
                continue
    verification.verify_signer(read)


def _snp_endorsement(data: bytes) -> None:
    parts = jcs.loads_object(data)
    endorsement = SnpEndorsement.parse(parts.get("endorsement"))
    if SnpEndorsement.decode(endorsement.encode()).encode() != endorsement.encode():
        raise AssertionError("the endorsement is not what was written")
    verification.verify(_octets(parts.get("report")), endorsement, [world().chip.root], snp_platform.NOW)


def _challenge(data: bytes) -> None:
    read = Challenge.decode(data)
    if Challenge.decode(read.encode()) != read:
        raise AssertionError("the challenge is not what was written")
    read.verify_signed(world().bench.issuer.spki, NOW, 300)


def _gpu_evidence(data: bytes) -> None:
    read = GpuEvidence.parse(jcs.loads(data))
    if GpuEvidence.parse(read.to_json()).digest != read.digest:
        raise AssertionError("the GPU evidence is not what was written")
    verify_gpu_evidence(read, gpu_bench.NONCE, world().gpu.rule, gpu_bench.NOW)


def _gpu_claims(data: bytes) -> None:
    """What the issuer signed, in whatever form: only the judgement behind the signatures."""
    read = jcs.loads(data)
    overall, device = (each if isinstance(each, dict) else {} for each in _pair(read))
    acts: tuple[Callable[[], object], ...] = (
        lambda: gpu_claims.judge_version(overall),
        lambda: gpu_claims.judge_overall(overall),
        lambda: gpu_claims.judge_switch("SWITCH-0", device),
        lambda: gpu_claims.judge_gpu("GPU-0", device),
    )
    for act in acts:
        try:
            act()
        except MeshError:
            continue


def _gpu_chain(data: bytes) -> None:
    verify_chain(data.decode("utf-8", "replace"), world().gpu.rule.device_roots, gpu_bench.NOW)


def _gpu_key_chain(data: bytes) -> None:
    value = jcs.loads(data)
    try:
        (chain,) = read_chains({"key": value}).values()
    except ValueError as error:
        # What the evidence that holds them turns it into.
        raise jcs.JsonMalformed("no certificates") from error
    (issuer,) = world().gpu.rule.issuers.values()
    verify_key_chain(chain, issuer.roots, gpu_bench.NOW)


def _evidence(data: bytes) -> Evidence:
    read = evidence.parse(data)
    if rfc8785.dumps(jcs.loads(data)) != data:
        raise AssertionError("a document was read that is not canonical")
    return read


def _attestation_result(data: bytes) -> None:
    ear.verify_ear(data.decode("utf-8", "replace"), world().bench.issuer.spki, NOW)


def _archive(data: bytes) -> None:
    try:
        AppraisalRecord.decode(data)
    except MeshError:
        Bundle.decode(data)


def _json(data: bytes) -> None:
    value = jcs.loads(data)
    written = jcs.dumps(value)
    if written != rfc8785.dumps(value) or jcs.loads(written) != value:
        raise AssertionError("the canonical form is another one")


def _octets(value: Any) -> bytes:
    try:
        return shape.binary(value, "octets")
    except ValueError as error:
        raise jcs.JsonMalformed("not hex") from error


def _pair(value: Any) -> tuple[Any, Any]:
    match value:
        case [first, second]:
            return first, second
    return {}, {}


# A parsed document is larger than its text: containers in containers cost up to 56 bytes for each of theirs.
_JSON_BYTES_PER_BYTE = 64

TARGETS: Mapping[str, Target] = {
    "json": Target(_json, seeds.json_texts, 2 * _JSON_BYTES_PER_BYTE, 64 * _KIB, 4 * _KIB),
    "quote": Target(_quote, seeds.quotes, 8, 32 * _KIB, 8 * _KIB),
    "event-log": Target(_event_log, seeds.event_logs, _JSON_BYTES_PER_BYTE, 64 * _KIB),
    "certificate": Target(_certificate, seeds.certificates, 16, 1280 * _KIB),
    "attestation-scale": Target(_attestation, seeds.attestations_in_scale, 16, 256 * _KIB, 16 * _KIB),
    "attestation-messagepack": Target(_attestation, seeds.attestations_in_messagepack, 16, 256 * _KIB, 16 * _KIB),
    "collateral": Target(_collateral, seeds.collaterals, _JSON_BYTES_PER_BYTE, 64 * _KIB),
    "quote-verification": Target(_verified_quote, seeds.quotes_with_collateral, _JSON_BYTES_PER_BYTE, 64 * _KIB),
    "challenge": Target(_challenge, seeds.challenges, _JSON_BYTES_PER_BYTE, 64 * _KIB, 8 * _KIB),
    "evidence": Target(_evidence, seeds.documents, _JSON_BYTES_PER_BYTE, 64 * _KIB, 64 * _KIB),
    "attestation-result": Target(_attestation_result, seeds.attestation_results, _JSON_BYTES_PER_BYTE, 64 * _KIB),
    "archive": Target(_archive, seeds.archived_bundles, _JSON_BYTES_PER_BYTE, 64 * _KIB, 64 * _KIB),
    "snp-report": Target(_snp_report, seeds.snp_reports, 8, 32 * _KIB, 2 * _KIB),
    "snp-endorsement": Target(_snp_endorsement, seeds.snp_endorsements, _JSON_BYTES_PER_BYTE, 64 * _KIB),
    "gpu-evidence": Target(_gpu_evidence, seeds.gpu_evidence, _JSON_BYTES_PER_BYTE, 64 * _KIB, 64 * _KIB),
    "gpu-claims": Target(_gpu_claims, seeds.gpu_claims, _JSON_BYTES_PER_BYTE, 64 * _KIB, 16 * _KIB),
    "gpu-report": Target(parse_report, seeds.gpu_reports, 16, 32 * _KIB, 20 * _KIB),
    "gpu-chain": Target(_gpu_chain, seeds.gpu_chains, 16, 64 * _KIB, 40 * _KIB),
    "gpu-key-chain": Target(_gpu_key_chain, seeds.gpu_key_chains, _JSON_BYTES_PER_BYTE, 64 * _KIB),
    "gpu-keys": Target(read_jwks, seeds.key_sets, _JSON_BYTES_PER_BYTE, 64 * _KIB),
    "gpu-collected": Target(read_collected, seeds.collected, _JSON_BYTES_PER_BYTE, 64 * _KIB, 64 * _KIB),
}
