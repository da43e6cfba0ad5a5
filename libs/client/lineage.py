"""Responsible for the numbered checks that lead from a model's weights to the stages that made them, and to the data.

Pure, as `checks` is. What holds is what attested jobs said of their own work, in an order that the log shows: that a
stage did with its inputs what its name says is for its measured code to answer. Nothing here says that the log has no
other stage with the same output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from libs.aci.receipt import Receipt
from libs.aci.receipt_events import ServedByNode
from libs.client.checks import Check, evaluate, proven
from libs.client.commitment import LedgerName, spki_of
from libs.client.jobs import JobNotAttested, verify_job, verify_not_ended
from libs.client.ledger import verify_ledger
from libs.client.logged import LoggedEntry, id_of
from libs.errors import Code, MeshError
from libs.events.keyset import parse_keyset
from libs.events.pipeline import Artifact, Stage, parse_stage
from libs.events.records import Entry
from libs.events.stage_signature import verify_stage
from libs.policy.document import Policy
from libs.transparency import checkpoint as checkpoints
from libs.transparency.checkpoint import Checkpoint
from libs.transparency.leaf import Kind
from libs.transparency.note import VerifierKey
from libs.transparency.quorum import NOBODY, Quorum

MAX_STAGES = 256
"""So many stages a lineage has at most."""


class WeightsNotNamed(MeshError):
    """The receipt names no weights: a foreign provider answered, or nobody."""

    code = Code.FAILED_PRECONDITION
    reason = "WEIGHTS_NOT_NAMED"


class WeightsNotMade(MeshError):
    """The first stage did not make these weights."""

    code = Code.PERMISSION_DENIED
    reason = "WEIGHTS_NOT_MADE"


class StageMissing(MeshError):
    """An input is said to come from a stage that is not shown."""

    code = Code.PERMISSION_DENIED
    reason = "STAGE_MISSING"


class InputNotMade(MeshError):
    """The stage that an input is said to come from has no output of this digest."""

    code = Code.PERMISSION_DENIED
    reason = "INPUT_NOT_MADE"


class StageNotBefore(MeshError):
    """The stage that an input is said to come from is not before it in the log: stages cannot rest on each other."""

    code = Code.PERMISSION_DENIED
    reason = "STAGE_NOT_BEFORE"


class StageNotOnTheWay(MeshError):
    """A stage is shown that nothing leads to."""

    code = Code.PERMISSION_DENIED
    reason = "STAGE_NOT_ON_THE_WAY"


class DataNotUsed(MeshError):
    """Data that was asked for is not among what the weights were made of."""

    code = Code.PERMISSION_DENIED
    reason = "DATA_NOT_USED"


@dataclass(frozen=True, slots=True)
class Lineage:
    """Stages with what proves them, as they were gathered. Nothing of it is proven."""

    gathered_at: int
    """Unix seconds."""
    ledger: LedgerName
    ledger_evidence: bytes = field(repr=False)
    checkpoint: bytes = field(repr=False)
    """C2SP signed note of the one tree that all entries are shown in."""
    stages: tuple[LoggedEntry, ...]
    """The first made the weights."""
    keysets: tuple[LoggedEntry, ...]
    """Of those who wrote them."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a lineage is judged by."""

    policy: Policy
    mesh_ca: bytes
    """DER."""
    now: int
    quorum: Quorum = NOBODY
    data: frozenset[bytes] = frozenset()
    """Digests that MUST be among the data from outside."""


def served_weights(receipt: Receipt) -> bytes:
    """Return the digest of the weights that served, by a receipt whose node was verified. Raises `WeightsNotNamed`."""
    named = [event for event in receipt.events if isinstance(event, ServedByNode)]
    if not named:
        raise WeightsNotNamed("the receipt names no node, and so no weights")
    return bytes.fromhex(named[-1].weights_sha256)


def check_lineage(lineage: Lineage, weights: Callable[[], bytes], terms: Terms) -> list[Check]:
    """Evaluate every check, in order, whatever the earlier ones gave.

    `weights` gives the digest of the weights that are asked about, or raises why it is not known.
    """
    proof = _Proof(lineage, weights, terms)
    steps: list[tuple[str, Callable[[], str]]] = [
        ("weights are known", proof.weights_are_known),
        ("ledger is attested", proof.ledger_is_attested),
        ("tree is signed by the ledger", proof.tree_is_signed),
        ("weights were made by stage 1", proof.weights_were_made),
    ]
    for place in range(len(lineage.stages)):
        number = place + 1
        steps += [
            (f"stage {number} is in the signed tree", partial(proof.stage_is_logged, place)),
            (f"stage {number} is signed by an allowed job", partial(proof.job_is_attested, place)),
            (f"stage {number} took what was made before", partial(proof.inputs_were_made, place)),
        ]
    return evaluate([*steps, ("the weights lead to their data", proof.data_is_named)])


@dataclass(frozen=True, slots=True)
class _Shown:
    """A stage that the tree has."""

    index: int
    entry: Entry
    stage: Stage


