"""Genuine documents, made by the software TEE and the fakes: what every hostile one begins as.

Keys are made anew in every process, so a seed verifies only beside the `World` that it came from.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from libs import jcs
from libs.identity import certificate as identity
from libs.tee import ear, evidence
from libs.tee.appraisal import Appraisal, SignedBy, appraise
from libs.tee.archived import Accepted, AppraisalRecord, Bundle, Question, Refused
from services.devtee import der
from services.devtee.attestation import attestation_blob
from services.devtee.collateral import CollateralShape
from services.devtee.nras import TokenShape
from services.devtee.tls import TlsRequest, issue_tls_key
from tests.fakes.snp_platform import SnpChip, chip
from tests.unit.libs.tee.bench import NOW, Bench
from tests.unit.libs.tee.nvidia.gpu_bench import GpuBench, read_claims
from tests.unit.libs.tee.ratls.maker import Subject, compressed, extension, legacy_log, message, packed

_BODY_15_BYTES = 648
_SET, _DIRECTORY_NAME = 0x31, 0xA4


@dataclass(frozen=True, slots=True)
class World:
    """One of everything that makes evidence."""

    bench: Bench
    gpu: GpuBench
    chip: SnpChip
    subject: Subject


@cache
def world() -> World:
    return World(Bench.create(), GpuBench.create(), chip(), Subject.create())


def quotes() -> list[bytes]:
    quote = world().bench.td.quote(bytes(range(64)))
    header, body, rest = quote[:48], quote[48:632], quote[632:]
    newer = b"\x05\0" + header[2:]
    return [
        quote,
        quote + bytes(70),
        newer + struct.pack("<HI", 2, len(body)) + body + rest,
        newer + struct.pack("<HI", 3, _BODY_15_BYTES) + body.ljust(_BODY_15_BYTES, b"\0") + rest,
    ]


def event_logs() -> list[bytes]:
    events = [event.to_json() for event in world().bench.event_log]
    stripped = [event | {"digest": ""} if event["imr"] == 3 else event for event in events]
    return [jcs.dumps(log) for log in (events, stripped, stripped[-8:], [])]


def attestations_in_scale() -> list[bytes]:
    td, bound = world().bench.td, world().subject.report_data
    return [attestation_blob(td, bound), attestation_blob(td, bound, whole_log=False)]


def attestations_in_messagepack() -> list[bytes]:
    document = message(world().bench.td, world().subject.report_data)
    seeds = [packed(document)]
    for part in (document["platform"]["data"]["quote"], document["stack"]["data"]["report_data"]):
        part[:] = part[:64]
    document["platform"]["data"]["event_log"] = document["platform"]["data"]["event_log"][-4:]
    return [*seeds, packed(document)]


def certificates() -> list[bytes]:
    td, subject = world().bench.td, world().subject
    quote, log = td.quote(subject.report_data), legacy_log(td.runtime_events)
    contents: list[dict[int, bytes]] = [
        {1: quote, 2: log},
        {1: quote, 2: compressed(log)},
        {8: attestation_blob(td, subject.report_data, whole_log=False)},
        {8: packed(message(td, subject.report_data))},
        {8: b"", 3: td.identity.app_id, 4: b"app:custom"},
    ]
    issued = issue_tls_key(td, TlsRequest("node", ra_tls=True), NOW).chain[0]
    return [
        *(subject.certificate(extension(arc, each) for arc, each in content.items()) for content in contents),
        subject.certificate([extension(8, contents[2][8]), directory_name(b"\x0c\x02ab")]),
        x509.load_pem_x509_certificate(issued.encode()).public_bytes(Encoding.DER),
    ]


def directory_name(value: bytes) -> x509.UnrecognizedExtension:
    """A subject's alternative name: a directory's, with this DER value for its common name."""
    attribute = der.sequence(der.object_identifier("2.5.4.3"), value)
    name = der.sequence(bytes((_SET, len(attribute))) + attribute)
    general = der.sequence(bytes((_DIRECTORY_NAME, len(name))) + name)
    return x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, general)


def collaterals() -> list[bytes]:
    return [world().bench.collateral().encode(), world().bench.collateral(CollateralShape(NOW, revoked=_ALL)).encode()]


def quotes_with_collateral() -> list[bytes]:
    quote, collateral = quotes()[0], world().bench.collateral()
    return [jcs.dumps({"quote": quote.hex(), "collateral": collateral.to_json()})]


def snp_reports() -> list[bytes]:
    return [world().chip.report(version=version) for version in (2, 3, 5)]


def snp_endorsements() -> list[bytes]:
    made = world().chip
    return [
        jcs.dumps({"report": made.report().hex(), "endorsement": made.members(crl=crl)}) for crl in (made.crl(), b"")
    ]


def challenges() -> list[bytes]:
    signed = world().bench.issuer.challenge()
    return [signed.encode(), jcs.dumps(signed.to_json() | {"certificate": None, "signature": None})]


def gpu_evidence() -> list[bytes]:
    gpu = world().gpu
    switched = gpu.evidence(TokenShape(switches=("77",)))
    return [jcs.dumps(each.to_json()) for each in (gpu.evidence(), gpu.evidence(reports=gpu.posted()), switched)]


def gpu_claims() -> list[bytes]:
    overall, tokens = world().gpu.bundle()
    return [json.dumps([read_claims(overall[1]), read_claims(tokens["GPU-0"])]).encode()]


def gpu_reports() -> list[bytes]:
    return [each.report for each in world().gpu.posted()]


def gpu_chains() -> list[bytes]:
    return [each.certificate_chain for each in world().gpu.posted()]


def collected() -> list[bytes]:
    entries = [
        {"arch": "HOPPER", "evidence": _base64(each.report), "certificate": _base64(each.certificate_chain)}
        for each in world().gpu.posted()
    ]
    return [json.dumps({"evidences": entries}).encode()]


def gpu_key_chains() -> list[bytes]:
    (chain,) = world().gpu.keys.values()
    return [jcs.dumps(chain), jcs.dumps([*chain, world().gpu.nras.authority.root.der.hex()])]


def key_sets() -> list[bytes]:
    key_set = world().gpu.nras.jwks()
    (key, *_) = key_set["keys"]
    more = {"alg": "ES384", "use": "sig"}
    return [json.dumps(each).encode() for each in (key_set, {"keys": [key | more, key | more | {"kid": "other"}]})]


def documents() -> list[bytes]:
    bench, made = world().bench, world().chip
    plain = bench.evidence()
    confidential = bench.evidence(gpu_evidence=world().gpu.evidence())
    endorsed = evidence.assemble(
        quote=made.report(),
        event_log=(),
        app_compose=plain.app_compose,
        spki=plain.spki,
        claims=plain.claims,
        challenge=plain.challenge,
        collateral=made.endorsement(),
    )
    return [each.document for each in (plain, confidential, endorsed)]


@cache
def _appraisal() -> Appraisal:
    return appraise(world().bench.evidence(), world().bench.rules(), world().bench.context())


def attestation_results() -> list[bytes]:
    issuer, key = world().bench.issuer, ec.generate_private_key(ec.SECP256R1())
    subject = ear.Subject(_appraisal(), bytes(32), bytes(32), development=False, record_digest=bytes(32))
    named = identity.Subject("mesh.test", "attestation", "1", bytes(32))
    certificate = identity.issue(named, key.public_key(), issuer.key, issuer.certificate_der, now=NOW)
    signer = ear.Signer("spiffe://mesh.test/attestation/1", key, certificate, NOW + 3540)
    return [ear.sign_ear(subject, signer).encode()]


def archived_bundles() -> list[bytes]:
    document, policy = world().bench.evidence().document, b'{"policy":1}'
    digests = [hashlib.sha256(each).digest() for each in (document, policy)]
    question = Question("router", NOW, world().bench.spki, SignedBy(world().bench.issuer.spki, 300))
    outcomes = (Accepted(_appraisal().to_json()), Refused("TD_DEBUG", "a debug TD", 4))
    records = [AppraisalRecord(digests[0], digests[1], question, outcome) for outcome in outcomes]
    return [*(Bundle.of(each, document, policy).encode() for each in records), *(each.encode() for each in records)]


def json_texts() -> list[bytes]:
    values: list[Any] = [
        {"a": [1, -1, 2**53 - 1, True, None], "b": {"\u00e9": "\u20ac", "\U0001f600": "\uffff"}},
        [[[[[[]]]]], {"": ""}, "\\\u0000\u001f\u2028"],
    ]
    return [json.dumps(value, ensure_ascii=escaped).encode() for value in values for escaped in (True, False)]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


_ALL: Any = frozenset({"pck", "platform_ca", "tcb_signing"})
Seeds = Callable[[], list[bytes]]
