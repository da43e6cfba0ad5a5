"""Responsible for the numbered checks of one response: what each proves, and why any of them does not hold.

Pure: everything that was fetched comes in as values, or as the error that kept it from coming. A check that cannot be
evaluated is a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from libs.aci.receipt import Receipt, ResponseNotReceipted, verify_exchange, verify_receipt
from libs.aci.receipt_events import UpstreamVerified
from libs.client import commitment as commitments
from libs.client import ledger
from libs.client.attestation import Attested, verify_channel, verify_report
from libs.client.chain import foreign_link, verify_chain
from libs.client.commitment import Commitment
from libs.client.exchange import Exchange
from libs.client.ledger import LedgerKeys
from libs.client.reopening import read_again
from libs.client.serving import verify_node, verify_outcome, verify_sealed
from libs.errors import Code, MeshError
from libs.policy.document import Policy
from libs.transparency.quorum import NOBODY, Quorum

T = TypeVar("T")


class ConnectionUnknown(MeshError):
    """No TLS key was seen, so nothing can be said about where the connections ended."""

    reason = "CONNECTION_UNKNOWN"


class ReceiptNotTheNamedOne(MeshError):
    """The response named another receipt than the one that was handed out for it."""

    code = Code.PERMISSION_DENIED
    reason = "RECEIPT_NOT_THE_NAMED_ONE"


class AnswerNotWhole(MeshError):
    """The client did not read the answer to its end, or nothing in it, by its own word."""

    code = Code.DATA_LOSS
    reason = "ANSWER_NOT_WHOLE"


class RestsOnFailedCheck(MeshError):
    """What this check needs was not proven."""

    reason = "RESTS_ON_FAILED_CHECK"


@dataclass(frozen=True, slots=True)
class Check:
    """One verdict. `reason` is stable, and there exactly when the check failed; `detail` is for people."""

    number: int
    name: str
    passed: bool
    detail: str
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Materials:
    """All that the checks look at. What could not be had is the error that says why."""

    policy: Policy
    mesh_ca: bytes | None
    """The mesh CA that the client knows of itself, DER."""
    host: str
    report: bytes = field(repr=False)
    nonce: str
    observed_spkis: frozenset[str]
    """SHA-256 (hex) of every TLS key that any of this client's connections to the router ended in."""
    exchange: Exchange
    receipt: bytes | MeshError = field(repr=False)
    session: bytes | MeshError = field(repr=False)
    commitment: bytes | MeshError = field(repr=False)
    issuer_evidence: bytes | MeshError = field(repr=False)
    acknowledger_evidence: bytes | MeshError = field(repr=False)
    """Of the ledger that acknowledged the receipt."""
    ledger_evidence: bytes | MeshError = field(repr=False)
    """Of the ledger that signed the checkpoint."""
    now: int
    foreign_session: bytes | MeshError | None = field(default=None, repr=False)
    """The session of a foreign provider's own that its receipt cites, where one served."""
    quorum: Quorum = NOBODY
    """Which witnesses must have cosigned the checkpoint."""


def run_checks(materials: Materials) -> list[Check]:
    """Evaluate every check, in order, whatever the earlier ones gave: twelve, and of an answer that broke off, or that
    came encrypted and was kept with its key, a thirteenth.
    """
    proof = _Proof(materials)
    steps: Sequence[tuple[str, Callable[[], str]]] = (
        ("router is attested", proof.router_is_attested),
        ("connection ends in the attested router", proof.connection_is_pinned),
        ("receipt is signed by the router", proof.receipt_is_signed),
        ("receipt is for the request sent", proof.request_matches),
        ("receipt is for the response received", proof.response_matches),
        ("a verified node had to serve", proof.serving_was_verified),
        ("the node's evidence holds", proof.node_is_attested),
        ("ledger entry is this receipt", proof.entry_is_the_receipt),
        ("entry was issued by this router", proof.issuer_is_the_router),
        ("ledger is attested", proof.ledger_is_attested),
        ("ledger acknowledged the entry", proof.entry_is_acknowledged),
        ("entry is in the signed log", proof.entry_is_included),
    )
    last = ("answer could be read", proof.answer_was_read)
    return evaluate([*steps, last] if _is_special(materials.exchange) else steps)


def _is_special(exchange: Exchange) -> bool:
    return exchange.broken_off is not None or exchange.opening_key is not None


def evaluate(steps: Sequence[tuple[str, Callable[[], str]]]) -> list[Check]:
    """Number the steps and take each, whatever the earlier ones gave. A step returns its detail or raises."""
    return [_judge(number, name, step) for number, (name, step) in enumerate(steps, 1)]


def proven(value: T | None, number: int) -> T:
    """Return what an earlier check proved. Raises `RestsOnFailedCheck`."""
    if value is None:
        raise RestsOnFailedCheck(f"rests on check {number}, which failed")
    return value


def _judge(number: int, name: str, step: Callable[[], str]) -> Check:
    try:
        return Check(number, name, True, step())
    except MeshError as error:
        return Check(number, name, False, str(error), error.reason)


