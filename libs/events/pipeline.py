"""Responsible for the entries that say where data and weights come from: the stages of a pipeline.

A stage is on the word of the attested workload that ran it, whose log key signs the entry (`stage_signature`). Inputs
name the entry of the stage that made them, so that a model's weights lead back to the data that they were trained on,
digest by digest. The entry lies open: whoever is served by the weights may follow them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from libs.errors import Code, MeshError
from libs.events.privacy import Privacy, read_privacy
from libs.policy.members import Members

MAX_ARTIFACTS = 1024
"""So many inputs, and so many outputs, a stage has at most."""

SIGNATURE = "signature"
"""The member of the body that the others are signed by."""

_UNSIGNED, _VERSION = 1, 2
"""The version before stages were signed is read, and never written."""
_DIGEST_BYTES = 32
_SIGNATURE_BYTES = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._/@:-]{0,127}")


class StageMalformed(MeshError):
    """The body is not an entry's of kind PIPELINE."""

    code = Code.INVALID_ARGUMENT
    reason = "STAGE_MALFORMED"


class Step(Enum):
    """What a stage does."""

    DATA_PREPROCESSING = "data_preprocessing"
    TRAINING = "training"
    FINE_TUNING = "fine_tuning"
    EVALUATION = "evaluation"
    FEDERATED_ROUND = "federated_round"


@dataclass(frozen=True, slots=True)
class Artifact:
    """What a stage reads or makes: a data set, weights, a report."""

    name: str
    """For everybody to read, and distinct among a stage's inputs and among its outputs."""
    sha256: bytes
    """Of the manifest of its files (`libs.weights.manifest`), as model weights are named; 32 bytes."""
    made_by: bytes | None = None
    """Entry id of the stage whose output an input is, 32 bytes; None where it comes from outside, and for an output."""

    def members(self) -> dict[str, Any]:
        made_by = {} if self.made_by is None else {"made_by": self.made_by.hex()}
        return {"name": self.name, "sha256": self.sha256.hex(), **made_by}


@dataclass(frozen=True, slots=True)
class Stage:
    """One run of a step."""

    step: Step
    name: str
    """For everybody to read."""
    inputs: tuple[Artifact, ...]
    outputs: tuple[Artifact, ...]
    parameters_sha256: bytes
    """Of the canonical JSON that holds its settings, seeds among them; 32 bytes."""
    began_ms: int
    """Milliseconds since the Unix epoch, by the workload's clock."""
    ended_ms: int
    privacy: Privacy | None = None
    """What it spent of its inputs' privacy, where it says so."""

    def body(self) -> dict[str, Any]:
        """Return the entry's body, but for its signature."""
        return {
            "v": _VERSION,
            "stage": self.step.value,
            "name": self.name,
            "inputs": [each.members() for each in self.inputs],
            "outputs": [each.members() for each in self.outputs],
            "parameters_sha256": self.parameters_sha256.hex(),
            "began_ms": self.began_ms,
            "ended_ms": self.ended_ms,
            **({} if self.privacy is None else {"privacy": self.privacy.members()}),
        }


def require_recordable(stage: Stage) -> None:
    """Raise `StageMalformed` for a stage that nobody would read, once it is signed."""
    parse_stage({**stage.body(), SIGNATURE: bytes(_SIGNATURE_BYTES).hex()})


def parse_stage(body: Mapping[str, Any]) -> Stage:
    """Read the body of an entry of kind PIPELINE. Whose word it is remains open. Raises `StageMalformed`."""
    members = Members(dict(body), "", StageMalformed)
    privacy = None
    if members.integer("v", _UNSIGNED, _VERSION) == _VERSION:
        members.octets(SIGNATURE, _SIGNATURE_BYTES)
        privacy = read_privacy(members.object("privacy")) if members.has("privacy") else None
    step = members.text("stage", re.compile("|".join(each.value for each in Step)))
    began_ms = members.integer("began_ms", 0)
    stage = Stage(
        step=Step(step),
        name=members.text("name", _NAME),
        inputs=_artifacts(members, "inputs", _input),
        outputs=_artifacts(members, "outputs", _output),
        parameters_sha256=members.octets("parameters_sha256", _DIGEST_BYTES),
        began_ms=began_ms,
        ended_ms=members.integer("ended_ms", began_ms),
        privacy=privacy,
    )
    if not stage.outputs:
        raise members.refuse("outputs", "must name something: a stage that made nothing proves nothing")
    members.end()
    return stage


def _artifacts(members: Members, name: str, read: Callable[[Members], Artifact]) -> tuple[Artifact, ...]:
    found: list[Artifact] = []
    for each in members.objects(name):
        if len(found) == MAX_ARTIFACTS:
            raise members.refuse(name, f"must name at most {MAX_ARTIFACTS}")
        found.append(read(each))
        each.end()
    members.distinct([artifact.name for artifact in found], name)
    return tuple(found)


def _input(members: Members) -> Artifact:
    made_by = members.octets("made_by", _DIGEST_BYTES) if members.has("made_by") else None
    return Artifact(members.text("name", _NAME), members.octets("sha256", _DIGEST_BYTES), made_by)


def _output(members: Members) -> Artifact:
    return Artifact(members.text("name", _NAME), members.octets("sha256", _DIGEST_BYTES))