class _Proof:
    """Each step rests on what it needs to have been proven, and on nothing else."""

    def __init__(self, lineage: Lineage, weights: Callable[[], bytes], terms: Terms) -> None:
        self._lineage = lineage
        self._ask_weights = weights
        self._terms = terms
        self._weights: bytes | None = None
        self._ledger_key: VerifierKey | None = None
        self._tree: Checkpoint | None = None
        self._shown: dict[int, _Shown] = {}

    def weights_are_known(self) -> str:
        self._weights = self._ask_weights()
        return self._weights.hex()

    def ledger_is_attested(self) -> str:
        lineage, terms = self._lineage, self._terms
        ca = spki_of(terms.mesh_ca)
        keys = verify_ledger(lineage.ledger, terms.mesh_ca, lineage.ledger_evidence, terms.policy, ca, terms.now)
        self._ledger_key = keys.checkpoint
        return f"{lineage.ledger.origin}, evidence {lineage.ledger.evidence_sha256[:16]}..."

    def tree_is_signed(self) -> str:
        tree = checkpoints.verify(self._lineage.checkpoint, proven(self._ledger_key, 2))
        cosigned = ", ".join(self._terms.quorum.verify(self._lineage.checkpoint))
        self._tree = tree
        return f"{tree.size} leaves, root {tree.root.hex()[:16]}..." + (f", cosigned by {cosigned}" if cosigned else "")

    def weights_were_made(self) -> str:
        weights = proven(self._weights, 1)
        if not self._lineage.stages:
            raise WeightsNotMade("no stage is shown")
        made = _named(self._stage(0).stage.outputs, weights)
        if made is None:
            raise WeightsNotMade(f"stage 1 has no output {weights.hex()}")
        return made.name

    def stage_is_logged(self, place: int) -> str:
        shown = self._stage(place)
        stage = shown.stage
        spent = "" if stage.privacy is None else f", {stage.privacy}"
        return f"{stage.step.value} {stage.name!r}, leaf {shown.index}, entry {id_of(shown.entry).hex()}{spent}"

    def job_is_attested(self, place: int) -> str:
        entry = self._stage(place).entry
        tree = proven(self._tree, 3)
        entries = [logged.verify(Kind.KEYSET, tree) for logged in self._lineage.keysets]
        shown = {written.issuer: parse_keyset(written.body) for written in entries}
        keyset = shown.get(entry.issuer)
        if keyset is None:
            raise JobNotAttested("the keyset of whoever wrote the stage is not shown")
        terms = self._terms
        job = verify_job(keyset, entry, terms.policy, terms.mesh_ca)
        verify_stage(entry, job.log_key)
        verify_not_ended(job, entry, shown.values())
        return f"{job.spiffe_id}, compose {job.compose_hash}"

    def inputs_were_made(self, place: int) -> str:
        shown = self._stage(place)
        by_id = {id_of(other.entry): other for other in self._stages()}
        for taken in shown.stage.inputs:
            if taken.made_by is None:
                continue
            maker = by_id.get(taken.made_by)
            if maker is None:
                raise StageMissing(f"the stage that made {taken.name!r} is not shown: {taken.made_by.hex()}")
            if maker.index >= shown.index:
                raise StageNotBefore(f"the stage that made {taken.name!r} is later in the log, at leaf {maker.index}")
            if _named(maker.stage.outputs, taken.sha256) is None:
                raise InputNotMade(f"{taken.name!r} is no output of the stage that is said to have made it")
        made = sum(taken.made_by is not None for taken in shown.stage.inputs)
        return f"{made} of {len(shown.stage.inputs)} inputs from stages shown here"

    def data_is_named(self) -> str:
        stages = self._stages()
        by_id = {id_of(shown.entry): shown for shown in stages}
        reached, waiting = {id_of(stages[0].entry)} if stages else set(), stages[:1]
        data: dict[bytes, str] = {}
        while waiting:
            for taken in waiting.pop().stage.inputs:
                if taken.made_by is None:
                    data.setdefault(taken.sha256, taken.name)
                elif taken.made_by not in reached and taken.made_by in by_id:
                    reached.add(taken.made_by)
                    waiting.append(by_id[taken.made_by])
        if len(reached) != len(stages):
            raise StageNotOnTheWay("a stage is shown that nothing leads to")
        if lacking := self._terms.data - data.keys():
            raise DataNotUsed(f"{sorted(lacking)[0].hex()} is not among the data from outside")
        return "; ".join(f"{name!r} {sha256.hex()}" for sha256, name in data.items()) or "none from outside"

    def _stage(self, place: int) -> _Shown:
        """Return a stage that the tree has. Raises what keeps it from being one."""
        if place not in self._shown:
            logged = self._lineage.stages[place]
            entry = logged.verify(Kind.PIPELINE, proven(self._tree, 3))
            self._shown[place] = _Shown(logged.index, entry, parse_stage(entry.body))
        return self._shown[place]

    def _stages(self) -> list[_Shown]:
        return [self._stage(place) for place in range(len(self._lineage.stages))]


def _named(artifacts: Sequence[Artifact], sha256: bytes) -> Artifact | None:
    return next((artifact for artifact in artifacts if artifact.sha256 == sha256), None)
