"""Responsible for a dstack-vllm-proxy worker as policy judges it: its report, and its signatures over answers.

In a report of version 2 the quote binds `SHA-256(signing key || TLS key's SHA-256) || nonce`, in one of version 1 the
padded signing key and the nonce, and so no channel. GPU evidence is carried by such reports in a form that only its
vendor's service judges; here it is not judged, and nothing is claimed of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from libs import jcs
from libs.aci.encoding import Members, digest
from libs.client.foreign import VLLM_PROXY_FORMAT, ForeignEvidence, ForeignKeyRevoked, verify_about
from libs.errors import Code, MeshError
from libs.policy.document import Policy
from libs.policy.foreign import ForeignProvider
from libs.tee import eventlog, shape, tdx
from libs.tee.eventlog import Identity
from libs.tee.judgement import Verdict, judge
from libs.tee.role import RoleRules
from libs.tee.rules import FOREVER
from libs.tee.steps import Note
from libs.tee.verified import VerifiedPlatform

ED25519 = "ed25519"
_KEY_BYTES = 32
_EVENT_MEMBERS = ("imr", "event_type", "digest", "event", "event_payload")


class WorkerReportMalformed(MeshError):
    """The report is not the one that workers of this kind make."""

    code = Code.INVALID_ARGUMENT
    reason = "WORKER_REPORT_MALFORMED"


class WorkerReportDataMismatch(MeshError):
    """The quote does not bind this signing key, TLS key and nonce."""

    code = Code.PERMISSION_DENIED
    reason = "WORKER_REPORT_DATA_MISMATCH"


class WorkerSignatureInvalid(MeshError):
    """The worker's signature is not its attested key's over this request and this response."""

    code = Code.PERMISSION_DENIED
    reason = "WORKER_SIGNATURE_INVALID"


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker that passed."""

    key: bytes
    """Ed25519, raw: signs its answers."""
    spki_sha256: str | None
    """SHA-256 (hex) of the TLS key that the quote binds; None where it binds no channel."""
    verdict: Verdict


def quote_of(report: bytes) -> bytes:
    """Return the quote, not verified: to ask for its collateral. Raises `WorkerReportMalformed` or `JsonMalformed`."""
    return _Presented(ForeignEvidence("", "", report.decode(errors="replace"), None)).quote


def verify_worker(evidence: ForeignEvidence, provider: ForeignProvider, policy: Policy, now: int) -> Worker:
    """Return what a report proves under what policy wants of this provider. Says nothing about any connection.

    The nonce MUST be the verifier's own, or that of a router whose session is believed. Raises the first refusal.
    """
    verify_about(evidence, provider, VLLM_PROXY_FORMAT)
    presented = _Presented(evidence)
    verdict = judge(presented, policy.foreign_rules(provider), now)
    if presented.spki_sha256 in policy.revoked.keys:
        raise ForeignKeyRevoked("operators have revoked the worker's TLS key")
    return Worker(presented.key, presented.spki_sha256, verdict)


def verify_signature(document: bytes, worker: Worker, request_body: bytes, response_hashes: Collection[str]) -> None:
    """Accept the worker's signature over the request and one of these forms of the response, bare hex.

    Raises `WorkerSignatureInvalid`, `WorkerReportMalformed` or `JsonMalformed`.
    """
    if verify_request_signed(document, worker, digest(request_body)) not in response_hashes:
        raise WorkerSignatureInvalid("the worker signed another response")


def verify_request_signed(document: bytes, worker: Worker, request_hash: str) -> str:
    """Accept the worker's signature over this request, by its digest; return the hash of the response that it names.

    Raises as `verify_signature` does.
    """
    members = Members(jcs.loads(document), "signature", WorkerReportMalformed)
    signed_request, _, response_hash = members.text("text").partition(":")
    if f"sha256:{signed_request}" != request_hash:
        raise WorkerSignatureInvalid("the worker signed another request")
    try:
        signature = shape.binary(members.text("signature"), "signature", 64)
        Ed25519PublicKey.from_public_bytes(worker.key).verify(signature, members.text("text").encode())
    except (InvalidSignature, ValueError) as error:
        raise WorkerSignatureInvalid("the signature is not the attested key's") from error
    return response_hash


class _Presented:
    """A report on its way through the steps of an appraisal; see `libs.tee.judgement.Presented`."""

    def __init__(self, evidence: ForeignEvidence) -> None:
        self._nonce = bytes.fromhex(evidence.nonce)
        self._collateral = evidence.collateral
        members = Members(jcs.loads(evidence.report.encode()), "report", WorkerReportMalformed)
        if members.text("signing_algo") != ED25519:
            raise members.refuse("signing_algo", f"must be {ED25519}, which was asked for")
        try:
            self.key = shape.binary(members.text("signing_address"), "signing_address", _KEY_BYTES)
            self.quote = tdx.cut(shape.binary(members.text("intel_quote"), "intel_quote"))
        except ValueError as error:
            raise WorkerReportMalformed(str(error)) from error
        bound = members.has("tls_cert_fingerprint")
        self.spki_sha256 = members.hex("tls_cert_fingerprint", _KEY_BYTES) if bound else None
        self.event_log = eventlog.parse(_events(members))
        self.app_compose = _app_compose(members)

    def verify_quote(self, rules: RoleRules, now: int, note: Note) -> VerifiedPlatform:
        if self._collateral is None:
            raise WorkerReportMalformed("there is no collateral to verify the quote with")
        return rules.verify_quote(self.quote, self._collateral, now, note)

    def verify_binding(self, report_data: bytes, now: int, note: Note) -> None:
        identity = self.key
        if self.spki_sha256 is not None:
            identity = hashlib.sha256(self.key + bytes.fromhex(self.spki_sha256)).digest()
        note("report data", report_data, identity + self._nonce)
        if report_data != identity + self._nonce:
            raise WorkerReportDataMismatch("the quote does not bind this signing key, TLS key and nonce")

    def verify_gpu(self, rules: RoleRules, now: int, note: Note) -> int:
        """Not judged; the session says `unknown`."""
        return FOREVER

    def verify_claims(self, rules: RoleRules, identity: Identity, note: Note) -> None:
        """Such a report claims nothing that the measurement does not say."""


def _events(members: Members) -> Any:
    """The agent's own JSON may hold members that are not measured."""
    entries = jcs.loads(members.text("event_log").encode())
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise members.refuse("event_log", "must be a list of events")
    return [{name: entry[name] for name in _EVENT_MEMBERS if name in entry} for entry in entries]


def _app_compose(members: Members) -> str:
    info = members.object("info")
    stated = info.raw().get("tcb_info")
    tcb_info = jcs.loads(stated.encode()) if isinstance(stated, str) else stated
    return Members(tcb_info, "report.info.tcb_info", WorkerReportMalformed).text("app_compose")
