"""It is responsible for what witnesses that a reader knows say of a log: how much of it they have cosigned."""

from __future__ import annotations

from libs.audit.log.findings import Status
from libs.audit.log.notes import read_checkpoint
from libs.audit.log.promises import CHECKPOINT_WITNESSED
from libs.audit.log.reading import Reading
from libs.errors import MeshError
from libs.transparency.quorum import Quorum
from services.cli.mesh.witnessed import NotWitnessed


def judge_witnessed(note: bytes | None, quorum: Quorum, reading: Reading) -> None:
    """Say in the findings how far the log is witnessed, by the newest witnessed head; or that it is not.

    The log's own key must stand under that head, and the tree that was read must be its tree. A head with fewer
    cosignatures than are demanded shows nothing, and leaves the log unproven.
    """
    try:
        if note is None:
            raise NotWitnessed("it shows no head that witnesses have cosigned")
        names = quorum.verify(note)
        head = read_checkpoint(note)
        head.verify(reading.keys)
        if (reading.roots or {}).get(head.size) != head.root:
            raise NotWitnessed(f"the tree of {head.size} leaves that they cosigned was not found here")
    except MeshError as error:
        reading.findings.add(Status.UNPROVEN, CHECKPOINT_WITNESSED, None, f"{error.reason}: {error}")
        return
    reading.findings.remark(f"witnessed up to {head.size} of {reading.size}, by {', '.join(names)}")