class _Proof:
    """Each step may rest on what earlier ones proved, and on nothing that they did not."""

    def __init__(self, materials: Materials) -> None:
        self._given = materials
        self._policy = materials.policy
        self._attested: Attested | None = None
        self._receipt: Receipt | None = None
        self._outcome: UpstreamVerified | None = None
        self._acknowledger_keys: LedgerKeys | None = None

    def router_is_attested(self) -> str:
        given = self._given
        self._attested = verify_report(given.report, given.nonce, self._policy, given.now)
        return self._attested.summary + self._development

    def connection_is_pinned(self) -> str:
        attested = proven(self._attested, 1)
        if not self._given.observed_spkis:
            raise ConnectionUnknown("no TLS key was seen")
        for spki_sha256 in self._given.observed_spkis:
            verify_channel(attested, self._given.host, spki_sha256)
        return "TLS key " + ", ".join(f"{spki[:16]}..." for spki in sorted(self._given.observed_spkis))

    def receipt_is_signed(self) -> str:
        self._receipt = verify_receipt(_had(self._given.receipt), proven(self._attested, 1).keyset)
        return f"{self._receipt.receipt_id}, key {self._receipt.key_id}"

    def request_matches(self) -> str:
        receipt, exchange = proven(self._receipt, 3), self._given.exchange
        # The response is the next check's business.
        verify_exchange(receipt, request_body=exchange.request, response_hash=receipt.returned.body_hash)
        verify_sealed(receipt, exchange)
        return f"{len(exchange.request)} bytes, {receipt.received.body_hash[:23]}..."

    def response_matches(self) -> str:
        receipt, exchange = proven(self._receipt, 3), self._given.exchange
        if receipt.receipt_id != exchange.receipt_id:
            raise ReceiptNotTheNamedOne("the response named another receipt than this one")
        if receipt.returned.body_hash != exchange.response_hash:
            raise ResponseNotReceipted("the receipt is for another response body than the one that came")
        return f"{receipt.returned.body_hash[:23]}..."

    def serving_was_verified(self) -> str:
        self._outcome = verify_outcome(proven(self._receipt, 3), self._given.exchange)
        return f"model {self._outcome.model_id}, session {self._outcome.session_id[:16]}..."

    def node_is_attested(self) -> str:
        receipt, outcome = proven(self._receipt, 3), proven(self._outcome, 6)
        if (link := foreign_link(receipt)) is not None:
            upstream = None if self._given.foreign_session is None else _had(self._given.foreign_session)
            session = _had(self._given.session)
            return verify_chain(session, receipt, outcome, link, upstream, self._policy) + self._development
        appraisal = verify_node(_had(self._given.session), receipt, outcome, self._policy, self._ca_spki())
        measured = appraisal.measurement.compose_hash[:16]
        engine = appraisal.workload_claims["engine"]
        gpus = "" if appraisal.gpu is None else f", GPU {', '.join(gpu.ueid for gpu in appraisal.gpu.devices)}"
        return f"TCB {appraisal.tcb_status}, compose {measured}..., engine {engine}{gpus}" + self._development

    def entry_is_the_receipt(self) -> str:
        proven(self._receipt, 3)
        entry = ledger.verify_entry(self._commitment(), _had(self._given.receipt))
        return f"number {entry.issuer_seq} of issuer {entry.issuer.hex()[:16]}..."

    def issuer_is_the_router(self) -> str:
        attested, receipt = proven(self._attested, 1), proven(self._receipt, 3)
        appraisal = ledger.verify_issuer(
            self._commitment(),
            _had(self._given.issuer_evidence),
            attested.keyset.receipt_key(receipt.key_id),
            self._policy,
            self._ca_spki(),
            receipt.served_at,
        )
        return f"evidence {appraisal.evidence_digest.hex()[:16]}..."

    def ledger_is_attested(self) -> str:
        commitment, evidence = self._commitment(), _had(self._given.acknowledger_evidence)
        served_at, name = proven(self._receipt, 3).served_at, commitment.acknowledged_by
        self._acknowledger_keys = ledger.verify_acknowledger(
            commitment, evidence, self._policy, self._ca_spki(), served_at
        )
        return f"{name.origin}, evidence {name.evidence_sha256[:16]}..."

    def entry_is_acknowledged(self) -> str:
        statement = ledger.verify_durable(self._commitment(), proven(self._acknowledger_keys, 10))
        return f"leaf {statement.index}"

    def entry_is_included(self) -> str:
        given, commitment = self._given, self._commitment()
        # The ledger of now need not be the one that acknowledged; what is wrong with it is nothing against that one.
        keys = ledger.verify_ledger(
            commitment.ledger,
            commitment.mesh_ca,
            _had(given.ledger_evidence),
            self._policy,
            self._ca_spki(),
            given.now,
        )
        if self._acknowledger_keys is not None and self._acknowledger_keys.log_id != keys.log_id:
            raise ledger.LedgerNotAttested("another log acknowledged the entry than the one it is shown in")
        checkpoint = ledger.verify_included(commitment, keys)
        cosigned = ", ".join(given.quorum.verify(commitment.checkpoint))
        by = f", cosigned by {cosigned}" if cosigned else ""
        return f"tree of {checkpoint.size} leaves, root {checkpoint.root.hex()[:16]}...{by}"

    def answer_was_read(self) -> str:
        exchange = self._given.exchange
        if exchange.broken_off is not None:
            raise AnswerNotWhole(f"whoever asked read no more of it: {exchange.broken_off}")
        if exchange.opening_key is None:
            raise AnswerNotWhole("no key to it was kept")
        text = read_again(exchange, exchange.opening_key)
        return f"{len(text)} characters, opened with the request's own key"

    def _commitment(self) -> Commitment:
        return commitments.parse(_had(self._given.commitment))

    def _ca_spki(self) -> bytes:
        known = self._given.mesh_ca
        if known is not None and isinstance(self._given.commitment, MeshError):
            # A router that shows nothing of the log takes nothing away from what else it showed.
            return commitments.spki_of(known)
        return commitments.ca_spki(self._commitment(), known)

    @property
    def _development(self) -> str:
        """Empty on real hardware."""
        roots = self._policy.development_roots
        return f" [DEVELOPMENT ROOT {', '.join(roots)}: proves no hardware]" if roots else ""


def _had(value: bytes | MeshError) -> bytes:
    if isinstance(value, MeshError):
        raise value
    return value
